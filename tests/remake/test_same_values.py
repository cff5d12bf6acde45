"""A cache that was begun with the values of one source is not gone on with those of another of the same identity."""

import numpy as np
import pytest
import torch

import losa_cache as lc
from losa_cache.cache.store import open_cache
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.remake.same_values import values_digest
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.extract.test_taps import plain_array

SMALL = {"precision": "int8", "shard_bytes": 5_200, "on_error": "skip"}
OTHER = "holds values of another cache: choose another --out"


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Two caches of one identity, whose constants were fitted to other samples."""
    place = tmp_path_factory.mktemp("twins")
    made = [
        extract(tiny_backbone(), tiny_samples(bad=bad), out=place / f"{len(bad)}.zarr", **SMALL)
        for bad in ((), range(8))
    ]
    assert made[0].manifest.identity == made[1].manifest.identity
    assert values_digest(made[0]) != values_digest(made[1])
    return made


def stop(share):
    if share >= 0.3:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "int4"},
        *(
            pytest.param(own, marks=pytest.mark.slow)
            for own in ({"layers": 2}, {"tokens": "pooled", "precision": "float16"})
        ),
    ],
)
def test_a_transcode_goes_on_with_its_own_source_alone(options, twins, tmp_path):
    out, options = tmp_path / "new.zarr", options | {"shard_bytes": 2_000, "workers": 1}
    one, other = twins
    wanted = lc.transcode(one, tmp_path / "wanted.zarr", **options)
    with pytest.raises(KeyboardInterrupt):
        lc.transcode(one, out, progress=stop, **options)
    with pytest.raises(UserError, match=OTHER):
        lc.transcode(other, out, **options)
    assert not open_cache(out, incomplete=True).manifest.complete
    made = lc.transcode(one, out, **options)
    assert torch.equal(plain_array(made), plain_array(wanted))
    assert made.manifest.made_from[0]["digest"] == values_digest(one)
    before = contents(out)
    with pytest.raises(UserError, match=OTHER):  # complete
        lc.transcode(other, out, **options)
    assert contents(out) == before


def test_constants_are_compared_where_an_older_version_noted_no_digest(twins, tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr("losa_cache.remake.same_values.values_digest", lambda _: None)
        made = lc.transcode(twins[0], tmp_path / "new.zarr", layers=2)
    assert "digest" not in made.manifest.made_from[0]
    lc.transcode(twins[0], made.path, layers=2)
    with pytest.raises(UserError, match=OTHER):
        lc.transcode(twins[1], made.path, layers=2)


def test_a_merge_goes_on_with_its_own_sources_alone(tmp_path):
    samples = tiny_samples()
    parts = [samples.select(np.arange(9)), samples.select(np.arange(9, 23))]
    options = SMALL | {"precision": "float32"}
    sources = [extract(tiny_backbone(), own, out=tmp_path / f"{n}.zarr", **options) for n, own in enumerate(parts)]
    bad = tiny_samples(bad=(1,)).select(np.arange(9))
    skipping = extract(tiny_backbone(), bad, out=tmp_path / "skipping.zarr", **options)
    assert skipping.manifest.identity == sources[0].manifest.identity
    with pytest.raises(KeyboardInterrupt):
        lc.merge(sources, tmp_path / "m.zarr", shard_bytes=2_000, workers=1, progress=stop)
    with pytest.raises(UserError, match=OTHER):
        lc.merge([skipping, sources[1]], tmp_path / "m.zarr", workers=1)
    merged = lc.merge(sources, tmp_path / "m.zarr", workers=1)
    assert merged.samples.tolist() == list(range(23))
