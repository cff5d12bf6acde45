"""Extraction within a budget of device memory: the same bytes, resumed, verified and foretold as without one."""

import json

import pytest
import torch

from losa_cache import cli
from losa_cache import inputs as inputs_module
from losa_cache.backbone.names import DIGITS_WEIGHTS
from losa_cache.errors import UserError
from losa_cache.extract import pipeline
from losa_cache.extract.extract import extract
from losa_cache.extract.meter import Meter
from losa_cache.extract.plan import MAX_AT_ONCE, batches_at_once
from losa_cache.extract.plan_extraction import plan_extraction
from losa_cache.extract.verify import verify_cache
from tests.conftest import tiny_backbone, tiny_samples
from tests.extract.test_extract import contents

SMALL = {"shard_bytes": 13_000, "batch_size": 4}


def small_budget(precision="float32", batch=4):
    """Bytes for one block at a time of the tiny backbone."""
    backbone = tiny_backbone().to("cpu", budget=10**9)
    sizes = backbone.streamed.sizes(backbone.compute_dtype(precision))
    return sizes.least + batch * sizes.image


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"precision": "float32"}, marks=pytest.mark.slow),
        {"precision": "bfloat16", "tap": "both", "embedding": True},
        pytest.param({"precision": "float16", "layers": 2}, marks=pytest.mark.slow),
        pytest.param({"precision": "int8"}, marks=pytest.mark.slow),
        pytest.param({"precision": "predict:2"}, marks=pytest.mark.slow),
        pytest.param({"precision": "bfloat16", "views": 2, "augment": "crop"}, marks=pytest.mark.slow),
        {"precision": "bfloat16", "tokens": "pooled", "tap": "both", "views": 2, "augment": "crop"},
    ],
)
def test_shards_receipts_and_manifest_are_byte_for_byte_those_without_a_budget(tmp_path, options, monkeypatch):
    monkeypatch.setattr(pipeline, "batches_at_once", lambda *_: 2)  # as on a host with little memory
    budget = small_budget(options["precision"], batch=23)  # an encoding is fitted to all 23 images
    plain = extract(tiny_backbone(), tiny_samples(), out=tmp_path / "a.zarr", **SMALL, **options)
    backbone = tiny_backbone()
    ours = extract(backbone, tiny_samples(), out=tmp_path / "b.zarr", max_device_memory=budget, **SMALL, **options)
    assert len(backbone.groups(23, backbone.compute_dtype(options["precision"]))) == 4
    assert contents(ours.path) == contents(plain.path)
    assert ours.manifest.identity == plain.manifest.identity


def test_what_was_begun_without_a_budget_goes_on_with_one_and_the_other_way_round(tmp_path):
    whole = extract(tiny_backbone(), tiny_samples(), precision="float32", out=tmp_path / "a.zarr", **SMALL)
    before = contents(whole.path)
    for budget in (small_budget(), None):
        for shard in (1, 3):
            (whole.receipts / f"{shard:06d}.json").unlink()
        meter = Meter()
        again = extract(
            tiny_backbone(),
            tiny_samples(),
            precision="float32",
            out=whole.path,
            max_device_memory=budget,
            meter=meter,
            **SMALL,
        )
        assert meter.images == len(again.layout.rows(1)) + len(again.layout.rows(3))
        assert contents(again.path) == before


def test_a_cache_within_a_budget_is_verified_and_repaired(tmp_path):
    backbone = tiny_backbone()
    cache = extract(
        backbone,
        tiny_samples(),
        precision="float32",
        out=tmp_path / "c.zarr",
        max_device_memory=small_budget(),
        shard_bytes=13_000,
    )
    before = contents(cache.path)
    cache.shard_path(2).write_bytes(b"\0" * cache.shard_path(2).stat().st_size)
    found = verify_cache(cache.path, recompute=9, repair=True, backbone=backbone, dataset=tiny_samples())
    assert backbone.streamed is not None
    assert found["repaired"]
    assert found["intact"]
    assert contents(cache.path) == before


