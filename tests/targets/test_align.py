"""Test data that list their classes in another order, or list others: names decide, never positions."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import losa_cache as lc
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.probe.probe import probe
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.space import Choices
from losa_cache.sweep.engine.sweep_data import SweepData
from losa_cache.targets.align import aligned, unmatched
from losa_cache.targets.target_set import CLASS, DEPTH, IGNORED, MASK, MULTILABEL, NUMBERS, UNKNOWN, TargetSet
from losa_cache.train.config import TrainConfig
from losa_cache.train.placement import Placement
from losa_cache.train.sampler import requests_in_order
from tests.conftest import tiny_backbone, tiny_samples

OURS = ["cat", "dog", "elk"]
CASES = {
    CLASS: (["elk", "cat"], np.array([0, 1, UNKNOWN, 1]), [2, 0, UNKNOWN, 0]),
    MULTILABEL: (["elk", "cat"], np.array([[1, 0], [UNKNOWN, 1]], np.int8), [[0, UNKNOWN, 1], [1, UNKNOWN, UNKNOWN]]),
    NUMBERS: (["dog", "elk", "cat"], np.array([[1, 2, 3]], np.float32), [[3, 1, 2]]),
    MASK: (["elk", "cat"], np.array([[[0, 1], [IGNORED, 1]]], np.uint8), [[[2, 0], [IGNORED, 0]]]),
}


@pytest.mark.parametrize("kind", CASES)
def test_values_follow_their_names(kind):
    names, values, expected = CASES[kind]
    found = aligned(TargetSet("t", kind, names, values), OURS, "test.zarr")
    assert (found.values.tolist(), found.values.dtype, list(found.names)) == (expected, values.dtype, OURS)
    with pytest.raises(UserError, match=r"'t' of test.zarr cannot judge the run: the run knows no 'cat'"):
        aligned(TargetSet("t", kind, names, values), ["elk", "dog"], "test.zarr")


def test_a_column_of_numbers_must_be_there_and_depth_has_no_names_to_match():
    given = TargetSet("t", NUMBERS, ["cat"], np.ones((2, 1), np.float32))
    with pytest.raises(UserError, match="the other has no 'dog', 'elk'"):
        aligned(given, OURS, "x")
    depth = TargetSet("d", DEPTH, ["depth"], np.ones((1, 2, 2), np.float32))
    assert aligned(depth, ["depth"], "x") is depth


def test_numbers_in_place_of_names_are_said_to_be_such():
    hint = "numbers in place of names: .* classnames.txt"
    assert re.search(hint, unmatched(CLASS, OURS, ["0", "1"]))
    assert not re.search(hint, unmatched(CLASS, ["0", "1"], ["0", "2"]) + unmatched(CLASS, OURS, ["0", "fox"]))


def reversed_test():
    """The test images twice: classes in the order of the run, and backwards, with the same names for each image."""
    plain = tiny_samples(40, split="test")
    return plain, replace(plain, classes=plain.classes[::-1], labels=2 - plain.labels, fingerprint="sha256:other")


def test_a_run_and_a_sweep_judge_the_same_images_alike_whatever_the_order_of_their_classes(tiny_cache, tmp_path):
    run = lc.train(tiny_cache, rank=2, epochs=2, out=tmp_path / "run", device="cpu").run
    plain, backwards = (
        extract(tiny_backbone(), samples, precision="float32", out=tmp_path / f"{number}.zarr")
        for number, samples in enumerate(reversed_test())
    )
    figures = [lc.evaluate_run(run, cache=cache.path, device="cpu") for cache in (plain, backwards)]
    assert {name: value for name, value in figures[0].items() if name != "on"} == {
        name: value for name, value in figures[1].items() if name != "on"
    }
    base, chosen = TrainConfig(rank=2, epochs=1), []
    for number, cache in enumerate((plain, backwards)):
        caches = {"cache": str(tiny_cache.path), "val_cache": str(cache.path)}
        config = SweepConfig(space={"rank": Choices([2])}, base=base, **caches)
        data = SweepData(tiny_cache, config, Placement(torch.device("cpu")), trials=1)
        held_out = data.of(base)
        requests = requests_in_order(held_out.chosen.held_out, 64)
        (batch,) = held_out.plain.batches(list(requests))
        by_id = dict(zip(batch.ids, batch.labels.tolist(), strict=True))
        chosen.append((by_id, [line.held_out_top1 for line in data.to_beat(tmp_path / f"{number}.json").lines]))
        data.close()
    assert chosen[0] == chosen[1]
    assert chosen[0][0] == dict(zip(reversed_test()[0].ids, reversed_test()[0].labels.tolist(), strict=True))


def test_eval_names_the_test_cache_that_it_passes_over(tmp_path, caplog):
    for number, place in enumerate(["train/cat", "train/elk"] * 4 + ["test/cat", "test/dog"]):
        (tmp_path / "set" / place).mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), number).save(tmp_path / "set" / place / f"{number}.png")
    own = {"backbone": "vit_digits", "dataset": "folder", "data_dir": str(tmp_path / "set"), "device": "cpu"}
    train, test = (lc.extract(**own, split=split, out=tmp_path / f"{split}.zarr") for split in ("train", "test"))
    run = lc.train(train, rank=1, epochs=1, val_fraction=0.5, head="last", out=tmp_path / "run", device="cpu").run
    assert lc.evaluate_run(run, device="cpu")["split"] == "held out of training"
    said = f"cache {str(test.path)!r} was not used, since it differs in classes (the run knows no 'dog')"
    assert said in caplog.text


@pytest.mark.slow
def test_a_probe_does_so_too(tiny_cache, tmp_path):
    tops = []
    for number, samples in enumerate(reversed_test()):
        test = extract(tiny_backbone(), samples, precision="float32", out=tmp_path / f"{number}.zarr")
        found = probe(tiny_cache, test=test, out=tmp_path / f"p{number}", device="cpu")
        tops.append([line.test_top1 for line in found.record.lines])
    assert tops[0] == tops[1]
