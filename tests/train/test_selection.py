"""What a run trains on and holds out: by weights, limits and ids, from a cache, the backbone, or both."""

import csv
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import losa_cache as lc
from losa_cache.calibrate import fit_encoding
from losa_cache.cli import main
from losa_cache.data.samples import Samples
from losa_cache.extract.extract import extract
from losa_cache.inputs import open_inputs
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import NUMBERS, TargetSet
from losa_cache.tasks.classification import TASK
from losa_cache.train import loop
from losa_cache.train.batch import Request
from losa_cache.train.cached import CachedSource
from losa_cache.train.config import TrainConfig
from losa_cache.train.mixed import MixedSource
from losa_cache.train.online import OnlineSource
from losa_cache.train.placement import Placement
from losa_cache.train.training_data import open_training_data, selected
from tests.conftest import results, tiny_backbone, tiny_samples

CPU = torch.device("cpu")
POINTS = ["block.2", "block.4"]
OPTIONS = {"epochs": 2, "rank": 4, "lr": 0.01, "batch_size": 4, "device": "cpu"}
HELD = ["image-003", "image-017", "image-020"]


def skewed_samples(**options) -> Samples:
    """The tiny samples, 17 of the first class, 4 of the second and 2 of the third."""
    labels = np.array([0] * 17 + [1] * 4 + [2] * 2)
    return Samples(**{**vars(tiny_samples(**options)), "labels": labels})


@pytest.fixture
def skewed_cache(tmp_path):
    return extract(
        tiny_backbone(), skewed_samples(), precision="float32", out=tmp_path / "skewed.zarr", shard_bytes=13_000
    )


@pytest.fixture
def files(tmp_path):
    """Weights for all but the held-out samples, and the ids of these."""
    with open(tmp_path / "weights.csv", "w", newline="") as file:
        rows = [(name, at % 4) for at, name in enumerate(tiny_samples().ids) if name not in HELD]
        csv.writer(file).writerows([("id", "weight"), *rows])
    (tmp_path / "held.txt").write_text("\n".join(HELD))
    return {"sampling": str(tmp_path / "weights.csv"), "val_ids": str(tmp_path / "held.txt")}


def seen_ids(monkeypatch) -> list[list[str]]:
    """The ids of every batch that is trained on from now on."""
    seen = []
    for kind in (CachedSource, OnlineSource, MixedSource):

        def batches(self, requests, original=kind.batches):
            for request, batch in zip(requests, original(self, requests), strict=True):
                if request.epoch is not None and not isinstance(self, MixedSource):
                    seen.append(batch.ids)
                yield batch

        monkeypatch.setattr(kind, "batches", batches)
    return seen


ROADS = {
    "cached": lambda cache: {"cache": cache},
    "online": lambda cache: {"online": lc.OnlineConfig("tiny0", "tiny", precision="float32")},
    "mixed": lambda cache: {"cache": cache, "online": lc.OnlineConfig("tiny0", "tiny", share=0.5)},
}


def road(name, cache):
    """What a run takes, and what of it a resumed one must be given again."""
    loaded = {} if name == "cached" else {"backbone": tiny_backbone(), "dataset": skewed_samples()}
    return ROADS[name](cache) | loaded, loaded


@pytest.mark.parametrize("name", ROADS)
def test_balanced_runs_see_every_class_equally_often(skewed_cache, tmp_path, monkeypatch, name):
    seen, kinds = seen_ids(monkeypatch), dict(zip(skewed_samples().ids, skewed_samples().labels, strict=True))
    arguments, _ = road(name, skewed_cache)
    lc.train(**arguments, sampling="balanced", val_fraction=0, out=tmp_path / "run", **OPTIONS)
    drawn = [kinds[sample_id] for ids in seen for sample_id in ids][: 2 * 23]  # then one batch to check what it learned
    assert len(drawn) == 2 * 23
    assert set(np.bincount(drawn)) <= {14, 15, 16}  # 23 / 3 an epoch, rounded down or up


