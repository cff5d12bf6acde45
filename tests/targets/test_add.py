"""Target sets in a finished cache: added, replaced, removed, killed, damaged, forged."""

import json
import logging
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import zarr

from losa_cache.cache.inspect import inspect_cache
from losa_cache.cache.stage import stage_cache
from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from losa_cache.files import write_sealed
from losa_cache.targets.add import add_targets, remove_targets
from losa_cache.targets.from_table import Table
from losa_cache.targets.source import Source
from losa_cache.targets.target_set import CLASS, DEPTH, MASK, MULTILABEL, NUMBERS, TargetSet
from losa_cache.train.config import TrainConfig
from losa_cache.train.online_config import OnlineConfig
from losa_cache.train.placement import Placement
from losa_cache.train.training_data import open_training_data
from tests.conftest import losa_cache, tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.forked import Forked

N = 23
DRAW = np.random.default_rng(0)
SETS = {
    CLASS: TargetSet("kind-of", CLASS, ["u", "v"], DRAW.integers(0, 2, N)),
    MULTILABEL: TargetSet("several", MULTILABEL, ["p", "q", "r"], DRAW.integers(-1, 2, (N, 3)).astype(np.int8)),
    NUMBERS: TargetSet("count", NUMBERS, ["x"], DRAW.normal(size=(N, 1)).astype(np.float32)),
    MASK: TargetSet("mask", MASK, ["sky", "road"], DRAW.choice([0, 1, 255], (N, 8, 8)).astype(np.uint8)),
    DEPTH: TargetSet("far", DEPTH, ["depth"], DRAW.choice([0.5, 3, np.nan], (N, 8, 8)).astype(np.float32)),
}


def test_every_kind_is_read_back_by_us_and_by_zarr_alone_and_none_changes_the_cache(tiny_cache):
    before = contents(tiny_cache.path), contents(tiny_cache.receipts)
    for given in SETS.values():
        add_targets(tiny_cache, given)
    cache = open_cache(tiny_cache.path)
    assert cache.target_kinds == {"labels": CLASS} | {given.name: given.kind for given in SETS.values()}
    assert cache.manifest.identity == tiny_cache.manifest.identity
    assert json.loads((cache.path / "zarr.json").read_text())["attributes"]["losa_cache"]["protocol"] == 5
    for given in SETS.values():
        np.testing.assert_array_equal(zarr.open_array(cache.path / "targets" / given.name)[:], given.values)
        np.testing.assert_array_equal(cache.target_set(given.name).values, given.values)
        assert cache.target_set(given.name).fingerprint == given.fingerprint
        assert list(cache.target_set(given.name).names) == list(given.names)
    assert [(one["name"], one["kind"]) for one in inspect_cache(cache.path)["targets"]] == [
        (given.name, given.kind) for given in SETS.values()
    ]
    other = TargetSet("count", NUMBERS, ["y"], -SETS[NUMBERS].values)
    add_targets(str(cache.path), other)
    np.testing.assert_array_equal(open_cache(cache.path).target_set("count").values, other.values)
    for given in SETS.values():
        remove_targets(cache.path, given.name)
    assert (contents(tiny_cache.path), contents(tiny_cache.receipts)) == before  # byte for byte, protocol 4 again
    assert not (tiny_cache.path / "targets").exists()


@dataclass(frozen=True)
class Counts(Source):
    """A number for each id, as a data set may bring it."""

    counts: tuple[int, ...]

    def values(self, places, frames, progress):
        return ["n"], np.array(self.counts, np.float32)[places][:, None]


def test_targets_that_come_with_the_data_follow_it_into_new_and_finished_caches(tiny_cache, tmp_path, caplog):
    def made(counts, **more):
        source = Counts(tmp_path / "t.csv", NUMBERS, [*samples.ids, "another"], (*counts, 99))
        named = replace(samples, targets={"count": source})
        return extract(tiny_backbone(), named, precision="float32", shard_bytes=13_000, **more)

    samples = tiny_samples()
    by_id = dict(zip(samples.ids, range(N), strict=True))
    for cache in (made(range(N), limit=9, out=tmp_path / "new.zarr"), made(range(N), out=tiny_cache.path)):
        assert cache.target_set("count").values[:, 0].tolist() == [by_id[name] for name in cache.sample_ids]
    assert cache.manifest.identity == tiny_cache.manifest.identity
    assert cache.shard_sizes() == tiny_cache.shard_sizes()
    before = contents(cache.path)
    made(range(N), out=tiny_cache.path)
    assert contents(cache.path) == before
    assert not [said for said in caplog.records if said.levelno >= logging.WARNING]
    changed = made(range(1, N + 1), out=tiny_cache.path).target_set("count").values[:, 0]
    assert changed.tolist() == [by_id[name] + 1 for name in cache.sample_ids]
    assert "'count'" in caplog.text
    assert "replaced" in caplog.text
    with pytest.raises(UserError, match="cannot have a target set 'labels'"):
        replace(samples, targets={"labels": Counts(tmp_path, NUMBERS, samples.ids, tuple(range(N)))})


