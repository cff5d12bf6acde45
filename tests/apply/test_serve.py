"""``losa-cache serve``: a real server, real requests, and the same numbers as without either."""

import json
import shutil
import socket
import threading
import zlib
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

import losa_cache as lc
from losa_cache.apply.serve import guard
from losa_cache.apply.serve.config import ServeConfig
from losa_cache.apply.serve.service import Service
from losa_cache.errors import UserError
from tests.apply.serving import (
    CLASSES,
    ask,
    at_once,
    grey,
    load,
    pictures,
    png,
    serving,
    until,
)
from tests.conftest import tiny_backbone


@pytest.fixture(scope="module")
def port(folder):
    """A server with small limits, and all adapters."""
    with serving(load(folder), max_body=30_000, max_pixels=100_000) as (port, _):
        yield port


@pytest.fixture(scope="module")
def expected(folder):
    """Pictures, and what the model makes of each by itself: probabilities and vectors, by adapter."""
    model = lc.AdaptedModel(tiny_backbone(), load(folder))
    transform = tiny_backbone().input.transform()
    images = pictures()
    outputs = [model(transform(image)[None]) for image in images]
    vectors = [model.embed(transform(image)[None]) for image in images]
    likely = [{name: own[0].double().softmax(0) for name, own in found.items()} for found in outputs]
    return [png(image) for image in images], likely, [{n: own[0] for n, own in found.items()} for found in vectors]


def same(answer, likely, top_k=5):
    """Whether an answer names the likeliest classes in order."""
    assert answer.keys() == likely.keys()
    for name, own in likely.items():
        values, numbers = own.sort(descending=True)
        assert [entry["rank"] for entry in answer[name]] == [*range(1, top_k + 1)]
        assert [entry["class"] for entry in answer[name]] == [CLASSES[number] for number in numbers[:top_k]]
        found = torch.tensor([entry["probability"] for entry in answer[name]], dtype=torch.float64)
        assert torch.allclose(found, values[:top_k], atol=1e-5)
    return True


def batches_of(port):
    """How many batches there were, and how many images in them."""
    lines = ask(port, "/metrics")[1].splitlines()
    return [
        float(next(own.split()[1] for own in lines if own.startswith(f"losa_cache_batch_images_{what}")))
        for what in ("count", "sum")
    ]


def test_requests_are_batched_and_each_gets_its_own_numbers(folder, expected):
    raw, likely, _ = expected
    with serving(load(folder), max_batch=8, max_wait_ms=20_000, workers=2) as (port, _):
        found = at_once([partial(ask, port, f"/predict?top_k={1 + place % 6}", raw[place]) for place in range(16)])
        assert batches_of(port) == [2, 16]
        for place, (status, answer, _) in enumerate(found):
            assert status == 200
            assert same(answer["predictions"], likely[place], 1 + place % 6)


def test_a_batch_serves_different_adapters(folder, expected):
    raw, likely, vectors = expected
    with serving(load(folder), max_batch=2, max_wait_ms=20_000) as (port, _):
        one, two = at_once(
            [
                partial(ask, port, "/predict?adapter=third&adapter=first", raw[3]),
                partial(ask, port, "/predict?adapter=second&top_k=1", raw[4]),
            ]
        )
        assert batches_of(port) == [1, 2]
        assert list(one[1]["predictions"]) == ["third", "first"]
        assert same(one[1]["predictions"], {name: likely[3][name] for name in ("third", "first")})
        assert same(two[1]["predictions"], {"second": likely[4]["second"]}, 1)
        found = at_once([partial(ask, port, "/embed?adapter=first", own) for own in raw[:2]])
        for (_, answer, _), own in zip(found, vectors, strict=False):
            assert answer["features"].keys() == {"first"}
            assert torch.allclose(torch.tensor(answer["features"]["first"]), own["first"], atol=1e-5)


def test_outputs_that_overflow_refuse_their_own_request_alone(folder, expected):
    raw, likely, _ = expected
    adapters = load(folder)
    with torch.no_grad():
        adapters["second"].adapter.classifier.bias.fill_(torch.inf)
    with serving(adapters, max_batch=2, max_wait_ms=20_000) as (port, _):
        calls = [partial(ask, port, f"/predict?adapter={name}", raw[3]) for name in ("first", "second")]
        (status, answer, _), (refused, told, _) = at_once(calls)
        assert batches_of(port) == [1, 2]
    assert status == 200
    assert same(answer["predictions"], {"first": likely[3]["first"]})
    assert refused == 500
    assert "adapter 'second' gives outputs that are infinite or not numbers for this image" in json.dumps(told)


