"""VTAB-1k from caches: the protocol against the same by hand, what a folder holds, and the paper's own means."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

import losa_cache as lc
from losa_cache.data.load import load_samples
from losa_cache.data.samples import Samples, hash_lines
from losa_cache.data.sources.vtab import BOTH, TASKS
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.sweep.engine.record import ProbeLine, ToBeat
from losa_cache.sweep.engine.results import load_record
from losa_cache.sweep.engine.space import Choices
from losa_cache.sweep.vtab.published import PUBLISHED
from losa_cache.sweep.vtab.record import (
    PAPER,
    PAPER_MEANS,
    LeftOut,
    Result,
    VtabRecord,
    by_task,
    means_of,
    paper_top1,
    unlike_paper,
)
from losa_cache.sweep.vtab.table import markdown, text
from losa_cache.sweep.vtab.tasks import find_tasks
from losa_cache.sweep.vtab.vtab import vtab
from losa_cache.train.config import TrainConfig
from tests.conftest import results, tiny_backbone
from tests.data.vtab_roots import LABELS, write_task

SPACE = {"lr": Choices((1e-4, 0.03, 0.1))}
CONFIG = TrainConfig(epochs=5, batch_size=8, head="last")


def grey(task: str, split: str, count: int) -> Samples:
    """Images in memory, each of its class's grey and some noise; of the thousand a fifth is of val200."""
    labels = np.arange(count) % 4
    noise = np.random.default_rng(len(split)).integers(0, 200, (count, 8, 8, 3))
    pixels = (noise + 15 * labels[:, None, None, None]).astype(np.uint8)
    parts = [split] * count
    if split == BOTH:
        parts = ["train800" if i < 0.8 * count else "val200" for i in range(count)]
    ids = [f"images/{part}/{i:06d}.jpg" for i, part in enumerate(parts)]
    fingerprint = hash_lines(ids)
    return Samples(f"vtab/{task}", split, tuple("0123"), ids, labels, lambda i: Image.fromarray(pixels[i]), fingerprint)


def store(samples: Samples, out: Path, **options) -> Path:
    return extract(options.pop("backbone", tiny_backbone()), samples, precision="float32", out=out, **options).path


@pytest.fixture
def caches(tmp_path) -> Path:
    """Both caches of a tiny task, which is none of the 19."""
    root = write_task(tmp_path / "vtab-1k" / "stripes")
    for split in ("train800val200", "test"):
        samples = load_samples("vtab", data_dir=root, split=split)
        store(samples, tmp_path / "caches" / "deeper" / f"{split}.zarr")
    return tmp_path / "caches"


def run(caches, out, **options):
    return vtab(caches, out=out, **{"ranks": (2,), "space": SPACE, "config": CONFIG, "device": "cpu"} | options)


def test_a_task_is_selected_on_val200_trained_on_all_and_tested(caches, tmp_path):
    record = run(caches, tmp_path / "out", ranks=(4, 2))
    train, test = (caches / "deeper" / f"{split}.zarr" for split in ("train800val200", "test"))
    (tmp_path / "val200.txt").write_text("\n".join(f"images/val200/{i:06d}.png" for i in LABELS["val200"]))
    assert [(result.task, result.rank) for result in record.results] == [("stripes", 2), ("stripes", 4)]
    for result in record.results:
        config = {"rank": result.rank, "epochs": 5, "batch_size": 8, "head": "last", "device": "cpu"}
        alone = {
            lr: lc.train(
                train, lr=lr, val_ids=str(tmp_path / "val200.txt"), out=tmp_path / f"{result.rank}-{lr}", **config
            )
            for lr in SPACE["lr"].values
        }
        tops = {lr: trained.metrics["val_top1"] for lr, trained in alone.items()}
        assert len(set(tops.values())) > 1
        own = load_record(Path(result.folder))
        level = [own.trials[number].options["lr"] for number in own.choice["level"]]
        assert max(tops, key=tops.get) in level
        losses = [np.load(path)[1].mean() for path in sorted(Path(result.folder).glob("trials/*/held_out.npy"))]
        best = min(level, key=lambda lr: losses[SPACE["lr"].values.index(lr)])
        whole = lc.train(train, lr=best, val_fraction=0.0, out=tmp_path / f"whole-{result.rank}", **config)
        assert results(whole.run)[-1] == pytest.approx(results(Path(result.folder) / "retrained")[-1])
        assert result.top1 == pytest.approx(lc.evaluate_run(whole.run, cache=test)["top1"])
        assert (result.chosen, result.val_top1) == ({"lr": best}, pytest.approx(tops[best]))
        assert (result.samples, result.parameters) == (len(LABELS["test"]), whole.parameters["side"])
    assert json.loads((tmp_path / "out" / "vtab.json").read_text()) == json.loads(json.dumps(record.to_json()))
    assert (tmp_path / "out" / "vtab.md").read_text() == markdown(record)
    probe = record.to_beat["stripes"]
    assert (tmp_path / "out" / "stripes-probe.json").exists()
    assert not list((tmp_path / "out").glob("*/probe.json"))  # ranks share the one
    for result in record.results:
        own = load_record(Path(result.folder)).to_beat
        assert own.lines == [replace(line, test_top1=None) for line in probe.lines]
    assert record.probed() == {f"probe, {line.reads}": {"stripes": line.test_top1} for line in probe.lines}
    assert "fitted again, with that strength, to all 20." in text(record)