def test_an_online_run_learns_groups_and_weighs_by_what_comes_with_its_images(tmp_path):
    samples, places = tiny_samples(), np.arange(N)
    given = {
        "size": Table(tmp_path, NUMBERS, samples.ids, ["cm"], places[:, None].astype(np.float32)),
        "site": Table(tmp_path, CLASS, samples.ids, ["p", "q", "r", "s"], places % 4),
        "weight": Table(tmp_path, NUMBERS, samples.ids, ["w"], (places % 2)[:, None].astype(np.float32)),
    }
    options = {"backbone": tiny_backbone(), "dataset": replace(samples, targets=given)}
    config = TrainConfig(task="regression", targets="size", group_by="site", val_fraction=0.3, sampling="weight")
    online, placement = OnlineConfig("tiny0", "tiny", precision="float32"), Placement(torch.device("cpu"))
    with open_training_data(None, online, config, placement, **options) as data:
        number = [int(name[-3:]) for name in samples.ids]
        assert sorted(data.targets.values[:, 0].tolist()) == number
        parts = (data.chosen.train, data.chosen.held_out)
        train, held_out = ({int(data.targets.values[own, 0]) for own in part} for part in parts)
        assert train | held_out == set(range(N)) and len(held_out) > 2
        assert not {own % 4 for own in train} & {own % 4 for own in held_out}
        assert data.chosen.weights.values.tolist() == [data.targets.values[own, 0] % 2 for own in data.chosen.train]
    with pytest.raises(UserError, match="'tiny' has no target set 'sizes': choose one of labels, .*; nearest: size"):
        open_training_data(None, online, replace(config, targets="sizes"), placement, **options)


KILLER = """
import os, shutil, signal, sys
import numpy as np
from losa_cache.targets.add import add_targets, remove_targets
from losa_cache.targets.target_set import MULTILABEL, TargetSet

FILES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
folder, every = sys.argv[1], int(sys.argv[2])
os.fsync = lambda handle: None  # a killed process loses nothing by it

def changed(path, at):
    count = 0
    def step(event, values):
        nonlocal count
        if event in FILES and path in str(values[0]):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(step)
    add_targets(path, TargetSet("several", MULTILABEL, ["p"], np.ones((23, 1), np.int8)))
    remove_targets(path, "kind-of")
    os._exit(7)

at, killed = 1, True
while killed:
    for name in ("tiny.zarr", "tiny.zarr.receipts"):
        shutil.copytree(f"{folder}/{name}", f"{folder}/{at}/{name}")
    if not (pid := os.fork()):
        changed(f"{folder}/{at}/tiny.zarr", at)
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status)
    assert killed or os.WEXITSTATUS(status) == 7, status
    at += every
"""


@pytest.mark.parametrize("every", [101, pytest.param(3, marks=pytest.mark.slow)])
def test_a_change_killed_at_any_step_is_mended_and_done_by_the_next(tiny_cache, tmp_path, every):
    """Replacing one set and removing another, killed at every so many steps on the file system."""
    for kind in (CLASS, MULTILABEL):
        add_targets(tiny_cache, SETS[kind])
    done = Forked("-c", KILLER, str(tmp_path), str(every)).wait()
    assert done.returncode == 0, done.stderr
    folders = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert len(folders) > 5
    ends = []
    for at in folders:
        path = tmp_path / str(at) / "tiny.zarr"
        try:
            found = open_cache(path).target_set("several")
            assert len(found.names) in (1, 3)  # as before, or as after: never a mixture
        except UserError as error:
            assert "verify --repair mends it" in str(error)
        if at % 5 == 0:
            assert verify_cache(path, repair=True)["intact"]
        add_targets(path, TargetSet("several", MULTILABEL, ["p"], np.ones((N, 1), np.int8)))
        if "kind-of" in open_cache(path).target_kinds:
            remove_targets(path, "kind-of")
        ends.append((contents(path), contents(path.with_name("tiny.zarr.receipts"))))
    assert all(end == ends[-1] for end in ends)  # the last one was not killed
    assert open_cache(path).labels.tolist() == tiny_cache.labels.tolist()


