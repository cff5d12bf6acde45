"""Adapters that were trained inside the backbone, put to use: against the evaluation of their runs, image by image."""

import json
from itertools import combinations

import onnxruntime
import pytest
import torch

import losa_cache as lc
from losa_cache.apply import adapted
from losa_cache.apply.export import onnx_file
from losa_cache.apply.export.config import SUFFIXES
from losa_cache.train.evaluate_run import evaluated
from losa_cache.train.online_config import OnlineConfig
from losa_cache.tuned.rebuild import trunk_of
from losa_cache.tuned.spec import parse_method
from tests.apply.serving import ask, png, serving
from tests.conftest import tiny_backbone, tiny_samples

COUNT = 17
METHODS = {"full": "full", "lora": "lora", "deep": "vpt:deep", "adapter": "adapter:houlsby", "ssf": "ssf"}
ONLINE = OnlineConfig(backbone="tiny", dataset="tiny", precision="float32", workers=1)


def train(out, method=None, **options):
    objects = {"backbone": tiny_backbone(depth=2), "dataset": tiny_samples()}
    own = {"epochs": 2, "lr": 0.05, "batch_size": 8, "head": "last", "val_fraction": 0.0, "device": "cpu"}
    return lc.train(online=ONLINE, method=method, out=out, **objects, **own | options).run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of each method, and one of LoSA on the same backbone."""
    folder = tmp_path_factory.mktemp("methods")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        for name, method in METHODS.items():
            train(folder / name, method)
        train(folder / "losa", rank=2)
    return folder


def load(folder, names=METHODS):
    return {name: lc.load_adapter(folder / name, device="cpu") for name in names}


def held_out():
    return tiny_samples(COUNT, split="test")


def pixels():
    samples, transform = held_out(), tiny_backbone(depth=2).input.transform()
    return torch.stack([transform(samples.load(at)) for at in range(COUNT)])


def evaluation(run):
    """Probabilities of each test image, as ``losa-cache eval --split test`` has them, in the order of the images."""
    found = evaluated(run, split="test", device="cpu", backbone=tiny_backbone(depth=2), dataset=held_out()).outcome
    by_id = dict(zip(found.ids, found.predictions.exp(), strict=True))
    return torch.stack([by_id[name] for name in held_out().ids])


def test_one_model_gives_what_each_evaluation_does_beside_side_networks(trained):
    names = [*METHODS, "losa"]
    frozen = tiny_backbone(depth=2)
    before = {name: value.clone() for name, value in frozen.model.state_dict().items()}
    model = lc.AdaptedModel(frozen, load(trained, names))
    found, vectors = model(pixels()), model.embed(pixels())
    alike = []
    for name in names:
        expected = evaluation(trained / name)
        assert torch.allclose(found[name].softmax(1), expected, atol=2e-5), name
        assert vectors[name].shape == (COUNT, 32)
        alike.append(expected)
    assert all((one - other).abs().max() > 1e-3 for one, other in combinations(alike, 2))  # each learned its own
    for name in names:
        alone = lc.AdaptedModel(frozen, load(trained, [name]))(pixels())[name]
        assert torch.allclose(found[name], alone, atol=1e-5)
    model.rename(names[0], "other")
    model.remove(names[1])
    assert torch.equal(model(pixels(), ["other"])["other"], found[names[0]])
    assert all(torch.equal(value, before[name]) for name, value in frozen.model.state_dict().items())


@pytest.mark.slow
def test_predict_takes_images_and_refuses_a_cache(trained, tmp_path):
    samples = held_out()
    for at, name in enumerate(samples.ids):
        samples.load(at).save(tmp_path / f"{name}.png")
    options = {"backbone": tiny_backbone(depth=2), "device": "cpu", "top_k": 3}
    found = lc.predict(load(trained), sorted(map(str, tmp_path.glob("*.png"))), **options)
    for name in METHODS:
        expected = evaluation(trained / name)
        for at, entry in enumerate(found.predictions):
            own = {answer["class"]: answer["probability"] for answer in entry["predictions"][name]}
            assert [own[one] for one in samples.classes] == pytest.approx(expected[at].tolist(), abs=2e-5)
    cache = lc.extract(
        tiny_backbone(depth=2), held_out(), precision="float32", device="cpu", out=tmp_path / "test.zarr"
    )
    with pytest.raises(lc.UserError, match=r"adapter 'full' was trained inside the backbone \(full\), which cache .* "):
        lc.predict(load(trained, ["full"]), cache, device="cpu")


@pytest.mark.slow
def test_a_server_answers_with_both_kinds(trained):
    names = [*METHODS, "losa"]
    with serving(load(trained, names), backbone=tiny_backbone(depth=2)) as (port, _):
        for at in (0, 5):
            body = png(held_out().load(at))
            status, answer, _ = ask(port, "/predict?top_k=3", body, headers={"content-type": "image/png"}.items())
            assert status == 200
            for name in names:
                own = {one["class"]: one["probability"] for one in answer["predictions"][name]}
                wanted = evaluation(trained / name)[at].tolist()
                assert [own[one] for one in held_out().classes] == pytest.approx(wanted, abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("deep", "torch"),
        ("adapter", "torch"),
        ("lora", "onnx"),  # this and the next are exported as the backbone is: its weights differ
        ("full", "torch"),
    ],
)
def test_an_exported_file_gives_the_same(name, format, trained, tmp_path):
    if format == "onnx" and onnx_file.release() < onnx_file.EARLIEST:
        pytest.skip("ONNX needs a later torch")
    adapter = load(trained, [name])[name]
    out = tmp_path / f"model{SUFFIXES[format]}"
    told = lc.export(adapter, backbone=tiny_backbone(depth=2), format=format, out=out)
    if format == "onnx":
        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        (outputs,) = session.run(None, {"pixels": pixels().numpy()})
        found = torch.from_numpy(outputs)
    else:
        found = torch.export.load(out).module()(pixels())
    assert torch.allclose(found.softmax(1), evaluation(trained / name), atol=2e-5)
    assert told["adapter"]["method"]["name"] == adapter.method.name
    with pytest.raises(lc.UserError, match="was trained inside the backbone .*: leave --side-only out"):
        lc.export(adapter, side_only=True, format=format, out=tmp_path / f"side{SUFFIXES[format]}")


def test_other_weights_are_refused(trained):
    with pytest.raises(lc.UserError, match="does not fit the backbone: .*weights"):
        lc.AdaptedModel(tiny_backbone(seed=1, depth=2), load(trained, ["full"]))


def test_a_run_tells_what_its_model_costs(trained):
    width, tokens, classes = 32, 5, 3
    image = 4 * 3 * 4**2 * width  # patches

    def blocks(tokens):
        return 2 * (tokens * 12 * width**2 + 2 * tokens**2 * width)

    deep, houlsby = parse_method("vpt:deep").rank, 2 * 2 * tokens * 2 * width * parse_method("adapter").rank
    inside = dict.fromkeys(METHODS, blocks(tokens))  # what merges, or adds nothing
    inside |= {"deep": blocks(tokens + deep), "adapter": blocks(tokens) + houlsby}
    for name, macs in inside.items():
        line = json.loads((trained / name / "metrics.jsonl").read_text().splitlines()[-1])
        assert line["adapter_macs"] == macs - blocks(tokens) + width * classes, name
        assert line["inference_macs"] == image + macs + width * classes, name
        assert line["parameters"]["classifier"] == width * classes + classes
        assert line["train_images_per_second"] == pytest.approx(23 / line["train_seconds"])
    line = json.loads((trained / "losa" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["adapter_macs"] == 2 * 2 * 2 * tokens * width + width * classes
    assert line["inference_macs"] == image + blocks(tokens) + line["adapter_macs"]


def test_a_server_builds_a_changed_backbone_once(trained, monkeypatch):
    built = []
    monkeypatch.setattr(adapted, "trunk_of", lambda *given: built.append(given) or trunk_of(*given))
    with serving(load(trained, ["losa"]), backbone=tiny_backbone(depth=2), adapter_dir=str(trained)) as (port, _):
        assert ask(port, "/adapters", b'{"folder": "full"}')[0] == 201
    assert len(built) == 1
