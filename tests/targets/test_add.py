"""Target sets in a finished cache: added, replaced, removed, killed, damaged, forged."""

import hashlib
import json
from pathlib import Path

import numpy as np
import zarr

from losa_cache.cache.store import open_cache
from losa_cache.extract.verify import verify_cache
from losa_cache.targets.add import add_targets, remove_targets
from losa_cache.targets.target_set import CLASS, DEPTH, MASK, MULTILABEL, NUMBERS, TargetSet

N = 23
DRAW = np.random.default_rng(0)
SETS = {
    CLASS: TargetSet("kind-of", CLASS, ["u", "v"], DRAW.integers(0, 2, N)),
    MULTILABEL: TargetSet("several", MULTILABEL, ["p", "q", "r"], DRAW.integers(-1, 2, (N, 3)).astype(np.int8)),
    NUMBERS: TargetSet("count", NUMBERS, ["x"], DRAW.normal(size=(N, 1)).astype(np.float32)),
    MASK: TargetSet("mask", MASK, ["sky", "road"], DRAW.choice([0, 1, 255], (N, 8, 8)).astype(np.uint8)),
    DEPTH: TargetSet("far", DEPTH, ["depth"], DRAW.choice([0.5, 3, np.nan], (N, 8, 8)).astype(np.float32)),
}


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files but the lock."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name != "lock"}


def test_every_kind_is_read_back_by_us_and_by_zarr_alone_and_none_changes_the_cache(tiny_cache):
    before = contents(tiny_cache.path), contents(tiny_cache.receipts)
    for given in SETS.values():
        kept = add_targets(tiny_cache, given)
        np.testing.assert_array_equal(kept.values, given.values)
    cache = open_cache(tiny_cache.path)
    assert cache.target_kinds == {"labels": CLASS} | {given.name: given.kind for given in SETS.values()}
    assert cache.manifest.identity == tiny_cache.manifest.identity
    assert json.loads((cache.path / "zarr.json").read_text())["attributes"]["losa_cache"]["protocol"] == 5
    for given in SETS.values():
        np.testing.assert_array_equal(zarr.open_array(cache.path / "targets" / given.name)[:], given.values)
        assert cache.target_set(given.name).fingerprint == given.fingerprint
        assert list(cache.target_set(given.name).names) == list(given.names)
    assert verify_cache(cache.path)["intact"]
    other = TargetSet("count", NUMBERS, ["y"], -SETS[NUMBERS].values)
    add_targets(str(cache.path), other)
    np.testing.assert_array_equal(open_cache(cache.path).target_set("count").values, other.values)
    for given in SETS.values():
        remove_targets(cache.path, given.name)
    assert (contents(tiny_cache.path), contents(tiny_cache.receipts)) == before  # byte for byte, protocol 4 again
    assert not (tiny_cache.path / "targets").exists()
