"""What benchmarks/accuracy.py computes beside training: parts of caches, tables, goals."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import zarr

from losa_cache.cache.store import open_cache


@pytest.fixture
def benchmark(monkeypatch):
    """Import a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


def test_a_part_of_a_cache_holds_the_same_bytes_of_fewer_images(benchmark, tiny_cache, tmp_path):
    data = benchmark("accuracy_data")
    assert data.shots(tiny_cache, 8, seed=0) is None
    few, more = data.shots(tiny_cache, 2, seed=0), data.shots(tiny_cache, 4, seed=0)
    assert np.bincount(tiny_cache.labels[few]).tolist() == [2, 2, 2]
    assert set(few) < set(more)
    assert set(few) != set(data.shots(tiny_cache, 2, seed=1))
    part = data.part(tiny_cache, few, tmp_path / "part.zarr")
    whole, own = (zarr.open_group(path, mode="r")["activations/block"][:] for path in (tiny_cache.path, part.path))
    assert np.array_equal(own, whole[few])
    assert open_cache(part.path).ids == [tiny_cache.ids[row] for row in few]
    assert part.labels.tolist() == tiny_cache.labels[few].tolist()
    assert part.manifest.identity != tiny_cache.manifest.identity


def test_tables_and_goals_are_of_the_same_test_images(benchmark):
    results = benchmark("accuracy_results")
    draw = np.random.default_rng(0)
    shares = {"probe-last": 0.70, "probe-all": 0.80, "losa": 0.82, "lora": 0.9}
    hits = {
        (name, method, seed): draw.random(300) < share
        for name in ("x", "y")
        for method, share in shares.items()
        for seed in (0, 1)
    }
    lines = [
        results.Result(
            {"epochs": None}, name, method, 0, seed, results.packed(own), 300, 10,
            seconds=95.0 if method == "lora" else 5.0, extract_seconds=0.0 if method == "lora" else 3.0,
        ).line()
        for (name, method, seed), own in hits.items()
    ]  # fmt: skip
    found = results.Results(results.parse("".join([lines[0].replace("300", "299"), *lines, lines[0][:40]])))
    mean = {m: np.mean([100 * hits[name, m, seed].mean() for name in "xy" for seed in (0, 1)]) for m in shares}
    told = results.report(found)
    for method, value in mean.items():
        row = next(line for line in told.splitlines() if line.startswith(f"| {results.TITLES[method]} |"))
        assert row.split(" | ")[3] == f"{value:.1f}"
    value, error, sets = found.mean_difference("losa", "lora", 0)
    gaps = [np.mean([hits[n, "losa", s] * 1.0 - hits[n, "lora", s] for s in (0, 1)], axis=0) for n in "xy"]
    assert (value, sets) == (pytest.approx(mean["losa"] - mean["lora"]), 2)
    assert error == pytest.approx(100 * np.sqrt(sum(gap.var(ddof=1) / 300 for gap in gaps)) / 2)
    met = {goal.split(":")[1].split(",")[0].strip(): goal.startswith("met") for goal in results.goals(found)}
    ahead = mean["losa"] - mean["probe-all"] >= 1
    assert list(met.values()) == [True, ahead, True, False, True]
    failed = results.Result({}, "x", "losa", 5, 0, error="too few images")
    assert "too few images" in results.report(results.Results([failed]))