@pytest.mark.slow
def test_test_labels_decide_nothing(caches, tmp_path):
    honest = run(caches, tmp_path / "honest")
    samples = load_samples("vtab", data_dir=tmp_path / "vtab-1k" / "stripes", split="test")
    shutil.copytree(caches, tmp_path / "relabelled", ignore=shutil.ignore_patterns("test.zarr*"))
    store(replace(samples, labels=(samples.labels + 1) % 3), tmp_path / "relabelled" / "deeper" / "test.zarr")
    wrong = run(tmp_path / "relabelled", tmp_path / "wrong")
    assert wrong.results[0].chosen == honest.results[0].chosen
    assert wrong.results[0].val_top1 == honest.results[0].val_top1
    assert wrong.results[0].top1 != honest.results[0].top1


@pytest.mark.slow
def test_test_images_are_read_once_the_choice_is_made_and_trained(caches, tmp_path):
    (shard,) = (caches / "deeper" / "test.zarr" / "activations" / "block").glob("c.*")
    shard.rename(tmp_path / "away")
    with pytest.raises(UserError):
        run(caches, tmp_path / "out")
    folder = tmp_path / "out" / "stripes-r2"
    assert len(list(folder.glob("trials/*/adapter/adapter.safetensors"))) == len(SPACE["lr"].values)
    assert (folder / "retrained" / "adapter/adapter.safetensors").exists()
    assert not list(folder.rglob("eval.json"))
    (tmp_path / "away").rename(shard)
    assert run(caches, tmp_path / "out", report=refuse).results[0].samples == len(LABELS["test"])


def refuse(task, rank, standing):
    raise AssertionError("what is finished is trained again")