def test_a_damaged_array_is_found_named_and_mended(tiny_cache):
    add_targets(tiny_cache, SETS[MASK])
    chunk = tiny_cache.path / "targets/mask/c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    shard = tiny_cache.shard_path(1)
    shard.write_bytes(shard.read_bytes()[:50] + b"?" + shard.read_bytes()[51:])
    with pytest.raises(UserError, match="targets/mask/c/0/0/0 differs .* verify --repair mends it"):
        open_cache(tiny_cache.path).target_set("mask")
    assert verify_cache(tiny_cache.path)["damaged"]["files"] == ["targets/mask/c/0/0/0"]
    mended = verify_cache(tiny_cache.path, repair=True, backbone=tiny_backbone(), dataset=tiny_samples())
    assert (mended["repaired"], mended["intact"]) == (True, True)
    np.testing.assert_array_equal(open_cache(tiny_cache.path).target_set("mask").values, SETS[MASK].values)


def test_a_staged_copy_follows(tiny_cache, tmp_path):
    near = tmp_path / "near"
    before = stage_cache(tiny_cache, near)
    shards = {path.name: path.stat().st_ino for path in before.path.glob("activations/block/c.*")}
    add_targets(tiny_cache, SETS[NUMBERS])
    copied = stage_cache(open_cache(tiny_cache.path), near)
    assert contents(copied.path) == contents(tiny_cache.path)
    assert contents(copied.receipts) == contents(tiny_cache.receipts)
    assert {path.name: path.stat().st_ino for path in copied.path.glob("activations/block/c.*")} == shards
    remove_targets(tiny_cache, "count")
    assert contents(stage_cache(open_cache(tiny_cache.path), near).path) == contents(tiny_cache.path)


def forged(cache, change):
    """Change attributes or arrays, and have the receipts agree."""
    change(cache.path)
    receipts = cache.receipts / "core"
    listed = json.loads((receipts / "files.json").read_text())["files"]
    for name in listed:
        shutil.copy(cache.path / name, receipts / name)
    import hashlib

    digests = {name: hashlib.sha256((cache.path / name).read_bytes()).hexdigest() for name in listed}
    write_sealed(receipts / "files.json", {"files": digests})


def declared(**fields):
    """Declare other things of the numbers, or of the whole cache."""

    def change(path):
        content = json.loads((path / "zarr.json").read_text())
        own = content["attributes"]["losa_cache"]
        for key, value in fields.items():
            (own if key in own else own["targets"]["count"])[key] = value
        (path / "zarr.json").write_text(json.dumps(content))

    return change


def shaped(shape, chunks):
    def change(path):
        content = json.loads((path / "targets/count/zarr.json").read_text())
        content["shape"], content["chunk_grid"]["configuration"]["chunk_shape"] = shape, chunks
        (path / "targets/count/zarr.json").write_text(json.dumps(content))

    return change


def holding(values):
    def change(path):
        group = zarr.open_group(str(path), mode="r+")
        del group["targets/count"]
        codecs = [zarr.codecs.ZstdCodec(level=3), zarr.codecs.Crc32cCodec()]
        group.create_array("targets/count", data=values, chunks=values.shape, compressors=codecs)

    return change


