"""plan: its arithmetic by hand, and what it foretells beside what extract then writes."""

import json
import math
import os
import re

import numpy as np
import pytest

from losa_cache.cache import compression
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.extract.forecast import Candidate, Speeds, forecast, on_gpus, recommend
from losa_cache.extract.plan_extraction import plan_extraction
from tests.conftest import losa_cache, tiny_backbone, tiny_samples

GB = 10**9
MACHINE = {"write": 1 * GB, "read": 2 * GB, "reread": 8 * GB, "decode": 4000, "forward": 1000, "shared": False}
GPU = Speeds(**MACHINE, memory=32 * GB, free=1000 * GB)


def of(row_mb, *, samples=100_000, views=1, speeds=GPU, unpack=math.inf, precision="bfloat16"):
    total = round(row_mb * 1e6 * samples * views)
    candidate = Candidate(precision, total, row_mb * 1e6, unpack)
    return forecast(candidate, speeds, samples=samples, views=views)


def test_the_arithmetic_by_hand():
    found = of(1.0)  # 100 GB: read cold at 2 GB/s; the forward pass, 100 s, is what limits the extraction
    assert (found.extraction, found.cached, found.online) == (100, 50, 100)
    assert found.break_even == 2
    found = of(5.0)  # 500 GB: reading takes 250 s, longer than the backbone
    assert (found.extraction, found.cached, found.break_even) == (500, 250, None)
    found = of(0.2)  # 20 GB stay in memory: 8 GB/s
    assert found.cached == pytest.approx(2.5)
    found = of(0.2, unpack=2000)
    assert found.cached == pytest.approx(50)
    found = of(1.0, views=4)  # four times the rows, an epoch reads a quarter of them
    assert (found.extraction, found.cached, found.break_even) == (400, 50, 8)


def test_a_cpu_decodes_and_computes_with_the_same_cores():
    speeds = Speeds(**(MACHINE | {"decode": 100, "forward": 25, "shared": True}), memory=GB, free=GB)
    assert speeds.online == 20


def test_several_gpus_wait_for_what_they_share():
    """1,000 images/s a GPU; 4,000 are decoded, and rows of 0.1 MB are written at 10,000 a second."""
    candidate = Candidate("predict:1", 36 * 10**8, 1e5, math.inf)
    found = {gpus: on_gpus(candidate, GPU, gpus=gpus, rows=36_000) for gpus in (1, 2, 8)}
    assert found[2] == {
        "count": 2,
        "hours": 0.005,
        "gpu_hours": 0.01,
        "images_per_second": 2000,
        "limited_by": "the GPUs",
        "busy": {"hours": 0.005, "decode": 2000, "write": 2 * 10**8},
    }
    assert found[1]["gpu_hours"] == found[2]["gpu_hours"]
    assert (found[8]["limited_by"], found[8]["hours"], found[8]["gpu_hours"]) == ("decoding", 0.0025, 0.02)
    assert found[8]["busy"] == {"hours": 0.00125, "decode": 8000, "write": 8 * 10**8}
    large = on_gpus(Candidate("bfloat16", 36 * 10**10, 1e7, math.inf), GPU, gpus=8, rows=36_000)
    assert (large["limited_by"], large["images_per_second"], large["hours"]) == ("the disk", 100, 0.1)