@pytest.mark.slow
def test_stopped_it_goes_on_and_what_is_finished_is_read(caches, tmp_path):
    whole = run(caches, tmp_path / "whole", ranks=(2, 4))

    def stop(task, rank, standing):
        if (task, rank, standing.epochs_done) == ("stripes", 4, 2 * len(SPACE["lr"].values)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(caches, tmp_path / "out", ranks=(2, 4), report=stop)
    seen = []
    again = run(caches, tmp_path / "out", ranks=(2, 4), report=lambda *event: seen.append(event))
    assert [(task, rank, standing.epochs_done) for task, rank, standing in seen] == [
        ("stripes", 4, 3 * n) for n in (1, 2, 3)
    ]
    for ours, theirs in zip(again.results, whole.results, strict=True):
        assert (ours.chosen, ours.val_top1, ours.top1) == (theirs.chosen, theirs.val_top1, theirs.top1)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert run(caches, moved, ranks=(2, 4), report=refuse).results[1].top1 == again.results[1].top1
    with pytest.raises(UserError, match="stripes-r2' was made with other options"):
        run(caches, moved, config=TrainConfig(epochs=4, batch_size=8))
    store(
        load_samples("vtab", data_dir=tmp_path / "vtab-1k" / "stripes", split="test"),
        tmp_path / "other" / "test.zarr",
        seed=1,
    )
    (caches / "deeper" / "train800val200.zarr").rename(tmp_path / "other" / "train.zarr")
    with pytest.raises(UserError, match="holds sweeps of other caches of stripes"):
        run(tmp_path / "other", moved)


@pytest.mark.slow  # ten seconds of images of one known task's size
def test_a_task_of_the_nineteen_counts_at_its_full_size(tmp_path):
    store(grey("kitti", BOTH, 1000), tmp_path / "caches" / "train.zarr")
    store(grey("kitti", "test", 711), tmp_path / "caches" / "test.zarr")
    (tmp_path / "caches" / "loop").symlink_to(tmp_path / "caches")
    record = run(tmp_path / "caches", tmp_path / "out", config=TrainConfig(epochs=1), space={"lr": Choices((0.03,))})
    (result,) = record.results
    assert (result.samples, record.left_out) == (711, [])
    ids = (tmp_path / "out" / "kitti-val200.txt").read_text().split("\n")
    assert ids == [f"images/val200/{i:06d}.jpg" for i in range(800, 1000)]
    means = record.to_json()["means"]["2"]
    assert means["structured"] == {"value": result.top1, "count": 1, "full": 8}
    assert means["average"] == {"value": None, "count": 1, "full": 19}
    assert f"{result.top1:.1f} (1 of 8)" in text(record)


def two(folder: Path, task: str, *, ids=None, **options) -> None:
    """Both caches of a task, small ones; with other ids for training images, and other options for the test's."""
    train = grey(task, BOTH, 10)
    store(train if ids is None else Samples(**vars(train) | {"ids": ids}), folder / f"{task}.zarr")
    store(grey(task, "test", 4), folder / f"{task}-test.zarr", **options)


REASONS = {
    "cifar": "there are 10 images of train800val200 in its caches, and VTAB-1k has 1000",
    "dtd": "it has 2 caches of train800val200 (",
    "svhn": "it has no cache of train800val200: make one with losa-cache extract",
    "sun397": "its cache of test (",
    "backbone": "its caches do not belong together: they differ in backbone.name (",
    "layers": "its caches do not belong together: they differ in layers ([1, 2, 3] are not in that of test)",
    "shared": "1 images are in its cache of train800val200 and in that of test, such as 'images/test/000003.jpg'",
    "silent": "the ids of its cache of train800val200 do not say which images are of val200",
}


@pytest.mark.slow  # CI has a limit of time
def test_what_cannot_be_used_is_named_with_its_reason(tmp_path):
    folder = tmp_path / "caches"
    two(folder, "cifar")
    two(folder, "dtd")
    store(grey("dtd", BOTH, 10), folder / "again.zarr", seed=1)
    store(grey("svhn", "test", 4), folder / "svhn.zarr")
    two(folder, "sun397")
    group = zarr.open_group(folder / "sun397-test.zarr", mode="r+")
    group.attrs["losa_cache"] = dict(group.attrs["losa_cache"]) | {"complete": False}
    two(folder, "backbone", backbone=tiny_backbone(1))
    two(folder, "layers", layers=[4])
    two(folder, "shared", ids=["images/test/000003.jpg", *(f"images/val200/{i}.jpg" for i in range(9))])
    two(folder, "silent", ids=[f"{i}.jpg" for i in range(10)])
    (folder / "broken").mkdir()
    (folder / "broken" / "zarr.json").write_text("{}")
    tasks, left_out = find_tasks(folder)
    assert (tasks, [entry.task for entry in left_out]) == ([], [*REASONS, None])
    for entry in left_out[:-1]:
        assert entry.reason.startswith(REASONS[entry.task])
    with pytest.raises(UserError, match="no task of VTAB-1k below .* can be used .*cifar: .*; shared: .*a store: "):
        run(folder, tmp_path / "out")
    with pytest.raises(UserError, match="there is no folder"):
        run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    halves = [f"images/{part}/{i:06d}.jpg" for part in ("train800", "val200") for i in range(5)]
    two(folder, "fine", ids=halves)
    record = run(folder, tmp_path / "out", config=TrainConfig(epochs=1, batch_size=8))
    assert [result.task for result in record.results] == ["fine"]
    assert record.left_out == left_out
    assert "Left out: svhn: it has no cache of train800val200" in text(record)


def test_where_ids_do_not_say_the_list_does(tmp_path):
    root = write_task(tmp_path / "stripes")
    for split in ("train800", "val200", BOTH):
        (root / f"{split}.txt").unlink()
    names = [f"images/{part}/{i:06d}.png" for part in ("train800", "val200") for i in LABELS[part]]
    for i, name in enumerate(names):
        (root / name).rename(root / f"{i}.png")
    (root / "train800.txt").write_text("".join(f"{i}.png {i % 3}\n" for i in range(14)))
    (root / "val200.txt").write_text("".join(f"{i}.png {i % 3}\n" for i in range(14, 20)))
    for split in (BOTH, "test"):
        lc.extract("vit_digits", "vtab", split=split, data_dir=root, out=tmp_path / "caches" / f"{split}.zarr")
    ((task,), left_out) = find_tasks(tmp_path / "caches")
    assert (task.val_ids, left_out) == ([f"{i}.png" for i in range(14, 20)], [])
    (root / "val200.txt").unlink()
    tasks, (left_out,) = find_tasks(tmp_path / "caches")
    assert (tasks, left_out.reason.startswith(REASONS["silent"])) == ([], True)


def test_one_table_is_of_one_backbone(caches, tmp_path):
    store(grey("other", BOTH, 10), caches / "other.zarr", backbone=tiny_backbone(1))
    store(grey("other", "test", 4), caches / "other-test.zarr", backbone=tiny_backbone(1))
    with pytest.raises(UserError, match='do not belong in one table: they differ in backbone.name ."tiny1"'):
        run(caches, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ranks": ()}, "give at least one rank, and none in the space"),
        ({"space": {"rank": Choices((2, 4))}}, "give at least one rank, and none in the space"),
        ({"config": TrainConfig(limit=5)}, "limit is 5, but the protocol trains on all images"),
    ],
)
def test_options_that_are_not_the_protocol_are_refused(tmp_path, options, error):
    with pytest.raises(UserError, match=error):
        run(tmp_path, tmp_path / "out", **options)


