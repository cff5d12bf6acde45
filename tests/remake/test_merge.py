"""Several caches become one: every row is bit for bit that of its source, classes and targets go by their names."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import losa_cache as lc
from losa_cache.cache.store import open_cache
from losa_cache.cli import app
from losa_cache.errors import UserError
from losa_cache.extract import create_cache
from losa_cache.extract.extract import extract
from losa_cache.extract.verify import verify_cache
from losa_cache.ids import Ids
from losa_cache.remake.change import largest_error
from losa_cache.targets.add import add_targets
from losa_cache.targets.target_set import DEPTH, MASK, MULTILABEL, NUMBERS, TargetSet
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents
from tests.extract.test_taps import plain_array
from tests.steps import killed_at_steps, made_anew

SMALL = {"shard_bytes": 5_200, "batch_size": 4, "on_error": "skip"}


def parts(tmp_path, **options):
    """Two caches of disjoint samples of other classes, one of which did not decode."""
    samples = tiny_samples(bad=(2,))
    first, second = samples.select(np.arange(9)), samples.select(np.arange(9, 23))
    object.__setattr__(second, "classes", ("c", "d", "a"))
    options = SMALL | options
    return [
        extract(tiny_backbone(), part, out=tmp_path / f"{name}.zarr", **options)
        for name, part in (("one", first), ("two", second))
    ]


def require_rows(merged, sources):
    """Each row is that of its sample, in the class of the same name; its source order is kept."""
    stored, theirs = plain_array(merged), [plain_array(source) for source in sources]
    seen: list[list[int]] = [[] for _ in sources]
    for row, name in enumerate(merged.ids):
        part = next(at for at, source in enumerate(sources) if name in source.ids)
        place = sources[part].ids.index(name) + row % merged.manifest.views
        seen[part].append(place)
        assert torch.equal(stored[row].view(torch.uint8), theirs[part][place].view(torch.uint8))
        label, own = merged.labels[row], sources[part].labels[place]
        assert (label < 0) == (own < 0)
        assert label < 0 or merged.manifest.classes[label] == sources[part].manifest.classes[own]
    assert seen == [list(range(len(source.ids))) for source in sources]


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.slow), {"precision": "float32", "views": 2, "augment": "crop"}],
)
def test_rows_labels_and_skipped_samples_are_those_of_the_parts(options, tmp_path):
    sources = parts(tmp_path, **options)
    before = [contents(source.path) for source in sources]
    merged = lc.merge(sources, tmp_path / "m.zarr", shard_bytes=7_000, workers=3)
    require_rows(merged, sources)
    assert merged.manifest.classes == ["a", "b", "c", "d"]
    assert {entry["id"] for entry in merged.manifest.skipped} == {"image-002"}
    assert all(merged.ids[entry["row"]] == entry["id"] for entry in merged.manifest.skipped)
    assert merged.manifest.fields["made_from"] == [source.manifest.identity for source in sources]
    assert verify_cache(merged.path)["intact"]
    assert [contents(source.path) for source in sources] == before
    first = [name in sources[0].ids for name in merged.sample_ids]
    assert 0 < sum(first[: len(first) // 2]) < sum(first)  # mixed: neither all before nor all behind the others
    with pytest.raises(UserError, match="was merged from others, .* name those that it was merged from"):
        verify_cache(merged.path, recompute=1, backbone=tiny_backbone(), dataset=tiny_samples())
    assert contents(lc.merge(sources, merged.path).path) == contents(merged.path)  # again: it is there
    with pytest.raises(UserError, match="holds another cache|holds other samples"):
        lc.merge(sources[::-1], merged.path)


def test_target_sets_that_all_have_are_merged_by_name(tmp_path, caplog):
    sources = parts(tmp_path)
    for number, source in enumerate(sources):
        count = len(source.sample_ids)
        several = np.full((count, 2), number, np.int8)
        add_targets(source, TargetSet("several", MULTILABEL, ["x", "yz"[number]], several))
        names = ["p", "q"] if number else ["q", "p"]
        columns = np.stack([np.arange(count) + 100 * (name == "p") for name in names], 1).astype(np.float32)
        add_targets(source, TargetSet("numbers", NUMBERS, names, columns))
    add_targets(sources[0], TargetSet("alone", NUMBERS, ["x"], np.ones((9, 1), np.float32)))
    with caplog.at_level(logging.WARNING):
        merged = lc.merge([source.path for source in sources], tmp_path / "m.zarr")
    assert "the target set 'alone' is left out, because not every cache has it" in caplog.text
    assert merged.target_kinds.keys() == {"labels", "several", "numbers"}
    several, numbers = merged.target_set("several"), merged.target_set("numbers")
    assert (several.names, numbers.names) == (["x", "y", "z"], ["q", "p"])
    for at, name in enumerate(merged.sample_ids):
        part = next(number for number, source in enumerate(sources) if name in source.ids)
        place = sources[part].sample_ids.index(name)
        assert several.values[at].tolist() == ([0, 0, -1], [1, -1, 1])[part]
        assert numbers.values[at].tolist() == [place, place + 100]


def test_samples_to_train_on_and_to_test_on_are_merged_with_a_warning(tmp_path, caplog):
    samples = tiny_samples()
    shares = {"train": np.arange(9), "test": np.arange(9, 23)}
    sources = [
        extract(tiny_backbone(), replace(samples.select(rows), split=split), out=tmp_path / f"{split}.zarr", **SMALL)
        for split, rows in shares.items()
    ]
    with caplog.at_level(logging.WARNING):
        lc.merge(sources, tmp_path / "m.zarr")
    assert "what is trained from it cannot be tested on split 'test'" in caplog.text


@pytest.mark.slow
def test_frames_are_merged_and_what_cannot_be_is_left_out_before_a_shard_is_written(tmp_path, caplog):
    sources, random = parts(tmp_path), np.random.default_rng(0)
    for number, source in enumerate(sources):
        count = len(source.sample_ids)
        far = random.uniform(1, 9, (count, 8, 8)).astype(np.float32)
        far[0, 0, 0] = np.nan
        add_targets(source, TargetSet("far", DEPTH, ["depth"], far))
        for name, classes in (("few", 127), ("many", 128)):  # 254 and 256 of both caches
            names = [f"{number}-{own}" for own in range(classes)]
            pixels = random.integers(0, classes, (count, 8, 8)).astype(np.uint8)
            pixels[0, 0] = 255
            add_targets(source, TargetSet(name, MASK, names, pixels))
    sources = [open_cache(source.path) for source in sources]
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        lc.merge(sources, tmp_path / "m.zarr", progress=_stop)
    reason = "of all caches together a mask has 256 classes, and at most 255 are possible"
    assert f"the target set 'many' is left out, because {reason}." in caplog.text
    merged = lc.merge(sources, tmp_path / "m.zarr")
    assert merged.target_kinds.keys() == {"labels", "far", "few"}
    far, few = merged.target_set("far"), merged.target_set("few")
    assert (far.names, len(few.names), few.values.dtype) == (["depth"], 254, np.uint8)
    for at, name in enumerate(merged.sample_ids):
        part = next(number for number, source in enumerate(sources) if name in source.ids)
        place, own = sources[part].sample_ids.index(name), sources[part]
        assert np.array_equal(far.values[at], own.target_set("far").values[place], equal_nan=True)
        mask = own.target_set("few").values[place]
        assert np.array_equal(few.values[at], np.where(mask == 255, 255, mask + 127 * part))


def _stop(_):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_the_stated_error_is_the_largest_of_the_parts(tmp_path):
    one, two = parts(tmp_path, precision="float16")
    (tmp_path / "coarse").mkdir()
    again = [lc.transcode(own, tmp_path / f"coarse/{own.path.name}", precision="bfloat16") for own in (one, two)]
    (tmp_path / "direct").mkdir()
    direct, _ = parts(tmp_path / "direct", precision="bfloat16")
    small, large = direct.manifest.encoding["error"], again[1].manifest.encoding["error"]
    assert small < large
    for order in ([direct, again[1]], [again[1], direct]):
        merged = lc.merge(order, tmp_path / f"{order[0].path.parent.name}.zarr")
        assert merged.manifest.encoding["error"] == large
    assert largest_error([0.1, 0.4], [0.3, 0.2]) == [0.3, 0.4]
    assert largest_error(0.2, [0.3, 0.1]) == [0.3, 0.2]


@pytest.mark.slow
def test_integers_are_merged_only_with_the_same_constants(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="because the constants of its precision int8 differ"):
        lc.merge(parts(tmp_path, precision="int8"), tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()
    fitted = []
    calibrate = create_cache.calibrate
    monkeypatch.setattr(
        create_cache,
        "calibrate",
        lambda *a, **b: fitted[0] if fitted else fitted.append(calibrate(*a, **b)) or fitted[0],
    )
    (tmp_path / "same").mkdir()
    sources = parts(tmp_path / "same", precision="int8")
    require_rows(lc.merge(sources, tmp_path / "m.zarr"), sources)


def test_what_does_not_belong_together_is_refused(tmp_path):
    one, two = parts(tmp_path)
    fewer = lc.transcode(two, tmp_path / "fewer.zarr", layers=2)
    with pytest.raises(UserError, match=r"fewer\.zarr' cannot be merged with the first, .* differs in layers"):
        lc.merge([one, fewer], tmp_path / "m.zarr")
    other = extract(tiny_backbone(1), tiny_samples(3), out=tmp_path / "other.zarr")
    with pytest.raises(UserError, match=r"differs in backbone\.name .*backbone\.weights"):
        lc.merge([two, other], tmp_path / "m.zarr")
    whole = extract(tiny_backbone(), tiny_samples(12), out=tmp_path / "whole.zarr")
    with pytest.raises(UserError, match=r"^9 samples are in more than one of the caches \(('image-00\d', ){5}\.\.\.\)"):
        lc.merge([one, whole], tmp_path / "m.zarr")
    twice = replace(two, ids=Ids.of([*two.ids[:-1], two.ids[0]]))
    with pytest.raises(UserError, match=r"two\.zarr' itself has ids more than once \('image-012'\): ids tell"):
        lc.merge([one, twice], tmp_path / "m.zarr")
    with pytest.raises(UserError, match="takes two caches or more, and 1 is given"):
        lc.merge([one], tmp_path / "m.zarr")
    with pytest.raises(UserError, match="is the cache itself"):
        lc.merge([one, two], two.path)
    assert not (tmp_path / "m.zarr").exists()


def test_a_merged_cache_is_trained_from(tmp_path):
    paths = [str(source.path) for source in parts(tmp_path)]
    done = CliRunner().invoke(app, ["merge", *paths, "--out", str(tmp_path / "m.zarr")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = lc.train(
        open_cache(tmp_path / "m.zarr"), epochs=1, rank=2, batch_size=8, val_fraction=0, out=tmp_path / "run"
    )
    assert result.samples["train"] == 22


@pytest.mark.slow
def test_killed_at_each_step_it_goes_on_and_ends_bit_identical(tmp_path):
    lc.merge(parts(tmp_path), tmp_path / "wanted.zarr", shard_bytes=5_200)
    (tmp_path / "at").mkdir()
    code = made_anew(tmp_path, 'lc.merge([base / "one.zarr", base / "two.zarr"], new, shard_bytes=5_200, workers=2)')
    assert killed_at_steps(code, tmp_path / "at", kills=50) >= 50