def test_a_plan_for_gpus_needs_one_and_a_number_of_them(tmp_path):
    with pytest.raises(UserError, match="--gpus needs a GPU to measure, and the device is 'cpu'"):
        plan_extraction(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", gpus=8, device="cpu")
    with pytest.raises(UserError, match="in a plan it is how many GPUs, at least 1"):
        plan_extraction(tiny_backbone(), tiny_samples(), gpus=0)


@pytest.mark.parametrize(
    ("row_mb", "speeds", "others", "says"),
    [
        (1.0, {}, (), "Extract: the cache pays for itself after 2 epochs and serves every run after that."),
        (5.0, {}, (), "Do not cache: train online .*reading an epoch takes longer than running the backbone."),
        (5.0, {}, (1.3,), "Extract with --precision int4: .* after .* epochs, while with bfloat16 reading"),
        (1.0, {"free": 50 * GB}, (0.4,), "Extract with --precision int4.* cache of 100.0 GB does not fit the disk"),
        (1.0, {"free": 10 * GB}, (0.4,), "Extract fewer --layers, or train online.* does not fit the disk"),
        (1.98, {}, (), "Do not cache: train online .* it takes 198 epochs until the extraction has paid"),
    ],
)
def test_the_recommendation_follows_from_the_figures(row_mb, speeds, others, says):
    machine = Speeds(**({**MACHINE, "memory": 0, "free": 1000 * GB} | speeds))
    sentence = recommend(of(row_mb, speeds=machine), [of(mb, speeds=machine, precision="int4") for mb in others])
    assert re.match(says, sentence), sentence
    assert sentence.count(". ") == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "int8", "views": 3, "augment": "crop", "layers": 2, "limit": 20},
        {"tap": "both", "embedding": True, "layers": 2},
        {"precision": "predict:2"},
        {"precision": "predict:20%", "layers": 3},
    ],
)
@pytest.mark.slow
def test_what_is_foretold_is_what_extract_writes(tmp_path, options, monkeypatch):
    monkeypatch.setattr(compression, "WORTH_BYTES", 0)
    out = tmp_path / "below" / "c.zarr"
    arguments = (tiny_backbone(), tiny_samples())
    plan = plan_extraction(*arguments, out=out, **options)
    assert os.listdir(tmp_path) == []
    cache = extract(*arguments, out=out, **options)
    shards = sum(cache.shard_path(shard).stat().st_size for shard in range(cache.layout.shards))
    assert plan["bytes"] == pytest.approx(shards, rel=0.05)
    assert plan["points"] == cache.manifest.points
    assert plan["rows"] == cache.layout.samples
    assert plan["shards"] == cache.layout.shards
    files = [p for folder in (cache.path, cache.receipts) for p in folder.rglob("*") if p.is_file()]
    assert plan["files"] == len(files)
    assert {"float32", "float16", "bfloat16", "int8", "int4", "predict:2", "predict:1"} <= {
        plan["precision"],
        *(other["precision"] for other in plan["alternatives"]),
    }
    assert plan["error"] == pytest.approx(np.mean(cache.manifest.encoding["error"]), rel=0.01)
    constants = sum(tensor.nbytes for tensor in cache.encoding().constants().values())
    assert plan["constants"] == constants
    assert plan["layers_read"].startswith("all" if "predict" in plan["precision"] else "those")
    assert all(value > 0 for value in (*plan["disk"].values(), *plan["images_per_second"].values()))
    seconds = plan["epoch_seconds"]
    assert seconds["cached"] > 0
    decoded = plan["precision"].startswith("predict")  # which may take longer than so small a trunk
    assert seconds["online"] > (0 if decoded else seconds["cached"])
    if seconds["online"] > seconds["cached"]:
        paid = plan["hours_to_extract"] * 3600 / (seconds["online"] - seconds["cached"])
        assert plan["break_even_epochs"] == pytest.approx(math.ceil(paid), abs=1)
    else:
        assert plan["break_even_epochs"] is None


def test_the_command_line_plans_with_the_options_of_extract(tmp_path):
    out = str(tmp_path / "c.zarr")
    options = ["--backbone", "vit_digits", "--dataset", "digits", "--out", out, "--precision", "int4", "--limit", "50"]
    plan = json.loads(losa_cache("plan", *options, "--json").stdout)
    assert plan["out"] == out
    assert plan["rows"] == 50
    assert plan["recommendation"].endswith(".")
    assert not (tmp_path / "c.zarr").exists()


def test_a_place_that_extract_refuses_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    for out, said in ((tmp_path / "photos", "exists and is no cache"), ("", "a path is empty")):
        for work in (plan_extraction, extract):
            with pytest.raises(UserError, match=said):
                work(tiny_backbone(), tiny_samples(), out=out)


def test_a_place_where_nothing_can_be_written_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="nothing can be written to '/proc'"):
        plan_extraction(tiny_backbone(), tiny_samples(), out="/proc/c.zarr")