@pytest.mark.parametrize("rank", PAPER)
def test_means_of_the_papers_figures_are_those_it_prints(rank):
    means = means_of(paper_top1(rank))
    for mean, printed in zip(means.values(), map(float, PAPER_MEANS[rank].split()), strict=True):
        assert mean.value == pytest.approx(printed, abs=0.0501)  # of figures that were rounded themselves
    assert [mean.count for mean in means.values()] == [7, 4, 8, 19]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.label)
def test_means_of_published_figures_are_those_that_the_paper_prints(row):
    for mean, printed in zip(means_of(by_task(row.tasks)).values(), map(float, row.means.split()), strict=True):
        assert mean.value == pytest.approx(printed, abs=0.11)  # LoRA's 74.60 is printed as 74.5


def test_figures_of_the_others_are_those_of_their_own_publications():
    """What abstracts say: of HST (arXiv 2310.05393v1) the mean over 19 tasks."""
    own = {row.label: row for row in PUBLISHED}
    assert np.mean(list(by_task(own["HST"].tasks).values())) == pytest.approx(76.0, abs=0.05)
    assert own["HST"].parameters == "0.78"


def test_means_are_over_the_tasks_that_are_there():
    top1 = {"cifar": 50.0, "svhn": 60.0, "eurosat": 90.0, "dmlab": 20.0, "kitti": 40.0, "stripes": 100.0}
    means = means_of(top1)
    assert [(mean.value, mean.count) for mean in means.values()] == [(55, 2), (90, 1), (30, 2), (175 / 3, 5)]
    del top1["eurosat"]
    assert means_of(top1)["average"].value is means_of(top1)["specialised"].value is None


