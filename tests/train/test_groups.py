"""``--group-by``: no group on both sides of a split, of a run's, of a search's and of the one by ids."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import losa_cache as lc
from losa_cache.sweep.engine.auto import split
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.space import Choices
from losa_cache.sweep.engine.sweep_data import SweepData
from losa_cache.targets.target_set import CLASS, LABELS, TargetSet
from losa_cache.train.config import TrainConfig
from losa_cache.train.evaluation_groups import groups_to_report
from losa_cache.train.groups import groups_by_id, hold_out_groups
from losa_cache.train.placement import Placement
from losa_cache.train.sampler import hold_out
from losa_cache.train.selection import select
from losa_cache.train.training_data import selected


def patient(name: str) -> str:
    """Eight patients, of which each has images of at least two of the three classes."""
    return f"patient-{int(name[-3:]) % 8}"


@pytest.fixture
def file(tiny_cache, tmp_path) -> Path:
    path = tmp_path / "patients.csv"
    lines = [f"{name},{patient(name)}\n" for name in tiny_cache.sample_ids]
    path.write_text("id,group\n" + "".join(lines) + "of-another-split,patient-99\n")
    return path


def patients(cache, samples):
    return {patient(cache.sample_ids[sample]) for sample in samples.tolist()}


def test_a_group_is_on_one_side_as_a_hash_of_its_name_has_it(tiny_cache, file):
    config = TrainConfig(group_by=str(file), val_fraction=0.25)
    chosen = selected(tiny_cache, config)
    names = [f"patient-{at}" for at in range(8)]
    _, expected = hold_out(np.arange(8), names, 0.25)
    assert patients(tiny_cache, chosen.held_out) == {names[at] for at in expected} and len(expected) == 2
    assert patients(tiny_cache, chosen.train) == set(names) - patients(tiny_cache, chosen.held_out)
    assert len(chosen.train) + len(chosen.held_out) == 23
    assert chosen.files["group_by"] == file.read_bytes()
    again = groups_by_id(tiny_cache.sample_ids[::-1], {own: patient(own) for own in tiny_cache.sample_ids})
    _, held = hold_out_groups(np.arange(23), again, 0.25)
    assert {22 - sample for sample in held.tolist()} == set(chosen.held_out.tolist())  # whatever the order


def test_splits_of_a_search_have_no_group_in_common(tiny_cache, file):
    splits = split(tiny_cache, TrainConfig(group_by=str(file), val_fraction=0.25))
    held = [patients(tiny_cache, own.held_out) for own in splits]
    assert len(held) == 4 and sum(map(len, held)) == len(set.union(*held)) == 8
    assert all(not patients(tiny_cache, own.train) & patients(tiny_cache, own.held_out) for own in splits)


def test_a_split_that_leaves_a_class_out_or_tears_a_group_is_refused(tiny_cache, file, tmp_path):
    lines = [f"{name},{int(name[-3:]) % 3}\n" for name in tiny_cache.sample_ids]  # a group a class
    (tmp_path / "classes.csv").write_text("id,group\n" + "".join(lines))
    config = TrainConfig(group_by=str(tmp_path / "classes.csv"), val_fraction=0.3)
    with pytest.raises(lc.UserError, match="the training part has no sample of class '[abc]'"):
        selected(tiny_cache, config)
    with pytest.raises(lc.UserError, match="val-fraction 0.1 of 3 groups leaves none"):
        selected(tiny_cache, replace(config, val_fraction=0.1))
    (tmp_path / "held.txt").write_text("image-003\n")
    with pytest.raises(lc.UserError, match="some of the samples of 1 groups, the first 'patient-3'"):
        selected(tiny_cache, TrainConfig(group_by=str(file), val_ids=str(tmp_path / "held.txt")))
    groups = TargetSet("site", CLASS, ["x", "y"], np.array([0, 1, 1, -1]))
    targets = TargetSet(LABELS, CLASS, ["a", "b"], np.array([0, 1, 0, 0]))
    ids, four = ["1", "2", "3", "4"], TrainConfig(group_by="site", val_fraction=0.5)
    with pytest.raises(lc.UserError, match="gives no group to 1 of the samples, the first '4'"):
        select(np.arange(4), ids, targets, four, groups=groups)
    with pytest.raises(lc.UserError, match="has no sample of class 'b'"):
        select(np.arange(3), ids, targets, four, groups=groups)
    config = SweepConfig(str(tiny_cache.path), {"rank": Choices((2,))}, TrainConfig(group_by=str(file), val_fraction=0))
    with pytest.raises(lc.UserError, match="both have samples of 8 groups, the first 'patient-0'"):
        SweepData(tiny_cache, replace(config, val_cache=str(tiny_cache.path)), Placement(torch.device("cpu")), trials=1)
    with pytest.raises(lc.UserError, match="group-by is 'side', which is neither a target set"):
        selected(tiny_cache, TrainConfig(group_by="side"))


def test_groups_that_a_test_cache_lacks_are_named_with_the_command_that_adds_them(
    tiny_cache, caplog, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()  # a folder of that name is no file of groups
    assert groups_to_report(None, "site", tiny_cache, tiny_cache.samples, tiny_cache.sample_ids) is None
    assert "the groups of the run are not known here, so the interval is over single samples" in caplog.text
    assert f"'site', which is neither a target set of '{tiny_cache.path}'" in caplog.text
    assert f"losa-cache targets {tiny_cache.path} --from FILE" in caplog.text


BAD_LINES = {
    "image-000": "has 1 cells, the heading 2",
    "image-000,": "an id and the name of its group",
    "image-001,x": "again",
}


@pytest.mark.parametrize("line, told", BAD_LINES.items())
def test_a_file_of_groups_is_read_strictly(tiny_cache, file, line, told):
    file.write_text(f"id,group\nimage-001,a\n{line}\n")
    with pytest.raises(lc.UserError, match=f"line 3 of .*{told}"):
        selected(tiny_cache, TrainConfig(group_by=str(file)))