@pytest.mark.slow
def test_a_file_of_weights_on_the_command_line(tmp_path, monkeypatch, capsys):
    options = {"weights": DIGITS_WEIGHTS, "limit": 20, "precision": "float32", "batch_size": 4}
    plain = extract("vit_digits", "digits", out=tmp_path / "plain.zarr", **options)
    command = ["losa-cache", "extract", "--backbone", "vit_digits", "--dataset", "digits", "--limit", "20"]
    command += ["--weights", str(DIGITS_WEIGHTS), "--precision", "float32", "--batch-size", "4"]

    def run(name, budget):
        monkeypatch.setattr("sys.argv", [*command, "--out", str(tmp_path / name), "--max-device-memory", budget])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    assert run("ours.zarr", "6MB")[0] == 0
    assert contents(tmp_path / "ours.zarr") == contents(plain.path)
    code, error = run("no.zarr", "1MB")
    assert code == 2
    assert "error: 1.0 MB of device memory are too little: two blocks of 0.4 MB" in error
    assert not (tmp_path / "no.zarr").exists()


@pytest.mark.parametrize(
    ("budget", "batch", "message"),
    [
        ("much", None, "'much' is no size: write 4GB"),
        (100_000, None, r"0\.1 MB of device memory are too little: .* a batch of 1 need 1MB"),
        (small_budget(), 64, r"a batch of 64 need 1MB: .* or a batch size below 64"),
    ],
)
def test_refusals_come_before_anything_is_written(tmp_path, budget, batch, message):
    with pytest.raises(UserError, match=message):
        extract(
            tiny_backbone(),
            tiny_samples(),
            out=tmp_path / "c.zarr",
            max_device_memory=budget,
            batch_size=batch,
            precision="float32",
        )
    assert list(tmp_path.iterdir()) == []


def test_weights_larger_than_the_memory_are_mapped_and_streamed_without_being_asked(tmp_path, monkeypatch):
    options = {"weights": DIGITS_WEIGHTS, "limit": 20, "precision": "float32", "batch_size": 4}
    plain = extract("vit_digits", "digits", out=tmp_path / "a.zarr", **options)
    mapped = []
    load = inputs_module.load_backbone

    def watched(*arguments, **named):
        backbone = load(*arguments, **named)
        mapped.append((named["mapped"], backbone))
        return backbone

    monkeypatch.setattr(inputs_module, "load_backbone", watched)
    monkeypatch.setattr(inputs_module, "DEVICE_SHARE", 1.0)
    monkeypatch.setattr(inputs_module, "available_memory", lambda _: 3_000_000)
    whole = extract("vit_digits", "digits", out=tmp_path / "b.zarr", **options)
    assert mapped[-1][0] is False
    assert mapped[-1][1].streamed is None
    size = DIGITS_WEIGHTS.stat().st_size
    assert size < 3_000_000
    monkeypatch.setattr(inputs_module, "available_memory", lambda _: size - 1)
    ours = extract("vit_digits", "digits", out=tmp_path / "c.zarr", **options | {"batch_size": 1})
    assert mapped[-1][0] is True
    assert len(mapped[-1][1].groups(1, torch.float32)) > 1
    assert contents(whole.path) == contents(plain.path)
    assert ours.manifest.identity == plain.manifest.identity


@pytest.mark.slow
def test_plan_says_what_streaming_costs(tmp_path):
    plain = plan_extraction(tiny_backbone(), tiny_samples(), out=tmp_path / "c.zarr", precision="float32")
    assert plain["device_memory"]["streamed"] is False
    backbone = tiny_backbone()
    assert plain["device_memory"]["weights"] == sum(p.nbytes for p in backbone.model.parameters())
    streamed = plan_extraction(
        backbone,
        tiny_samples(),
        out=tmp_path / "c.zarr",
        precision="float32",
        batch_size=4,
        max_device_memory=small_budget(),
    )["device_memory"]
    blocks = sum(p.nbytes for p in backbone.model.blocks.parameters())
    assert (streamed["streamed"], streamed["groups"], streamed["moved"]) == (True, 4, blocks)
    assert streamed["images"] == MAX_AT_ONCE
    json.dumps(streamed)


def test_a_pass_takes_as_many_batches_as_the_host_can_hold():
    assert batches_at_once(10_000, 64, 10**12) == MAX_AT_ONCE // 64
    assert batches_at_once(50_000_000, 10, 16 * 10**9) == 8
    assert batches_at_once(50_000_000, 64, 10**6) == 1
    assert batches_at_once(50_000_000, 64, -5) == 1