ENTRY = {"kind": "numbers", "names": ["x"], "fingerprint": "sha256:" + "0" * 64}
HOSTILE = {
    "another kind": declared(kind="depth"),
    "an unknown kind": declared(kind="boxes"),
    "names that are none": declared(names="x"),
    "no names": declared(names=[]),
    "more names": declared(names=["x", "y"]),
    "a name twice": declared(names=["x", "x"]),
    "another fingerprint": declared(fingerprint=ENTRY["fingerprint"]),
    "a fingerprint that is none": declared(fingerprint="sha1:0"),
    "a path": declared(targets={"../../labels": ENTRY}),
    "its own labels": declared(targets={"labels": ENTRY}),
    "a list": declared(targets=[ENTRY]),
    "none, of protocol 5": declared(targets={}),
    "protocol 4": declared(protocol=4),
    "1e15 rows": shaped([10**15, 1], [23, 1]),
    "1e15 rows in one file": shaped([10**15, 1], [10**15, 1]),
    "fewer rows": shaped([22, 1], [23, 1]),
    "three dimensions": shaped([23, 1, 1], [23, 1, 1]),
    "a number that is none": holding(np.full((N, 1), np.nan, np.float32)),
    "numbers of another type": holding(np.ones((N, 1))),
    "other numbers": holding(np.ones((N, 1), np.float32)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_forged_cache_declares_is_one_sentence(tiny_cache, case):
    add_targets(tiny_cache, SETS[NUMBERS])
    forged(tiny_cache, HOSTILE[case])
    with pytest.raises(UserError) as told:
        open_cache(tiny_cache.path).target_set("count")
    assert len(str(told.value)) < 700


UNSOUND = {
    "a class beyond the names": (replace(SETS[CLASS], values=np.full(N, 2)), "from 2 to 2, and may go from -1 to 1"),
    "a mark": (replace(SETS[MULTILABEL], values=np.full((N, 3), 2, np.int8)), "may go from -1 to 1"),
    "NaN": (replace(SETS[NUMBERS], values=np.full((N, 1), np.nan, np.float32)), "a number is not finite"),
    "a class of masks": (replace(SETS[MASK], values=np.full((N, 8, 8), 2, np.uint8)), "may go from 0 to 1"),
    "a depth of 0": (replace(SETS[DEPTH], values=np.zeros((N, 8, 8), np.float32)), "not above 0 and finite"),
    "masks of another size": (
        replace(SETS[MASK], values=np.zeros((N, 9, 8), np.uint8)),
        r"\(9, 8\) pixels, .* \(8, 8\)",
    ),
    "another count": (replace(SETS[CLASS], values=np.zeros(N + 1, np.int64)), "for 23 samples"),
    "another type": (replace(SETS[CLASS], values=np.zeros(N)), "values are float64"),
    "a name": (replace(SETS[CLASS], name="../x"), "no name of a target set"),
    "its own labels": (replace(SETS[CLASS], name="labels"), "the name of the cache's own labels"),
    "a kind": (replace(SETS[CLASS], kind="boxes"), "its kind is 'boxes'"),
    "256 classes": (replace(SETS[MASK], names=list(map(str, range(256)))), "a mask has 256 classes, and at most 255"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_unsound_targets_are_refused_and_nothing_is_written(tiny_cache, case):
    before = contents(tiny_cache.path)
    targets, words = UNSOUND[case]
    with pytest.raises(UserError, match=words):
        add_targets(tiny_cache, targets)
    assert contents(tiny_cache.path) == before


def test_what_cannot_be_changed_is_one_sentence(tiny_cache, tmp_path):
    with pytest.raises(UserError, match="no target set 'count' that can be removed: there is none"):
        remove_targets(tiny_cache, "count")
    with pytest.raises(UserError, match="no target set 'lables': choose one of labels; nearest: labels"):
        tiny_cache.target_set("lables")
    with pytest.raises(UserError, match="there is no cache at"):
        add_targets(tmp_path / "gone.zarr", SETS[CLASS])
    assert not (tmp_path / "gone.zarr.receipts").exists()
    with tiny_cache.path.lock(), pytest.raises(UserError, match="is writing"):
        add_targets(tiny_cache, SETS[CLASS])
    shutil.copytree(tiny_cache.path, tmp_path / "alone.zarr")
    with pytest.raises(UserError, match="has no receipts, .*copy '.*alone.zarr.receipts' with it"):
        add_targets(tmp_path / "alone.zarr", SETS[CLASS])


def test_the_verb_adds_lists_and_removes_and_refuses_before_torch(tiny_cache, tmp_path):
    table = "id,n,species\n" + "".join(
        f"{name},{place},x{place % 3}\n" for place, name in enumerate(tiny_cache.sample_ids)
    )
    (tmp_path / "t.csv").write_text(table)
    words = ["targets", str(tiny_cache.path), "--from", str(tmp_path / "t.csv")]
    refused = losa_cache(*words, "--columns", "n")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "may be classes or numbers: pass --task classification" in refused.stderr
    added = losa_cache(*words, "--columns", "n", "--task", "regression", "--name", "age", "--json")
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["targets"][1] == {"name": "age", "kind": "numbers", "names": ["n"]}
    assert losa_cache(*words, "--columns", "species").returncode == 0
    cache = open_cache(tiny_cache.path)
    assert cache.target_set("age").values[:, 0].tolist() == list(range(N))
    assert cache.target_set("t").values.tolist() == [place % 3 for place in range(N)]
    assert losa_cache("targets", str(cache.path), "--remove", "age").returncode == 0
    assert list(open_cache(cache.path).target_kinds) == ["labels", "t"]
    both = losa_cache(*words, "--remove", "t")
    assert "leave out --from" in both.stderr
    quick = Forked(
        "-c",
        "import sys; sys.modules['torch'] = None\n"  # importing it fails
        "from losa_cache.__main__ import main; main()",
        *words,
        "--task",
        "regression",
    ).wait()
    assert quick.returncode == 2
    assert "holds 'x0' for" in quick.stderr