@pytest.mark.parametrize("name", ROADS)
def test_weights_and_ids_of_files_decide_what_is_trained_on_and_held_out(
    skewed_cache, tmp_path, monkeypatch, files, name
):
    seen = seen_ids(monkeypatch)
    arguments, loaded = road(name, skewed_cache)
    run = lc.train(**arguments, out=tmp_path / "run", **files, **OPTIONS)
    drawn = [sample_id for ids in seen for sample_id in ids]
    expected = {name: at % 4 for at, name in enumerate(tiny_samples().ids) if name not in HELD}
    assert len(drawn) == 2 * len(expected)
    for sample_id, weight in expected.items():
        share = weight / sum(expected.values())
        assert abs(drawn.count(sample_id) / 2 - len(expected) * share) < 1
    for path in files.values():
        Path(path).unlink()  # the run has its own
    own = lc.evaluate_run(run.run, device="cpu", **loaded)
    assert own["samples"] == 3
    assert own["loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-5)


def chosen(cache, **options):
    with open_training_data(cache, None, TrainConfig(**options), Placement(CPU)) as data:
        return [{cache.sample_ids[s] for s in part} for part in (data.chosen.train, data.chosen.held_out)]


def test_limits_are_nested_validated_on_the_same_images_and_the_same_in_every_cache(tmp_path):
    caches = [
        extract(tiny_backbone(), tiny_samples(), precision="float32", seed=seed, out=tmp_path / f"{seed}.zarr")
        for seed in (0, 1)
    ]
    assert caches[0].ids != caches[1].ids
    found = {
        limit: [chosen(cache, limit=limit, val_fraction=0.3) for cache in caches] for limit in (1, 5, 11, 99, None)
    }
    for first, second in found.values():
        assert first == second
    assert {len(parts[0][0]) for parts in found.values()} == {1, 5, 11, 16}
    assert found[1][0][0] < found[5][0][0] < found[11][0][0] < found[99][0][0] == found[None][0][0]
    assert all(parts[0][1] == found[None][0][1] for parts in found.values())
    assert chosen(caches[0], limit=5, seed=7, val_fraction=0.3) == found[5][0]


@pytest.mark.parametrize("augment", [None, "crop"])
def test_several_views_have_one_id_and_count_once(tmp_path, files, augment):
    views = {} if augment is None else {"views": 3, "augment": augment}
    samples = skewed_samples(bad=(5, 20))
    cache = extract(tiny_backbone(), samples, precision="float32", on_error="skip", out=tmp_path / "v.zarr", **views)
    train, held = chosen(cache, val_ids=files["val_ids"])
    assert held == {"image-003", "image-017"}
    assert train == set(samples.ids) - set(HELD) - {"image-005"}
    limited, same = chosen(cache, val_ids=files["val_ids"], limit=9, sampling="balanced")
    assert (len(limited), same) == (9, held)
    assert limited < train
    with open_training_data(
        cache, None, TrainConfig(sampling="balanced", val_ids=files["val_ids"]), Placement(CPU)
    ) as data:
        ids = [cache.sample_ids[sample] for sample in data.chosen.train]
        values = dict(zip(ids, data.chosen.weights.values, strict=True))
    kinds = dict(zip(samples.ids, samples.labels, strict=True))  # 15, 2 and 2 of the three are left to train on
    sizes = {0: 15, 1: 2, 2: 2}
    assert values == pytest.approx({name: 2 / sizes[kinds[name]] for name in ids})


def test_online_limits_are_of_the_training_samples_beside_those_of_the_samples_loaded(tmp_path, monkeypatch):
    seen = seen_ids(monkeypatch)
    online = lc.OnlineConfig("tiny0", "tiny", precision="float32", limit=20)
    for limit in (None, 6):
        run = lc.train(
            online=online, backbone=tiny_backbone(), dataset=tiny_samples(), limit=limit, val_fraction=0.25,
            out=tmp_path / f"run{limit}", **OPTIONS,
        )  # fmt: skip
        assert len({name for ids in seen for name in ids}) == (limit or 15)
        seen.clear()
        held = lc.evaluate_run(run.run, backbone=tiny_backbone(), dataset=tiny_samples(), device="cpu")
        assert held["samples"] == 5


def test_the_target_set_weight_weighs_as_a_file_does_and_the_run_keeps_it(tiny_cache, tmp_path):
    ids = tiny_cache.sample_ids
    weights = {name: float(place % 4) for place, name in enumerate(ids)}
    with open(tmp_path / "w.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "weight"), *weights.items()])
    with pytest.raises(lc.UserError, match="sampling is 'weight', and there is no target set of that name"):
        selected(tiny_cache, TrainConfig(sampling="weight"))
    values = np.array(list(weights.values()), np.float32)[:, None]
    add_targets(tiny_cache, TargetSet("weight", NUMBERS, ["kg"], values))
    cache = lc.open_cache(tiny_cache.path)
    by_file, by_set = (
        selected(cache, TrainConfig(sampling=own)).weights for own in (str(tmp_path / "w.csv"), "weight")
    )
    assert np.array_equal(by_file.values, by_set.values) and np.array_equal(by_file.labels, by_set.labels)
    lc.train(cache, sampling="weight", side="linear", out=tmp_path / "run", **OPTIONS)
    with open(tmp_path / "run/sampling.csv", newline="") as file:
        assert {name: float(weight) for name, weight in list(csv.reader(file))[1:]} == weights
    add_targets(cache, TargetSet("weight", NUMBERS, ["kg"], values - 2))
    with pytest.raises(lc.UserError, match="'weight', but the target set of that name is not a column of numbers of"):
        selected(lc.open_cache(cache.path), TrainConfig(sampling="weight"))


REFUSED = {
    "limit": ({"limit": 0}, "limit is 0: it must be at least 1"),
    "sampling": (
        {"sampling": "balance"},
        "sampling is 'balance', and there is no such file: choose shuffle, balanced, weight",
    ),
    "no ids": ({"val_ids": "nowhere.txt"}, "val-ids is 'nowhere.txt', a file that cannot be read"),
    "unknown id": ({"val_ids": "{}/strange.txt"}, r"val-ids names ids that are not there \(1, the first 'image-099'\)"),
    "lacking": ({"sampling": "{}/weights.csv"}, "gives no weight to 3 of the training samples, the first 'image-"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_choices_that_cannot_be_are_refused_before_a_directory_is_made(tiny_cache, tmp_path, files, case):
    (tmp_path / "strange.txt").write_text("image-001\nimage-099\n")
    options, message = REFUSED[case]
    options = {name: v.format(tmp_path) if isinstance(v, str) else v for name, v in options.items()}
    with pytest.raises(lc.UserError, match=message):
        lc.train(tiny_cache, val_fraction=0, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def plain(source, sample, view=0):
    (batch,) = source.batches([Request(np.array([sample]), view=view)])
    return [block[0].clone() for block in batch.blocks]


def test_a_batch_from_a_cache_holds_a_sample_as_often_as_it_was_drawn(tmp_path):
    cache = extract(
        tiny_backbone(), tiny_samples(), precision="float32", views=3, augment="crop", out=tmp_path / "v.zarr"
    )
    source = CachedSource(cache, POINTS, CPU)
    drawn = Request(np.array([7, 2, 7, 7, 7]), 1, repeats=np.array([0, 0, 1, 2, 3]))
    (batch,) = source.batches([drawn])
    assert batch.ids == [cache.sample_ids[sample] for sample in drawn.samples]
    assert batch.labels.tolist() == cache.labels[drawn.samples * 3].tolist()
    blocks = [block.clone() for block in batch.blocks]
    views = [plain(source, 7, view) for view in range(3)]
    (first,) = (view for view in range(3) if torch.equal(views[view][1], blocks[1][0]))
    for place, view in ((2, first + 1), (3, first + 2), (4, first)):
        assert all(torch.equal(block[place], want) for block, want in zip(blocks, views[view % 3], strict=True))
    source.close()


def online_source(**options):
    inputs = open_inputs(tiny_backbone(), tiny_samples(), precision="float32", device=CPU)
    encoding = fit_encoding(inputs, workers=2)
    return OnlineSource(inputs, POINTS, encoding, inputs.manifest.points, workers=2, **options)


def test_each_draw_of_a_fresh_image_is_augmented_anew_and_the_same_in_any_company():
    source = online_source(augment="crop")
    together = Request(np.array([7, 2, 7, 7]), 1, repeats=np.array([0, 0, 1, 2]))
    apart = [Request(np.array([7]), 1, repeats=np.array([n])) for n in range(3)] + [Request(np.array([7]), 1)]
    (batch, *single) = [block for b in source.batches([together, *apart]) for block in b.blocks[1:]]
    for place, alone in zip((0, 2, 3, 0), single, strict=True):
        torch.testing.assert_close(batch[place], alone[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(batch[0], batch[2], atol=1e-3)
    assert not torch.allclose(batch[2], batch[3], atol=1e-3)
    source.close()


def test_a_mixed_batch_may_hold_a_sample_fresh_and_cached(tiny_cache):
    fresh, cached = online_source(augment="crop"), CachedSource(tiny_cache, POINTS, CPU)
    source, alone = MixedSource(fresh, cached, 0.5, partial(TASK.soft, outputs=3)), online_source(augment="crop")
    sample = int(tiny_cache.samples[7])
    drawn = Request(np.array([sample, sample, sample, 2]), 1, repeats=np.array([0, 1, 2, 0]))
    (batch,) = source.batches([drawn])
    assert batch.ids == [tiny_cache.ids[s] for s in drawn.samples]
    (expected,) = alone.batches([Request(drawn.samples[:2], 1, repeats=drawn.repeats[:2])])
    for block, want in zip(batch.blocks, expected.blocks, strict=True):
        torch.testing.assert_close(block[:2], want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(batch.blocks[1][0], batch.blocks[1][1], atol=1e-3)
    for place in (2, 3):
        wanted = plain(cached, int(drawn.samples[place]))
        assert all(torch.equal(block[place], want) for block, want in zip(batch.blocks, wanted, strict=True))
    source.close()
    alone.close()


@pytest.mark.parametrize(
    ("name", "choice"),  # what was drawn is restored alike on every road, and every road goes on from what was drawn
    [("cached", "balanced"), ("cached", "weights"), ("cached", "limit"), ("online", "weights"), ("mixed", "limit")],
)
@pytest.mark.slow
def test_a_run_killed_at_any_batch_resumes_at_the_next(skewed_cache, tmp_path, monkeypatch, files, name, choice):
    given = {
        "balanced": {"sampling": "balanced", "val_fraction": 0.2},
        "weights": files,
        "limit": {"limit": 13, "sampling": "balanced", "val_ids": files["val_ids"]},
    }[choice]
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)  # five minutes have passed at every step
    arguments, loaded = road(name, skewed_cache)
    if "online" in arguments:
        arguments["online"] = replace(arguments["online"], mixup=0.2, reprob=0.25)
    whole = lc.train(**arguments, **given, out=tmp_path / "whole", **OPTIONS)
    saves, save = [], loop.Run.save_checkpoint

    def dying(run, state):
        save(run, state)
        saves.append((state["epoch"], state["passed"]["steps"]))
        if len(saves) in (3, 8):
            raise MemoryError("as if killed")

    monkeypatch.setattr(loop.Run, "save_checkpoint", dying)
    with pytest.raises(MemoryError):
        lc.train(**arguments, **given, out=tmp_path / "killed", **OPTIONS)
    assert saves[-1] == (0, 3)
    for path in files.values():
        Path(path).write_text("something else since")
    with pytest.raises(MemoryError):
        lc.resume(tmp_path / "killed", device="cpu", **loaded)
    resumed = lc.resume(tmp_path / "killed", device="cpu", **loaded)
    ours, theirs = whole.adapter.trained_state(), resumed.adapter.trained_state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert results(tmp_path / "whole") == results(tmp_path / "killed")


def test_a_run_directory_may_be_moved_and_says_what_it_read(skewed_cache, tmp_path, files):
    run = lc.train(skewed_cache, out=tmp_path / "run", **files, **OPTIONS).run
    options = json.loads((run / "config.json").read_text())["train"]
    assert (options["sampling"], options["val_ids"]) == ("sampling.csv", "val_ids.txt")
    assert (run / "sampling.csv").read_bytes() == (tmp_path / "weights.csv").read_bytes()
    run.rename(tmp_path / "moved")
    assert lc.evaluate_run(tmp_path / "moved", device="cpu")["samples"] == 3
    extract(tiny_backbone(), tiny_samples(9, split="test"), precision="float32", out=tmp_path / "test.zarr")
    tested = lc.evaluate_run(tmp_path / "moved", device="cpu")  # no id of the run's files is there
    assert (tested["split"], tested["samples"]) == ("test", 9)


ONLINE = ["--backbone", "vit_digits", "--dataset", "digits"]


@pytest.mark.parametrize(
    ("road", "loaded"),
    [
        (["--mixed", "0.5"], None),
        (["--online", "--online-limit", "60"], 60),
        pytest.param([], None, marks=pytest.mark.slow),
        pytest.param(["--online"], None, marks=pytest.mark.slow),
    ],
)
def test_the_command_lines_limit_is_of_the_training_samples_with_and_without_a_cache(
    digits, tmp_path, monkeypatch, road, loaded
):
    monkeypatch.chdir(tmp_path)
    where = [] if "--online" in road else ["--cache", str(digits["train"])]
    command = ["train", *road, *where, *(ONLINE if road else []), "--limit", "30", "--sampling", "balanced"]
    monkeypatch.setattr(sys, "argv", ["losa-cache", *command, "--epochs", "1", "--rank", "2", "--out", "run"])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (described["train"]["limit"], described["train"]["sampling"]) == (30, "balanced")
    assert (described["online"] or {"limit": None})["limit"] == loaded


def test_the_command_line_holds_out_the_ids_of_a_file_alone(tiny_cache, tmp_path, monkeypatch, files, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["losa-cache", "train", "--cache", str(tiny_cache.path), "--rank", "2", "--epochs", "1", "--out", "run"]
    monkeypatch.setattr(sys, "argv", [*command, "--sampling", files["sampling"], "--val-ids", files["val_ids"]])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert lc.evaluate_run("run", device="cpu")["samples"] == 3
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [*command, "--val-ids", files["val_ids"], "--val-fraction", "0.1"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    assert capsys.readouterr().err == "error: --val-ids says what is held out: leave out --val-fraction.\n"