def record_of(tasks, *, unlike=(), left_out=()) -> VtabRecord:
    found = [
        Result(task, rank, 10.0 * rank + at, 100, 50.0, {"lr": 0.01}, 1000 * rank, "")
        for rank in (2, 4)
        for at, task in enumerate(tasks)
    ]
    return VtabRecord({}, [2, 4], found, list(left_out), "How it was done.", list(unlike), "a machine")


def cells(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]


def test_the_table_has_the_papers_columns_and_its_rows_beside_ours():
    head, _, *rows = cells(markdown(record_of(TASKS)))
    titles = [task.title for task in TASKS.values()]
    assert head[1:14] == [*titles[:7], "natural", *titles[7:11], "specialised"]
    assert head[14:] == [*titles[11:], "structured", "average", "parameters"]
    others = [f"published: {row.label}" for row in PUBLISHED]
    assert [row[0] for row in rows] == ["r = 2", "r = 4", "paper, r = 4", *others]
    assert rows[1][1:8] == [f"{40 + at:.1f}" for at in range(7)]
    assert (rows[1][8], rows[1][-1]) == ("43.0", "4,000")
    assert [cell for at, cell in enumerate(rows[2]) if at not in (0, 8, 13, 22, 23, 24)] == PAPER[4].split()
    assert [rows[2][at] for at in (8, 13, 22, 23, 24)] == [*PAPER_MEANS[4].split(), "0.05 M"]
    noah = rows[-5]
    assert (noah[0], noah[1:4], noah[-2:]) == ("published: NOAH", ["69.6", "92.7", "70.2"], ["75.5", "0.36 M"])


def test_the_table_says_what_it_lacks_and_never_compares_what_differs():
    reasons = [LeftOut("svhn", "it has no cache of test"), LeftOut(None, "'x' is no cache")]
    record = record_of(["cifar", "stripes"], unlike=["its weights are random"], left_out=reasons)
    for shown in (markdown(record), text(record)):
        assert "10.0 (1 of 7)" not in shown
        assert "20.0 (1 of 7)" in shown
        assert "stripes (in no mean)" in shown
        assert "Missing, so in no mean: Caltech101, DTD, " in shown
        assert "Left out: svhn: it has no cache of test." in shown
        assert "Left out: a store: 'x' is no cache." in shown
        assert "are not comparable with these: its weights are random." in shown
    assert "not comparable" not in text(record_of(TASKS))
    assert max(map(len, text(record_of(TASKS)).split("\n\n")[0].splitlines())) < 100


def test_probes_are_rows_of_the_table_and_a_task_without_one_is_named():
    lines = [ProbeLine("last layer", "cls", 1.0, 50.0, 61.0), ProbeLine("all layers", "both", 1.0, 50.0, 62.5)]
    to_beat = {"cifar": ToBeat(lines, "How."), "dtd": ToBeat([], "There is no probe to beat: of one class.")}
    record = replace(record_of(["cifar", "dtd"]), to_beat=to_beat)
    _, _, *rows = cells(markdown(record))
    assert [row[0] for row in rows[:5]] == ["r = 2", "r = 4", "paper, r = 4", "probe, last layer", "probe, all layers"]
    assert rows[4][1:4] == ["62.5", "-", "-"]
    assert rows[4][8] == "62.5 (1 of 7)"
    assert "dtd: There is no probe to beat: of one class." in text(record)
    assert record.to_json()["means"]["probe, last layer"]["natural"] == {"value": 61.0, "count": 1, "full": 7}


def test_what_differs_from_the_papers_setting_is_said():
    image = {"size": [3, 224, 224], "crop_mode": "squash"}
    backbone = {"name": "vit_base_patch16_224.orig_in21k", "weights": "sha256:1"}
    fields = {"backbone": backbone, "input": image, "tap": "block", "layers": list(range(1, 13))}
    assert unlike_paper(fields, 12) == []
    changes = {
        "backbone": [{**backbone, "name": "vit_small"}, {**backbone, "weights": "random:sha256:1"}],
        "input": [{**image, "crop_mode": "center"}, {**image, "size": [3, 256, 256]}],
        "tap": ["mlp"],
        "layers": [[6, 12]],
    }
    for name, values in changes.items():
        for value in values:
            assert len(unlike_paper(fields | {name: value}, 12)) == 1
