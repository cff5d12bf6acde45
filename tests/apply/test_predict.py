"""``predict``: against evaluation from the cache, and with inputs of every kind, good and bad."""

import csv
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import losa_cache as lc
from losa_cache import tasks
from losa_cache.apply.predict import known as known_ids
from losa_cache.apply.predict.arguments import split_arguments
from losa_cache.apply.predict.from_files import batches_of
from losa_cache.apply.predict.inputs import Item, items
from losa_cache.apply.predict.known import Known
from losa_cache.data.decode import DECODE_AHEAD
from tests.apply.predicting import COUNT, cache_of, files, photos, picture, probabilities, ranked, train
from tests.conftest import losa_cache, tiny_backbone
from tests.data.videos import write_video
from tests.tasks.test_tasks import number  # noqa: F401


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of pictures, its float32 cache, and two runs."""
    folder = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(folder / "home"))
        root = photos(folder / "photos")
        cache = cache_of(root, folder / "photos.zarr")
        train(cache, folder / "birds")
        train(cache, folder / "scenes", seed=3, head="last")
    return folder, root, cache


@pytest.fixture
def predict(made):
    """``lc.predict`` with the backbone that no name loads."""
    return lambda adapters, inputs, **options: lc.predict(
        adapters, inputs, **{"backbone": tiny_backbone(), "device": "cpu"} | options
    )


def test_fresh_images_get_the_probabilities_of_evaluation_from_the_cache(made, predict):
    folder, root, cache = made
    found = predict([folder / "birds", f"other={folder / 'scenes'}"], root)
    assert (found.rows, found.skipped, found.out) == (COUNT, [], None)
    for name, run in (("birds", "birds"), ("other", "scenes")):
        expected = probabilities(folder / run, cache)
        assert len(expected) == COUNT
        for entry in found.predictions:
            own = expected[os.path.relpath(entry["id"], root)]
            np.testing.assert_allclose(ranked(entry, name), own, atol=1e-5)
            told = [answer["probability"] for answer in entry["predictions"][name]]
            assert told == sorted(told, reverse=True)
    right = [Path(entry["id"]).parent.name == entry["predictions"]["birds"][0]["class"] for entry in found.predictions]
    assert 100 * np.mean(right) == pytest.approx(lc.evaluate_run(folder / "birds", cache=cache.path)["top1"])


def test_a_cache_needs_no_backbone_and_gives_the_same(made):
    folder, _, cache = made
    expected = probabilities(folder / "birds", cache)
    found = lc.predict(folder / "birds", cache, device="cpu", batch_size=4)
    assert [entry["id"] for entry in found.predictions] == cache.sample_ids
    for entry in found.predictions:
        np.testing.assert_allclose(ranked(entry, "birds"), expected[entry["id"]], atol=1e-5)
    assert lc.predict(folder / "birds", str(cache.path), device="cpu").rows == COUNT


@pytest.mark.parametrize(
    ("precision", "error"),
    [
        pytest.param("bfloat16", 0.01, marks=pytest.mark.slow),
        pytest.param("int8", 0.02, marks=pytest.mark.slow),
        ("predict:1", 0.35),
    ],
)
def test_a_coarser_cache_differs_by_what_it_is_rounded_to(precision, error, made, predict, tmp_path, caplog):
    _, root, _ = made
    cache = cache_of(root, tmp_path / "x.zarr", precision)
    run = train(cache, tmp_path / "run")
    expected = probabilities(run, cache)
    with caplog.at_level(logging.INFO, "losa_cache.apply.predict"):
        found = predict(run, root)
    off = [np.abs(ranked(own, "run") - expected[os.path.relpath(own["id"], root)]).max() for own in found.predictions]
    assert max(off) < error
    told = [line for line in caplog.messages if f"adapter 'run' was trained on a cache at {precision}" in line]
    assert len(told) == (precision != "bfloat16")


def test_feature_vectors_are_those_of_each_adapter(made, predict):
    folder, root, cache = made
    found = predict([folder / "birds", folder / "scenes"], [root], embed=True)
    for name in ("birds", "scenes"):
        model = lc.load_adapter(folder / name, cache=cache.path, device="cpu")
        options = {"points": model.points, "shuffle": False, "batch_size": COUNT, "device": "cpu"}
        with torch.inference_mode(), lc.batches(cache.path, **options) as batches:
            (batch,) = batches
            expected = dict(zip(batch.ids, model.embed(batch.blocks).numpy(), strict=True))
        for entry in found.predictions:
            own = expected[os.path.relpath(entry["id"], root)]
            np.testing.assert_allclose(entry["features"][name], own, atol=1e-4)
    from_cache = lc.predict(folder / "birds", cache, embed=True, device="cpu").predictions
    by_id = {os.path.relpath(entry["id"], root): entry["features"]["birds"] for entry in found.predictions}
    for entry in from_cache:
        np.testing.assert_allclose(entry["features"]["birds"], by_id[entry["id"]], atol=1e-4)


def bad_inputs(root):
    """Files that do not decode, and others that only seem so."""
    root.mkdir(parents=True)
    picture(1).save(root / "cut.png")
    (root / "cut.png").write_bytes((root / "cut.png").read_bytes()[:-90])
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("no picture")
    Image.new("1", (10_000, 10_000)).save(root / "bomb.png")
    Image.new("CMYK", (20, 20), (9, 99, 0, 0)).save(root / "cmyk.jpg")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160).save(root / "grey16.png")
    frames = [picture(seed, (20, 20)) for seed in range(3)]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(root / "first.png")
    return {"cut.png": "truncated", "empty.jpg": "cannot identify", "text.jpg": "cannot identify",
            "bomb.png": "10000 x 10000 pixels, more than 89478485"}  # fmt: skip


def test_what_does_not_decode_is_listed_and_the_others_go_on(made, predict, tmp_path):
    folder, _, _ = made
    reasons = bad_inputs(tmp_path / "in")
    (tmp_path / "nothing").mkdir()
    inputs = [tmp_path / "nothing", tmp_path / "in", tmp_path / "in/moving.gif", tmp_path / "in/text.jpg"]
    found = predict(folder / "birds", inputs, out=tmp_path / "x.jsonl", batch_size=2)
    rows = {Path(json.loads(line)["id"]).name for line in (tmp_path / "x.jsonl").read_text().splitlines()}
    assert rows == {"cmyk.jpg", "first.png", "grey16.png", "moving.gif"}
    told = {Path(entry.id).name: entry.reason for entry in found.skipped}
    assert told.keys() == {*reasons, "nothing"}
    assert all(reasons[name] in told[name] for name in reasons)
    assert told["nothing"] == "the folder holds no images or videos"
    info = json.loads((tmp_path / "x.jsonl.info.json").read_text())
    assert (info["rows"], len(info["skipped"])) == (4, found.skipped_count)
    assert not (tmp_path / "x.jsonl.journal").exists()
    with pytest.raises(lc.UserError, match="nothing could be predicted: .*text.jpg.*cannot identify"):
        predict(folder / "birds", tmp_path / "in/text.jpg", out=tmp_path / "y.csv")
    assert not list(tmp_path.glob("y.csv*"))


def test_outputs_that_overflow_are_no_answers(made, predict):
    """A classifier of the largest numbers: its outputs overflow where the feature that it reads is positive."""
    folder, root, cache = made
    broken = lc.load_adapter(folder / "scenes", device="cpu")
    model = lc.load_adapter(folder / "scenes", cache=cache.path, device="cpu")
    options = {"points": model.points, "shuffle": False, "device": "cpu"}
    with torch.inference_mode(), lc.batches(cache.path, **options) as batches:
        features = {name: own for b in batches for name, own in zip(b.ids, model.embed(b.blocks), strict=True)}
    positive = (torch.stack([*features.values()]) > 0).sum(0)
    read = int(((positive > 0) & (positive < COUNT)).nonzero()[0])
    sound = {name for name, own in features.items() if own[read] < 0}
    with torch.no_grad():
        broken.adapter.classifier.weight.zero_()[:, read] = torch.finfo(torch.float32).max
        broken.adapter.classifier.bias.fill_(torch.finfo(torch.float32).max)
    adapters = {"birds": folder / "birds", "broken": broken}
    reason = "adapter 'broken' gives outputs that are infinite or not numbers"
    for found, name in (
        (predict(adapters, root, batch_size=4), lambda place: os.path.relpath(place, root)),
        (lc.predict(adapters, cache, device="cpu", batch_size=4), str),
    ):
        assert {name(entry["id"]) for entry in found.predictions} == sound
        assert {name(own.id): own.reason for own in found.skipped} == dict.fromkeys(features.keys() - sound, reason)


def test_pictures_are_preprocessed_as_at_extraction(made, predict, tmp_path):
    """A picture that its EXIF tag turns, a 16-bit one, a CMYK one: as a cache of the same folder has them."""
    folder, _, _ = made
    bad_inputs(tmp_path / "in/a")
    for name in ("cut.png", "empty.jpg", "text.jpg", "bomb.png", "moving.gif"):
        (tmp_path / "in/a" / name).unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(5, (12, 30)).save(tmp_path / "in/a/turned.jpg", exif=exif)
    for name in ("b", "c"):
        (tmp_path / "in" / name).mkdir()
        picture(9).save(tmp_path / "in" / name / "x.png")
    cache = cache_of(tmp_path / "in", tmp_path / "in.zarr")
    expected = probabilities(folder / "birds", cache)
    for entry in predict(folder / "birds", tmp_path / "in").predictions:
        own = expected[os.path.relpath(entry["id"], tmp_path / "in")]
        np.testing.assert_allclose(ranked(entry, "birds"), own, atol=1e-5)


def ids(inputs):
    return [item.id for item in items([str(own) for own in inputs])]


def test_inputs_are_files_folders_patterns_and_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x/2.png", "x/1.JPG", "x/sub/3.webp", "x/.hidden.png", "x/notes.txt", "x/sub/deep/4.png", "y.gif"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("x/sub/back").symlink_to(tmp_path / "x")
    walked = ["x/1.JPG", "x/2.png", "x/sub/3.webp", "x/sub/deep/4.png"]
    assert ids(["x"]) == ids(["./x/"]) == walked
    assert ids(["y.gif", "x/*.png", "x/sub/d*"]) == ["y.gif", "x/2.png", "x/sub/deep/4.png"]
    Path("lists").mkdir()
    Path("lists/a.csv").write_text('label,file\r\n1,"../x/2.png"\r\n2,/abs/b c.png\r\n3,\r\n', encoding="utf-8-sig")
    Path("lists/b.csv").write_text("q.png,7\n\nr.png,8\n")
    assert ids(["lists/a.csv"]) == ["x/2.png", "/abs/b c.png"]
    assert ids(["lists/b.csv"]) == ["lists/q.png", "lists/r.png"]
    Path("lists/c.csv").write_text("File;split;note\nx\\1.JPG;train;a, b\nx\\2.png;test;\n", encoding="utf-8-sig")
    Path("lists/d.jsonl").write_text('{"path": "x/2.png"}\n')
    told = []
    assert [item.id for item in items(["lists/c.csv", "lists/d.jsonl"], told.append)] == [
        "lists/x/1.JPG",
        "lists/x/2.png",
        "lists/x/2.png",
    ]
    assert [line.partition(" has ")[2] for line in told] == [
        "a column of splits, and all its 2 rows are predicted, whatever their split."
    ]
    Path("lists/c.csv").write_text("path,label\nx/1.JPG\n")
    (bad,) = items(["lists/c.csv"])
    assert "line 2 of 'lists/c.csv' has 1 cells, the heading 2" in bad.problem
    Path("lists/c.csv").write_text("path,note,note\nx/1.JPG,a,b\n")
    (bad,) = items(["lists/c.csv"])
    assert "has the column 'note' twice" in bad.problem
    with pytest.raises(lc.UserError, match="nothing matches 'x/\\*.tif'"):
        ids(["x/*.tif"])


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    (tmp_path / "x/locked").mkdir(parents=True)
    (tmp_path / "x/1.png").touch()
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: real("/none" if Path(path).name == "locked" else path))
    assert [(item.path.name, item.problem[:25]) for item in items([str(tmp_path / "x")])] == [
        ("1.png", ""),
        ("locked", "the folder cannot be read"),
    ]


def test_no_more_than_a_few_batches_are_on_their_way(made, predict, monkeypatch):
    folder, root, _ = made
    pulled, most, done = 0, 0, 0

    def counted(inputs, say=print):
        nonlocal pulled
        for item in items(inputs):
            pulled += 1
            yield item

    def take(table, rows):
        nonlocal most, done
        most, done = max(most, pulled - COUNT - done), done + len(rows)  # all are counted first, for the bar

    monkeypatch.setattr("losa_cache.apply.predict.predict.items", counted)
    assert predict(folder / "birds", root, batch_size=2, take=take).predictions == []
    assert done == COUNT
    assert most <= 2 * (DECODE_AHEAD + 2) + 1


def test_batches_are_on_a_grid_and_problems_come_with_the_batch_behind_them():
    stream = [Item(str(n), Path(f"{n}.png"), "bad" if n in (0, 3, 7) else "") for n in range(8)]
    found = [([item.id for item in own.items], [bad.id for bad in own.skipped]) for own in batches_of(stream, 2)]
    assert found == [(["1", "2"], ["0", "3"]), (["4", "5"], []), (["6"], ["7"])]
    mixed = [Item(name, Path(name)) for name in ("a.png", "b.mp4", "c.mp4", "d.png")]
    assert [(len(own.items), own.clips) for own in batches_of(mixed, 4, clips=3)] == [(1, 1), (2, 3), (1, 1)]
    assert [own.start for own in batches_of(mixed, 3)] == [0, 3]


def test_known_ids_are_those_of_a_set(monkeypatch):
    monkeypatch.setattr(known_ids, "FRESH", 7)
    names = [f"n{drawn}" for drawn in np.random.default_rng(0).integers(0, 300, 1000)]
    known, expected = Known(), set()
    for name in names:
        assert known.add(name) == (name not in expected)
        expected.add(name)
    more = [f"n{drawn}" for drawn in np.random.default_rng(1).integers(200, 500, 400)]
    wanted = [name not in expected and name not in more[:place] for place, name in enumerate(more)]
    assert known.add_all(more).tolist() == wanted
    assert any(wanted)
    assert not known.add_all(more + names).any()
    assert not known.add(more[0])
    expected |= set(more)
    assert len(known) == len(expected)
    assert [name for name in map("n{}".format, range(600)) if name in known] == sorted(
        expected, key=lambda n: int(n[1:])
    )


def test_videos_are_averaged_over_their_clips(tmp_path):
    for label, first in (("low", 0), ("high", 2048)):
        for place in range(3):
            write_video(tmp_path / "v" / label / f"{place}.mp4", 12, first=first + 40 * place)
    options = {"clips": 2, "precision": "float32", "device": "cpu", "out": tmp_path / "v.zarr"}
    cache = lc.extract("vivit_digits", str(tmp_path / "v"), **options)
    run = lc.train(cache, out=tmp_path / "run", rank=2, epochs=1, lr=0.02, device="cpu").run
    picture(3).save(tmp_path / "v/still.png")
    found = lc.predict(run, tmp_path / "v", device="cpu", batch_size=4)
    (skipped,) = found.skipped
    assert "still.png" in skipped.id
    assert "trained on clips of 4 frames" in skipped.reason
    expected = {entry["id"]: entry for entry in lc.predict(run, cache, device="cpu").predictions}
    assert len(found.predictions) == len(expected) == 6
    losses = []
    for entry in found.predictions:
        own = expected[os.path.relpath(entry["id"], tmp_path / "v")]
        for ours, theirs in zip(entry["predictions"]["run"], own["predictions"]["run"], strict=True):
            assert ours["class"] == theirs["class"]
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
        losses.append(-np.log(next(a["probability"] for a in own["predictions"]["run"] if a["class"] in entry["id"])))
    assert np.mean(losses) == pytest.approx(lc.evaluate_run(run, cache=cache.path, device="cpu")["loss"], rel=1e-4)


def test_another_task_gives_its_numbers(made, predict, number, tmp_path):  # noqa: F811
    _, root, cache = made
    run = train(cache, tmp_path / "run", task="number", side="mlp")
    model = lc.load_adapter(run, cache=cache.path, device="cpu")
    with torch.inference_mode(), lc.batches(cache.path, points=model.points, shuffle=False, batch_size=99) as batches:
        (batch,) = batches
        expected = dict(zip(batch.ids, model(batch.blocks)[:, 0].tolist(), strict=True))
    predict(run, root, out=tmp_path / "x.csv")
    with open(tmp_path / "x.csv", newline="") as file:
        for line in csv.DictReader(file):
            assert float(line["run.value_1"]) == pytest.approx(expected[os.path.relpath(line["id"], root)], rel=1e-4)
    assert tasks.get_task("number") is number


REFUSED = {
    "an unknown adapter": (["nobody"], ["photos"], {}, "'nobody' is no adapter"),
    "an input that is not there": (["birds"], ["phots"], {}, "neither an adapter nor an input at 'phots'"),
    "a cache beside a folder": (["birds"], ["photos", "photos.zarr"], {}, "stands beside other inputs"),
    "two of one name": (["birds", "birds"], ["photos"], {}, "two adapters are called 'birds'"),
    "mixed backbones": (["birds", "strange"], ["photos"], {}, "cannot share a backbone: they differ in backbone"),
    "another suffix": (["birds"], ["photos"], {"out": "x.txt"}, "written to .csv, .jsonl, .parquet"),
    "features as CSV": (["birds"], ["photos"], {"out": "x.csv", "embed": True}, r"\(--embed\) are written to .npy"),
    "predictions as npy": (["birds"], ["photos"], {"out": "x.npy"}, "Add --embed"),
    "two in an npy": (["birds", "scenes"], ["photos"], {"out": "x.npy", "embed": True}, "features of one adapter"),
    "no classes": (["birds"], ["photos"], {"top_k": 0}, "top-k is 0"),
    "a bomb": (["birds"], ["photos"], {"max_pixels": 10**9}, "Pillow decodes no picture of more"),
    "other adapters": (["scenes"], ["photos"], {"out": "there.csv"}, r"\('birds', and 'scenes' are asked for\)"),
    "a retrained one": (["birds=scenes"], ["photos"], {"out": "there.csv"}, "the weights of adapter 'birds'"),
    "other classes": (["birds"], ["photos"], {"out": "there.csv", "top_k": 2}, r"the columns \(--top-k\) of adapter"),
    "a cache's": (["birds"], ["photos.zarr"], {"out": "there.csv"}, "differs in what it is of"),
    "foreign columns": (["birds"], ["photos"], {"out": "own.csv"}, "is no such output \\(it has the columns x, y"),
    "no table at all": (["birds"], ["photos"], {"out": "own.parquet"}, "is no such output \\(it is no Parquet file"),
    "a strange journal": (["birds"], ["photos"], {"out": "j.csv"}, "it is no journal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_a_backbone_is_loaded(case, made, predict, monkeypatch, tmp_path):
    folder, root, _ = made
    adapters, inputs, options, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    for name in ("birds", "scenes", "photos", "photos.zarr", "photos.zarr.receipts"):
        Path(name).symlink_to(folder / name)
    Path("own.csv").write_text("x,y\n1,2\n")
    Path("own.parquet").write_bytes(b"no table")
    Path("j.csv.journal").write_text("mine")
    if "strange" in adapters:
        lc.train(lc.extract(tiny_backbone(1), "folder", data_dir=str(root), precision="float32"), out="strange", rank=1,
                 epochs=1, lr=0.01)  # fmt: skip
    if options.get("out") == "there.csv":
        predict("birds", "photos", out="there.csv", top_k=3)
    before = files(tmp_path)
    with pytest.raises(lc.UserError, match=message):
        lc.predict(adapters, inputs, device="cpu", **options)  # its backbone, 'tiny0', is none that could be loaded
    assert files(tmp_path) == before


def test_the_command_prints_a_table_and_says_what_it_skipped(digits, tmp_path):
    run = lc.train(digits["train"], out=tmp_path / "digits", rank=1, epochs=1, lr=0.01, device="cpu").run
    (tmp_path / "in").mkdir()
    lc.load_samples("digits", split="test").load(0).save(tmp_path / "in" / "a\x1b[31m\n.png")
    words = ["predict", str(run), str(tmp_path / "in"), "--top-k", "2"]
    done = losa_cache(*words, home=digits["home"])
    assert done.returncode == 0, done.stderr
    heading, line = done.stdout.splitlines()
    assert heading.split() == ["input", "1", "2"]
    assert r"a\x1b[31m\n.png" in line
    assert line.count("%") == 2
    (tmp_path / "in/z.png").touch()
    done = losa_cache(*words, "--json", "--out", str(tmp_path / "x.csv"), home=digits["home"])
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert (report["rows"], report["skipped"]) == (1, 1)
    assert "z.png: UnidentifiedImageError" in done.stderr


def test_help_and_refusals_come_without_torch():
    told = (
        "import sys; from losa_cache.cli_predict import predict; from losa_cache.apply.predict.arguments import "
        "split_arguments\ntry: split_arguments(['x'])\nexcept Exception as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "there is neither an adapter nor an input at 'x': check the path.\nFalse\n"


def test_adapters_and_inputs_are_told_apart(made, monkeypatch):
    folder = made[0]
    monkeypatch.chdir(folder)
    words = ["photos", "birds", "x=scenes/adapter", "hub:me/mine", "photos/a/*.png", "s3://b/x.zarr"]
    assert split_arguments(words) == (["birds", "x=scenes/adapter", "hub:me/mine"], [words[0], *words[4:]])
    for word in ("a b.zip", "shards/0.tar", "hf:me/mine", "wds:x-{0..9}.tar"):
        with pytest.raises(lc.UserError, match=f"--dataset {re.escape(shlex.quote(word))}, and predict the cache"):
            split_arguments(["birds", word])
    with pytest.raises(lc.UserError, match="name 'x.csv'"):
        split_arguments(["birds", "table:x.csv"])
    with pytest.raises(lc.UserError, match="none of 'photos' is an adapter"):
        split_arguments(["photos"])
    with pytest.raises(lc.UserError, match="there is nothing to predict"):
        split_arguments(["birds"])
