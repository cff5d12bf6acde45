"""Caches from outside: whatever their metadata declares, they give their own numbers or one sentence."""

import json
import os
import random
import shutil
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from losa_cache.cache.identity import identity_hash
from losa_cache.cache.inspect import inspect_cache, list_caches
from losa_cache.cache.metadata_files import LIST
from losa_cache.cache.reader import BlockReader
from losa_cache.cache.stage import stage_cache
from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from losa_cache.files import write_sealed
from losa_cache.train.train import train
from losa_cache.train.training_data import frozen_tail
from tests.conftest import tiny_backbone, tiny_samples

FLIPS = 150
OPTIONS = {"precision": "int8", "shard_bytes": 4_000, "on_error": "skip"}
SAMPLES = tiny_samples(bad=(2,))


@dataclass(frozen=True)
class Read:
    """All that is read of a cache, in bytes."""

    labels: list[int]
    ids: list[str]
    values: bytes
    features: bytes


def read(path: Path) -> Read:
    cache = open_cache(path)
    encoding, rows = cache.encoding(), np.flatnonzero(cache.labels >= 0)
    reader = BlockReader(cache, cache.manifest.points)
    shape = (len(rows), cache.layout.tokens, cache.layout.columns)
    stored = [torch.empty(shape, dtype=cache.precision.stored_dtype) for _ in reader.positions]
    try:
        reader.read(rows, stored)
    finally:
        reader.close()
    values = torch.stack(encoding.decode(stored)).float()
    features = frozen_tail(cache)(values[-1])
    return Read(cache.labels.tolist(), cache.ids, values.numpy().tobytes(), features.numpy().tobytes())


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "c.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSA_CACHE_HOME", str(path.with_name("home")))
        return extract(tiny_backbone(), SAMPLES, out=path, **OPTIONS).path


@pytest.fixture(scope="module")
def right(original):
    return read(original)


@pytest.fixture(params=["with receipts", "without receipts"])
def store(request, original, tmp_path):
    """A copy of its own, with and without what would tell that it was changed."""
    path = tmp_path / "c.zarr"
    shutil.copytree(original, path)
    if request.param == "with receipts":
        shutil.copytree(original.with_name("c.zarr.receipts"), tmp_path / "c.zarr.receipts")
    return path


@pytest.fixture(params=["rewritten receipts", "without receipts"])
def forged(request, original, tmp_path):
    """A copy, and a function that makes its receipts agree with whatever it holds now."""
    path, receipts = tmp_path / "c.zarr", tmp_path / "c.zarr.receipts"
    shutil.copytree(original, path)
    if request.param == "without receipts":
        return path, lambda: None
    shutil.copytree(original.with_name("c.zarr.receipts"), receipts)

    def agree():
        from hashlib import sha256

        listed = json.loads((receipts / "core" / LIST).read_text())["files"]
        for name in listed:
            shutil.copy(path / name, receipts / "core" / name)
        digests = {name: sha256((path / name).read_bytes()).hexdigest() for name in listed}
        write_sealed(receipts / "core" / LIST, {"files": digests})

    return path, agree


