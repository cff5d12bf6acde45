"""What an epoch's time went into: pure."""

import json
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

import losa_cache as lc
from losa_cache.display import TrainingBar
from losa_cache.train.bottleneck import NAMES, PARTS, Bandwidth, limiter, time_metrics
from losa_cache.train.config import TrainConfig

BANDWIDTH = Bandwidth(memory=10.0, disk=2.0)


@given(st.dictionaries(st.sampled_from(PARTS), st.floats(0, 100)), st.floats(0, 100))
def test_parts_are_what_was_measured_and_waiting_for_reads_is_what_they_leave(spent, seconds):
    found = time_metrics(seconds, spent, None)
    assert set(found) == {f"train_seconds_{part}" for part in spent}
    others = 0.0
    for part, value in spent.items():
        if part != "read":
            assert found[f"train_seconds_{part}"] == value
            others += value
    if "read" in spent:
        assert 0 <= found["train_seconds_read"] <= spent["read"]
        left = max(0.0, seconds - others)
        assert isclose(found["train_seconds_read"], min(spent["read"], left), abs_tol=1e-9)


@pytest.mark.parametrize(("reached", "bandwidth"), [(0.5, 2.0), (2.2, 2.0), (2.6, 10.0), (9.0, 10.0)])
def test_what_is_faster_than_the_disk_came_out_of_memory(reached, bandwidth):
    found = time_metrics(1.0, {"read": 0.5, "reading": 2.0, "gigabytes": 2.0 * reached, "compute": 0.5}, BANDWIDTH)
    assert found["train_read_gb_per_second"] == reached
    assert found["train_read_roof_gb_per_second"] == bandwidth


@pytest.mark.parametrize(
    ("spent", "said"),
    [
        ({"read": 1, "compute": 8, "decode": 1}, "the side network (80% of the time; read 10%, decode 10%): a"),
        (
            {"read": 6, "reading": 6, "gigabytes": 9, "compute": 4},
            "reading from disk (60% of the time at 1.5 GB/s, the disk gives 2.0; compute 40%): fewer",
        ),
        (
            {"read": 6, "reading": 6, "gigabytes": 48, "compute": 4},
            "reading from memory (60% of the time at 8.0 GB/s, memory copies at 10.0; compute 40%): fewer",
        ),
        ({"read": 1, "decode": 8, "compute": 1}, "decoding (80% of the time; read 10%, compute 10%): bfloat16"),
        ({"decode": 8, "backbone": 1, "compute": 1}, "decoding images (80% of the time; backbone 10%, compute 10%): m"),
        ({"decode": 1, "backbone": 8, "compute": 1}, "the backbone (80% of the time; decode 10%, compute 10%): a c"),
        ({"read": 1, "copy": 8, "compute": 1}, "copies to the GPU (80% of the time; read 10%, compute 10%): f"),
    ],
)
def test_the_largest_part_is_named_with_advice(spent, said):
    metrics = {"train_seconds": 10.0} | time_metrics(10.0, spent, BANDWIDTH)
    assert limiter(metrics, BANDWIDTH).startswith(f"limited by {said}")


def test_no_option_is_advised_that_a_side_network_does_not_have():
    read = {"read": 6, "reading": 6, "gigabytes": 9, "compute": 4}
    for side, spent, advice in (
        ("losa", {"compute": 1}, ": a smaller --rank or fewer --layers would shorten it."),
        ("fusion", {"compute": 1}, ": fewer --layers would shorten it."),
        ("linear", {"compute": 1}, ")."),
        ("linear", read, ": a cache of fewer bits (--precision int8) or memory that holds it would shorten it."),
        ("losa", {"copy": 1}, ": fewer --layers, fewer bits or --residency device where it fits would shorten it."),
        ("losa", {"backbone": 1}, ": a cache (losa-cache extract) would shorten it."),
    ):
        said = limiter({"train_seconds": 10.0} | time_metrics(10.0, spent, BANDWIDTH), BANDWIDTH, side=side)
        assert said.endswith(advice), said
        assert said.count(":") == (advice != ").")


@pytest.mark.parametrize(("seconds", "said"), [(0.01, False), (2.0, True)])
def test_an_epoch_that_is_over_at_once_is_not_explained(seconds, said, capsys):
    limit = "limited by reading from disk (90% of the time): memory would shorten it."
    metrics = {"epoch": 1, "train_loss": 1.0, "train_seconds": seconds, "limiter": limit}
    with TrainingBar(TrainConfig(epochs=2, metric="macro_f1")) as bar:
        bar(metrics | {"val_top1": 90.0, "val_macro_f1": 61.0})
    written = capsys.readouterr().err
    assert ("limited by" in written) == said
    assert "epoch 1/2: loss 1.000, val macro F1 61.0 %," in written and "90.0" not in written


def test_a_run_says_after_every_epoch_what_limits_it(tiny_cache, tmp_path):
    run = lc.train(tiny_cache, rank=2, epochs=3, out=tmp_path / "run", device="cpu").run
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        parts = [line[f"train_seconds_{part}"] for part in ("read", "decode", "compute")]
        assert all(part > 0 for part in parts)
        assert sum(parts) <= line["train_seconds"]
        assert line["train_read_gb_per_second"] > 0
        assert line["limiter"].startswith(tuple(f"limited by {name} (" for name in NAMES.values()))