def upright(adapters):
    """Say that adapters were trained on pictures that had been turned upright."""
    for own in adapters.values():
        own.config["cache"]["fields"]["orientation"] = "upright"
    return adapters


def test_a_form_takes_an_image_and_orientation_is_followed(folder):
    image = pictures(1)[0].resize((16, 8))
    turned = image.transpose(2)  # by 90 degrees; EXIF 6 turns it by 270
    exif = image.getexif()
    exif[0x0112] = 6
    content = png(turned, exif=exif)
    body = b"--X\r\nContent-Disposition: form-data; name=image; filename=a.png\r\n\r\n" + content + b"\r\n--X--\r\n"
    with serving(upright(load(folder))) as (port, _):
        by_form = ask(port, "/predict", body, headers={"Content-Type": "multipart/form-data; boundary=X"})
        assert by_form[0] == 200
        assert by_form[1] == ask(port, "/predict", content)[1]
    likely = lc.AdaptedModel(tiny_backbone(), load(folder))(tiny_backbone().input.transform()(image)[None])
    assert same(by_form[1]["predictions"], {name: own[0].double().softmax(0) for name, own in likely.items()})


def large_png(width, height):
    """A small file that says it is large."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + (13).to_bytes(4, "big")
        + header
        + zlib.crc32(header).to_bytes(4, "big")
        + png(grey())[33:]
    )


def tiled_tiff(width, height):
    """A small picture that says its tiles are large."""
    content = png(grey(), "TIFF", tiffinfo={65000: width, 65001: height})
    for private, tag in ((65000, 322), (65001, 323)):
        content = content.replace(private.to_bytes(2, "little"), tag.to_bytes(2, "little"))
    return content


FORM = {"Content-Type": "multipart/form-data; boundary=X"}
BAD = {
    "zero bytes": ("/predict", b"", {}, 400, "the request has no image"),
    "no image": ("/predict", b"a text", {}, 415, "the 6 bytes that were sent are no image: send a JPEG"),
    "a program's input": ("/predict", png(grey(), "EPS"), {}, 415, "are no image"),
    "truncated": ("/predict", png(grey())[:-30], {}, 400, "the image does not decode ("),
    "100 megapixels": ("/embed", large_png(10_001, 10_000), {}, 413, "too large (10001 x 10000 pixels, more than 1"),
    "Pillow's limit": ("/embed", large_png(20_000, 20_000), {}, 413, "the image is too large"),
    "tiles": ("/predict", tiled_tiff(9999, 9999), {}, 413, "9999 x 9999 pixels"),
    "body": ("/predict", bytes(30_001), {}, 413, "the body has more than 30000 bytes"),
    "unknown adapter": ("/predict?adapter=frist", png(grey()), {}, 404, "there is no adapter 'frist'; nearest: first"),
    "top-k": ("/predict?top_k=0", png(grey()), {}, 422, "top-k is '0'"),
    "top-k of words": ("/predict?top_k=many", png(grey()), {}, 422, "top-k is 'many'"),
    "form without a file": ("/predict", b"--X--\r\n", FORM, 400, "the request has no image"),
    "form without an end": ("/predict", b"no form", FORM, 400, "the request cannot be read"),
    "elsewhere": ("/nothing", b"", {}, 404, "there is nothing at '/nothing': /docs lists what is there."),
    "method": ("/health", b"", {}, 405, "'/health' does not take POST"),
    "fixed adapters": ("/adapters", b'{"folder": "x"}', {}, 403, "start it with --adapter-dir"),
    "no JSON": ("/adapters", b"folder", {}, 422, "the body cannot be read: it is not JSON"),
    "other JSON": ("/adapters", b'{"path": "x"}', {}, 422, "the body cannot be read: it is not as it should be"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_in_one_sentence(case, port):
    path, body, headers, status, words = BAD[case]
    found, answer, told = ask(port, path, body, headers=headers)
    assert found == status, answer
    assert answer.keys() == {"error"}
    assert words in answer["error"]
    assert answer["error"].endswith(".")
    assert "\n" not in answer["error"]
    assert told["x-content-type-options"] == "nosniff"


def test_the_server_goes_on_after_bad_requests(port, expected):
    raw, likely, _ = expected
    chunks = ask(
        port, "/predict", iter([bytes(20_000)] * 50), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert chunks[0] == 413
    assert same(ask(port, "/predict", raw[1])[1]["predictions"], likely[1])
    assert ask(port, "/health")[1] == {"status": "ok", "backbone": "tiny0", "adapters": 3, "waiting": 0}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "MPO"])
def test_other_files_are_read(kind, port):
    assert ask(port, "/predict", png(grey(), kind))[0] == 200


def test_a_full_queue_is_503_and_nothing_that_was_accepted_is_lost(folder, expected):
    raw, likely, _ = expected
    with serving(load(folder), queue=2) as (port, service):
        free = threading.Event()
        service._batcher.between(free.wait)
        answers = []
        threads = [
            threading.Thread(target=lambda i=i: answers.append((i, ask(port, "/predict", raw[i])))) for i in range(2)
        ]
        for thread in threads:
            thread.start()
        until(lambda: ask(port, "/health")[1]["waiting"] == 2)
        status, answer, headers = ask(port, "/predict", raw[2] + bytes(3_000_000))
        free.set()
        assert status == 503
        assert headers["Retry-After"] == "1"
        assert answer["error"].startswith("2 requests are waiting")
        for thread in threads:
            thread.join()
        assert len(answers) == 2
        assert all(same(answer["predictions"], likely[i]) for i, (_, answer, _) in answers)
        assert ask(port, "/predict", raw[2])[0] == 200


def test_requests_that_take_too_long_are_refused(folder, expected, monkeypatch):
    monkeypatch.setattr(guard, "LINGER", 0.1)
    with serving(load(folder, ["first"]), timeout=0.3) as (port, service):
        free = threading.Event()
        service._batcher.between(free.wait)
        status, answer, _ = ask(port, "/predict", expected[0][0])
        free.set()
        assert (status, answer["error"]) == (503, "there was no answer within 0.3 seconds: try again later.")
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        until(lambda: ask(port, "/health")[1]["waiting"] == 0)
        until(lambda: ask(port, "/predict", expected[0][0])[0] == 200)


def test_adapters_come_and_go_while_requests_run(folder, expected):
    raw, likely, _ = expected
    stop, wrong, done = threading.Event(), [], []

    def use(place):
        while not stop.is_set():
            status, answer, _ = ask(port, "/predict?adapter=first", raw[place])
            if status != 200 or not same(answer["predictions"], {"first": likely[place]["first"]}):
                wrong.append(answer)
            done.append(place)

    with serving(load(folder, ["first"]), adapter_dir=str(folder)) as (port, _):
        threads = [threading.Thread(target=use, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                for name in ("second", "third"):
                    status, answer, _ = ask(port, "/adapters", json.dumps({"folder": name, "name": f"new {name}"}))
                    assert (status, answer["name"]) == (201, f"new {name}")
                    assert same(
                        ask(port, f"/predict?adapter=new%20{name}", raw[5])[1]["predictions"],
                        {f"new {name}": likely[5][name]},
                    )
                assert [own["name"] for own in ask(port, "/adapters")[1]["adapters"]] == [
                    "first",
                    "new second",
                    "new third",
                ]
                for name in ("second", "third"):
                    assert ask(port, f"/adapters/new%20{name}", method="DELETE")[:2] == (
                        200,
                        {"removed": f"new {name}"},
                    )
                assert ask(port, "/predict?adapter=new%20third", raw[5])[0] == 404
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not wrong
        assert len(done) > 8
        assert ask(port, "/adapters", json.dumps({"folder": "first"}))[:2] == (
            409, {"error": "an adapter 'first' is there already: remove it first, or choose another name."},
        )  # fmt: skip
        assert ask(port, "/adapters/second", method="DELETE")[0] == 404
        assert ask(port, "/adapters/first", method="DELETE")[0] == 200
        assert "add one with POST" in ask(port, "/predict", raw[0])[1]["error"]


def test_adapters_come_from_the_folder_alone(folder, tmp_path, expected):
    inside, outside = tmp_path / "in", tmp_path / "out"
    shutil.copytree(folder / "second" / "adapter", inside / "good")
    shutil.copytree(folder / "third", outside / "run")
    (inside / "linked").symlink_to(outside / "run")
    (inside / "within").symlink_to(inside / "good")
    shutil.copytree(inside / "good", inside / "part")
    (inside / "part" / "adapter.safetensors").unlink()
    (inside / "part" / "adapter.safetensors").symlink_to(outside / "run" / "adapter" / "adapter.safetensors")
    (inside / "circle").symlink_to(inside / "circle")
    shutil.copytree(inside / "good", inside / "torn")
    (inside / "torn" / "adapter.safetensors").write_bytes(b"nothing")
    with serving(load(folder, ["first"]), adapter_dir=str(inside)) as (port, _):
        given = (
            "../out/run",
            "..",
            str(outside / "run"),
            "linked",
            "part",
            "circle",
            "nowhere",
            "",
            "a\0b",
            "x" * 5000,
            "hub:a/b",
        )
        for name in given:
            status, answer, _ = ask(port, "/adapters", json.dumps({"folder": name}))
            assert status == 404, name
            assert (
                answer["error"]
                == f"there is no adapter {name!r} in the server's folder of adapters: name a folder in it."
            )
        status, answer, _ = ask(port, "/adapters", json.dumps({"folder": "torn"}))
        assert status == 422
        assert str(tmp_path) not in answer["error"]
        for name in ("a/b", "", "x" * 201, "a\nb"):
            assert ask(port, "/adapters", json.dumps({"folder": "good", "name": name}))[0] == 422
        for headers in ({"Host": "example.com"}, {"Origin": "http://example.com"}, {"Origin": "null"}):
            assert ask(port, "/adapters", b'{"folder": "good"}', headers=headers)[0] == 403
            assert ask(port, "/adapters/first", method="DELETE", headers=headers)[0] == 403
        own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
        assert ask(port, "/adapters", b'{"folder": "good"}', headers=own)[1]["name"] == "good"
        assert ask(port, "/adapters", b'{"folder": "within", "name": "again"}')[0] == 201


def test_adapters_that_do_not_fit_are_refused(folder):
    with serving(upright(load(folder, ["first"])), adapter_dir=str(folder)) as (port, _):
        status, answer, _ = ask(port, "/adapters", b'{"folder": "second"}')
        assert status == 409
        assert answer["error"].startswith("adapter 'second' does not fit the server's backbone: orientation")
    video = load(folder, ["first"])
    fields = video["first"].config["cache"]["fields"]
    fields["input"] = {**fields["input"], "frames": 4}
    with pytest.raises(UserError, match="'first' takes clips of 4 frames"):
        Service(tiny_backbone(), video, ServeConfig())


def test_an_adapter_that_computes_nothing_finite_is_not_added(folder, tmp_path, expected):
    shutil.copytree(folder / "second" / "adapter", tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "adapter.safetensors")
    save_file({name: value * 1e30 for name, value in tensors.items()}, tmp_path / "broken" / "adapter.safetensors")
    config = json.loads((tmp_path / "broken" / "config.json").read_text())
    del config["seal"], config["sha256"]
    (tmp_path / "broken" / "config.json").write_text(json.dumps(config))
    with serving(load(folder, ["first"]), adapter_dir=str(tmp_path)) as (port, _):
        status, said, _ = ask(port, "/adapters", b'{"folder": "broken"}')
        assert status == 409
        assert "gives values that are not finite" in said["error"]
        for name in ("..", "."):
            body = json.dumps({"folder": "broken", "name": name}).encode()
            assert ask(port, "/adapters", body)[0] == 422
        for headers in ({"Host": "[::1"}, {"Origin": "http://[x"}):
            status, said, _ = ask(port, "/adapters/first", method="DELETE", headers=headers)
            assert status == 403, said


def test_the_pages_need_nothing_from_elsewhere_and_the_reference_has_every_route(port):
    for path in ("/", "/docs"):
        status, text, headers = ask(port, path)
        assert status == 200
        assert "//" not in text.replace("http://www.w3.org", "")
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
    assert ask(port, "/openapi.json")[1]["paths"].keys() == {
        "/predict", "/embed", "/adapters", "/adapters/{name}", "/health", "/metrics",
    }  # fmt: skip


def test_what_was_answered_is_counted_by_route(port):
    for _ in range(2):
        ask(port, "/adapters/some", method="PUT")
    ask(port, "/secret-1")
    text = ask(port, "/metrics")[1]
    assert 'losa_cache_requests_total{path="/adapters/{name}",status="405"} 2.0' in text
    assert 'losa_cache_requests_total{path="other",status="404"}' in text
    assert "secret" not in text
    assert "losa_cache_adapters 3.0" in text


def test_names_that_are_no_text_leave_answers_whole(folder, expected):
    with serving({"a\udcff": load(folder, ["first"])["first"]}) as (port, _):
        answer = ask(port, "/predict", expected[0][0])[1]["predictions"]
        assert same(answer, {"a\udcff": expected[1][0]["first"]})