@contextmanager
def no_longer_than(seconds):
    """Turn a wait without end into a failure."""

    def fail(*_):
        raise AssertionError(f"it waited for {seconds} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_changed_letters_of_metadata_change_no_number(store, right):
    metadata = sorted(file for file in store.rglob("zarr.json"))
    pick, sentences = random.Random(7), 0
    for number in range(FLIPS):
        file = metadata[number % len(metadata)]
        good = file.read_bytes()
        at = pick.randrange(len(good))
        letter = (
            bytes([good[at] ^ 1 << pick.randrange(8)]) if number % 2 else pick.choice(b'019-"{}[],:ae .').to_bytes()
        )
        file.write_bytes(good[:at] + letter + good[at + 1 :])
        try:
            assert read(store) == right, (file, at, letter)
        except UserError:
            sentences += 1
        file.write_bytes(good)
    assert sentences > FLIPS / 3
    assert read(store) == right


def attributes(*keys, to):
    """Set one value of the attributes."""

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


HOSTILE = {
    "no fields": attributes("fields", to=None),
    "a list of fields": attributes("fields", to=[1]),
    "layers twice": attributes("fields", "layers", to=[1, 2, 2, 4]),
    "layers unordered": attributes("fields", "layers", to=[2, 1, 3, 4]),
    "layers beyond the depth": attributes("fields", "layers", to=[1, 2, 3, 5]),
    "layers of another end": attributes("fields", "layers", to=[1, 2, 3]),
    "many layers": attributes("fields", "layers", to=list(range(1, 1000))),
    "negative layers": attributes("fields", "layers", to=[-1, 2, 3, 4]),
    "a layer that is true": attributes("fields", "layers", to=[True, 2, 3, 4]),
    "embedding": attributes("fields", "embedding", to=True),
    "tap both": attributes("fields", "tap", to="both"),
    "tap of a list": attributes("fields", "tap", to=["block"]),
    "precision": attributes("fields", "precision", to="float32"),
    "unknown precision": attributes("fields", "precision", to="int9"),
    "precision of a number": attributes("fields", "precision", to=8),
    "views": attributes("fields", "views", "count", to=2),
    "views of a sentence": attributes("fields", "views", "count", to="one"),
    "enormous views": attributes("fields", "views", "count", to=10**15),
    "clips": attributes("fields", "views", "clips", to=7),
    "seed": attributes("fields", "sampling", "seed", to=-1),
    "data set": attributes("fields", "dataset", to={"name": 5}),
    "split": attributes("fields", "dataset", "split", to=None),
    "input": attributes("fields", "input", "size", to=[3, -8, 8]),
    "mean": attributes("fields", "input", "mean", to=[float("nan")] * 3),
    "std": attributes("fields", "input", "std", to=[0, 0, 0]),
    "crop": attributes("fields", "input", "crop_pct", to=float("inf")),
    "tokens": attributes("tokens", "total", to=6),
    "pooled rows": attributes("fields", "tokens", to="pooled"),
    "rows of another kind": attributes("fields", "tokens", to=["all"]),
    "prefix": attributes("tokens", "prefix", to=-1),
    "grid": attributes("tokens", "grid", to=[2, 2, 2]),
    "enormous grid": attributes("tokens", "grid", to=[2**40, 2**40]),
    "negative grid": attributes("tokens", "grid", to=[-2, -2]),
    "width": attributes("width", to=33),
    "width that is true": attributes("width", to=True),
    "width of a fraction": attributes("width", to=32.5),
    "enormous width": attributes("width", to=10**18),
    "depth": attributes("depth", to=3),
    "no classes": attributes("classes", to=[]),
    "fewer classes": attributes("classes", to=["a", "b"]),
    "classes of numbers": attributes("classes", to=[1, 2, 3]),
    "classes of letters": attributes("classes", to="abc"),
    "tail": attributes("tail", to={}),
    "pool": attributes("tail", "pool", to="sum"),
    "pool map": attributes("tail", "pool", to="map"),
    "class tokens": attributes("tail", "class_tokens", to=2),
    "tail's width": attributes("tail", "width", to=64),
    "norm": attributes("tail", "norm", "type", to="batchnorm"),
    "norm without config": attributes("tail", "norm", to={"type": "layernorm"}),
    "eps": attributes("tail", "norm", "eps", to="small"),
    "eps that is not a number": attributes("tail", "norm", "eps", to=float("nan")),
    "no norm": attributes("tail", "norm", to={"type": "identity"}),
    "attention of everything": lambda content: content["tail"].update(
        pool="map",
        map={
            "heads": 1,
            "latents": 2**31 - 1,
            "positions": 0,
            "bias": True,
            "q": True,
            "qk_norm": {"type": "identity"},
            "norm": {"type": "identity"},
            "hidden": 2**31 - 1,
            "activation": "gelu",
            "reduce": "avg",
        },
    ),
    "encoding": attributes("encoding", to=None),
    "error": attributes("encoding", "error", to=[0.1]),
    "infinite error": attributes("encoding", "error", to=float("inf")),
    "compressed": attributes("encoding", "compressed", to=-1),
    "complete": attributes("complete", to="yes"),
    "skipped": attributes("skipped", to=7),
    "skipped rows": attributes("skipped", to=[{"row": 23, "id": "x", "reason": "y"}]),
    "skipped rows that are there": attributes("skipped", to=[{"row": r, "id": "x", "reason": "y"} for r in range(23)]),
    "negative rows": attributes("skipped", to=[{"row": -1, "id": "x", "reason": "y"}]),
    "a row twice": lambda content: content["skipped"].append(content["skipped"][0]),
    "software": attributes("software", to=[]),
    "overflowed": attributes("overflowed", to=-1),
    "options": attributes("options", to="vit_b"),
    "protocol": attributes("protocol", to="4"),
    "enormous protocol": attributes("protocol", to="4" * 10**6),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_attributes_are_one_sentence(case, forged):
    path, agree = forged
    root = path / "zarr.json"
    content = json.loads(root.read_text())
    own = content["attributes"]["losa_cache"]
    HOSTILE[case](own)
    if isinstance(own["fields"], dict):
        own["identity"] = identity_hash({"protocol": own["protocol"], **own["fields"]})
    root.write_text(json.dumps(content))
    agree()
    with no_longer_than(60), pytest.raises(UserError) as told:
        read(path)
    assert len(str(told.value)) < 700


def shape_of(name, shape, chunks=None, **more):
    """Give an array another shape."""

    def change(path):
        file = path / name / "zarr.json"
        content = json.loads(file.read_text())
        content["shape"] = shape
        content["chunk_grid"]["configuration"]["chunk_shape"] = chunks or [max(1, size) for size in shape]
        file.write_text(json.dumps(content | more))

    return change


def values_of(name, values):
    """Put other values into an array, or another array in its place."""

    def change(path):
        group = zarr.open_group(str(path), mode="r+")
        old = group[name]
        new = values(old[...])
        del group[name]
        codecs = [zarr.codecs.ZstdCodec(level=3), zarr.codecs.Crc32cCodec()]
        group.create_array(name, data=new, compressors=codecs)

    return change


def deep(path):
    (path / "zarr.json").write_text('{"attributes": ' + "[" * 200_000 + "]" * 200_000 + "}")


def deep_array(path):
    (path / "labels" / "zarr.json").write_text("[" * 200_000)


ARRAYS = {
    "deep JSON": deep,
    "a deep array": deep_array,
    "1e15 labels": shape_of("labels", [10**15]),
    "1e15 labels in one file": shape_of("labels", [10**15], [10**15]),
    "1e15 labels in small chunks": shape_of("labels", [10**15], [23]),
    "no labels": shape_of("labels", [0], [23]),
    "negative labels": shape_of("labels", [-23], [23]),
    "labels of two dimensions": shape_of("labels", [23, 1]),
    "long ids": shape_of("sample_ids", [23, 10**12]),
    "1e15 rows": shape_of("activations/block", [10**15, 4, 5, 34], [5, 4, 5, 34]),
    "1e15 rows a shard": shape_of("activations/block", [23, 4, 5, 34], [10**15, 4, 5, 34]),
    "fewer planes": shape_of("activations/block", [23, 2, 5, 34], [5, 2, 5, 34]),
    "more planes": shape_of("activations/block", [23, 10**9, 5, 34], [5, 10**9, 5, 34]),
    "shards of another array": shape_of("activations/block", [23, 4, 5, 34], [5, 4, 5, 17]),
    "scales of a layer": values_of("scales/channel", lambda old: old[:1]),
    "scales that are none": values_of("scales/channel", lambda old: np.full_like(old, np.nan)),
    "infinite scales": values_of("scales/channel", lambda old: np.full_like(old, np.inf)),
    "negative scales": values_of("scales/channel", lambda old: -old),
    "scales of another kind": values_of("scales/channel", lambda old: old.astype(np.float64)),
    "norm": values_of("tail/norm.weight", lambda old: np.full_like(old, np.nan)),
    "wide norm": values_of("tail/norm.weight", lambda old: np.ones(2 * len(old), np.float32)),
    "norm of complex numbers": values_of("tail/norm.weight", lambda old: old.astype(np.complex64)),
    "labels beyond the classes": values_of("labels", lambda old: old + 1),
    "labels far below": values_of("labels", lambda old: old - 5),
    "labels of another kind": values_of("labels", lambda old: old.astype(np.float64)),
    "labels of text": values_of("labels", lambda old: old.astype(str)),
    "fewer labels": values_of("labels", lambda old: old[:-1]),
    "fewer ids": values_of("sample_ids", lambda old: old[:-1]),
    "wide ids": values_of("sample_ids", lambda old: old.astype(np.uint16)),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_hostile_arrays_are_one_sentence(case, forged):
    path, agree = forged
    ARRAYS[case](path)
    agree()
    with no_longer_than(60), pytest.raises(UserError) as told:
        read(path)
    assert len(str(told.value)) < 900


def put(kind, place):
    """Put something else in place of a file."""
    place.unlink()
    if kind == "a pipe":
        os.mkfifo(place)
    elif kind == "a folder":
        place.mkdir()
    elif kind == "a device":
        place.symlink_to("/dev/zero")
    else:
        place.symlink_to(place)


FILES = (
    *("zarr.json", "labels/zarr.json", "labels/c/0", "sample_ids/c/0/0", "activations/block/zarr.json"),
    *("activations/zarr.json", "scales/zarr.json", "scales/channel/zarr.json", "scales/channel/c/0/0"),
    *("tail/zarr.json", "tail/norm.weight/c/0", "activations/block/c.0.0.0.0"),
)


BESIDE = ("000000.json", "core/files.json", "core/labels/c/0", "lock")
KINDS = ("a folder", "a device", "a loop")


@pytest.mark.parametrize(
    "receipts", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["with receipts", "without receipts"]
)
def test_what_is_no_file_is_never_waited_for(receipts, original, right, tmp_path):
    names = [f"c.zarr/{name}" for name in FILES] + [f"c.zarr.receipts/{name}" for name in BESIDE] * receipts
    for number, (name, pipe) in enumerate(product(names, (True, False))):
        folder, kind = tmp_path / str(number), "a pipe" if pipe else KINDS[number // 2 % len(KINDS)]
        store = folder / "c.zarr"
        shutil.copytree(original, store)
        if receipts:
            shutil.copytree(original.with_name("c.zarr.receipts"), folder / "c.zarr.receipts")
        put(kind, folder / name)
        commands = [
            lambda store=store: verify_cache(store),
            lambda store=store: inspect_cache(store),
            lambda store=store: extract(tiny_backbone(), SAMPLES, out=store, **OPTIONS) and read(store) == right,
        ]
        with no_longer_than(60):
            for command in (lambda store=store: read(store) == right, commands[(number // 2 + pipe) % len(commands)]):
                with suppress(UserError):
                    assert command(), (name, kind)


@pytest.mark.parametrize("case", ["layers twice", "1e15 labels", "a pipe"])
def test_every_command_says_a_sentence_about_such_a_cache(case, forged, tmp_path):
    path, agree = forged
    if case in HOSTILE:
        root = path / "zarr.json"
        content = json.loads(root.read_text())
        HOSTILE[case](content["attributes"]["losa_cache"])
        root.write_text(json.dumps(content))
    elif case in ARRAYS:
        ARRAYS[case](path)
    if case == "a pipe":
        put(case, path / "labels" / "c" / "0")
    else:
        agree()
    (tmp_path / "home" / "caches").mkdir(parents=True)
    (tmp_path / "home" / "caches" / "linked.zarr").symlink_to(path)
    with no_longer_than(60):
        for command in (
            lambda: train(path, epochs=1, out=tmp_path / "run"),
            lambda: inspect_cache(path),
            lambda: stage_cache(open_cache(path), tmp_path / "near"),
        ):
            with pytest.raises(UserError):
                command()
        (listed,) = list_caches()
        assert "error" in listed
        with suppress(UserError):
            assert verify_cache(path)["intact"] is False
    assert not (tmp_path / "run").exists()
