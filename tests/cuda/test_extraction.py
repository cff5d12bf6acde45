"""Extraction on a GPU: graphs, copies beside the computation, and that neither changes a byte."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from losa_cache.backbone.rounded import in_place
from losa_cache.cache.precision import EncodedBatch, get_precision
from losa_cache.cache.store import open_cache
from losa_cache.calibrate import fit_encoding
from losa_cache.data.decode import Decoder
from losa_cache.data.request import Request
from losa_cache.data.sources.folder import load
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from losa_cache.extract import on_cuda
from losa_cache.extract.extract import extract
from losa_cache.extract.measure import device_speed
from losa_cache.extract.meter import Meter
from losa_cache.extract.on_cuda import CudaForward
from losa_cache.extract.verify import verify_cache
from losa_cache.inputs import open_inputs
from tests.conftest import tiny_backbone, tiny_samples
from tests.data.pictures import folder, picture

pytestmark = pytest.mark.cuda
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4", "predict:1")
SMALL = {"shard_bytes": 13_000, "batch_size": 4, "device": "cuda"}


def backbone():
    return tiny_backbone(embed_dim=64, num_heads=2)


def stored(cache):
    """Every byte of the activations."""
    folder = cache.path / "activations"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def eagerly(monkeypatch):
    monkeypatch.setattr(on_cuda, "WORTH_BATCHES", 10**6)


def setup(precision, batch, gpu):
    """A backbone, its points, a fitted encoding, and pixels of three batches, the last of them smaller."""
    inputs = open_inputs(backbone(), tiny_samples(64), device=gpu, precision=precision)
    encoding = fit_encoding(inputs, workers=1).to(gpu)
    seeded = torch.Generator().manual_seed(1)
    sizes = (batch, batch, batch, batch - 1)
    pixels = [torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=seeded).pin_memory() for n in sizes]
    return inputs, encoding, pixels


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_slots_and_graphs_give_what_plain_passes_give(precision, aside, gpu):
    inputs, encoding, pixels = setup(precision, 8, gpu)
    model, points = inputs.backbone, inputs.manifest.points
    wanted = []
    for batch in pixels:
        encoded = EncodedBatch.empty(encoding, len(batch), inputs.manifest.shape, gpu)
        model.run(batch.to(gpu), points, encoded.put, compute=inputs.compute)
        wanted.append((encoded.stored.cpu(), encoded.extremes.cpu()))
    meter = Meter()
    forward = CudaForward(
        model,
        points,
        encoding,
        compute=inputs.compute,
        batch_size=8,
        full_batches=100,
        meter=meter,
        aside=aside,
    )
    assert forward.why_eager is None
    fetched = [fetch() for fetch in forward.run(pixels)]
    for (values, extremes), (theirs, extremes_of_theirs) in zip(fetched, wanted, strict=True):
        assert values.is_pinned()
        assert torch.equal(values.view(torch.uint8), theirs.view(torch.uint8))
        assert torch.equal(extremes, extremes_of_theirs)
    assert meter.forward > 0
    assert meter.copy > 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cache_extracted_by_graphs_is_one_extracted_eagerly(precision, tmp_path, monkeypatch):
    samples = tiny_samples(39)  # nine whole batches and one of three
    graphed = extract(backbone(), samples, precision=precision, out=tmp_path / "a.zarr", **SMALL)
    eagerly(monkeypatch)
    eager = extract(backbone(), samples, precision=precision, out=tmp_path / "b.zarr", **SMALL)
    assert stored(graphed) == stored(eager)


def test_an_interrupted_extraction_goes_on_to_the_same_bytes(tmp_path):
    whole = extract(backbone(), tiny_samples(39), out=tmp_path / "a.zarr", **SMALL)

    class Stopped(Meter):
        def update(self):
            super().update()
            if self.images >= 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(backbone(), tiny_samples(39), out=tmp_path / "b.zarr", meter=Stopped(), **SMALL)
    again = extract(backbone(), tiny_samples(39), out=tmp_path / "b.zarr", **SMALL)
    assert stored(again) == stored(whole)


def test_images_that_do_not_decode_are_skipped_and_leave_the_others_alone(tmp_path):
    good = extract(backbone(), tiny_samples(39), out=tmp_path / "a.zarr", **SMALL)
    some = extract(backbone(), tiny_samples(39, bad=(3, 17)), out=tmp_path / "b.zarr", on_error="skip", **SMALL)
    assert {entry["id"] for entry in some.manifest.skipped} == {"image-003", "image-017"}
    ours, theirs = (open_cache(c.path).labels for c in (some, good))
    assert (ours == -1).sum() == 2
    assert np.array_equal(ours[ours >= 0], theirs[ours >= 0])


def test_views_come_out_the_same_both_ways(tmp_path, monkeypatch):
    options = {"views": 2, "augment": "crop", **SMALL}
    graphed = extract(backbone(), tiny_samples(20), out=tmp_path / "a.zarr", **options)
    eagerly(monkeypatch)
    assert stored(extract(backbone(), tiny_samples(20), out=tmp_path / "b.zarr", **options)) == stored(graphed)


def test_rounded_weights_change_no_bit(gpu):
    model = backbone().to(gpu)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    points = [f"block.{number}" for number in range(1, model.depth + 1)]
    rounded = model.outputs(pixels, points, compute=torch.bfloat16)
    assert model.rounded_weights(torch.bfloat16)
    model._rounded = {torch.bfloat16: []}
    plain = model.outputs(pixels, points, compute=torch.bfloat16)
    assert all(map(torch.equal, rounded, plain))
    with in_place([]):
        assert model.model.blocks[0].mlp.fc1.weight.dtype == torch.float32


def test_nvjpeg_gives_pillows_pixels_but_for_a_few_levels(tmp_path, gpu):
    samples = folder(tmp_path)
    spec = InputSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")
    found = []
    for on in (gpu, None):
        decoder = Decoder(samples, spec, workers=2, on=on)
        found += decoder.batches([[(index, None) for index in range(len(samples))]])
        decoder.close()
    ours, theirs = found
    assert ours.pixels.is_cuda
    assert ours.failures == theirs.failures
    apart = (ours.pixels.cpu().int() - theirs.pixels.int()).abs()
    assert apart[:2].float().mean() <= 1.5  # smooth pictures, of 256 levels
    assert apart.max() <= 24
    assert not apart[2:].any()  # left to Pillow


def test_a_cache_decoded_by_nvjpeg_is_another_one_and_comes_out_the_same_again(tmp_path):
    (tmp_path / "data/train/x").mkdir(parents=True)
    for seed in range(24):
        picture(seed).save(tmp_path / f"data/train/x/{seed:02d}.jpg", quality=95)
    samples = load(Request(str(tmp_path / "data"), "train"))
    options = {"decoder": "nvjpeg", **SMALL}
    ours, again = (extract(backbone(), samples, out=tmp_path / f"{n}.zarr", **options) for n in "ab")
    theirs = extract(backbone(), samples, out=tmp_path / "c.zarr", **SMALL)
    assert stored(ours) == stored(again)
    assert ours.manifest.identity != theirs.manifest.identity
    assert verify_cache(ours.path, recompute=8, backbone=backbone(), dataset=samples)["recomputed"]["wrong"] == []


def test_nvjpeg_is_refused_where_there_are_no_files(tmp_path):
    with pytest.raises(UserError, match="is not of image files"):
        extract(backbone(), tiny_samples(), out=tmp_path / "c.zarr", decoder="nvjpeg", **SMALL)


def test_the_speed_of_the_device_part_is_measured_both_ways(gpu):
    inputs, _, pixels = setup("bfloat16", 8, gpu)
    encoding = get_precision("bfloat16").fit([], tokens=5, prefix=1)
    for graph, way in ((True, "graph"), (False, "eager: ")):
        speed = device_speed(
            inputs.backbone,
            inputs.manifest.points,
            encoding,
            pixels[0],
            compute=inputs.compute,
            batches=2,
            graph=graph,
        )
        assert speed.way.startswith(way)
        assert speed.extraction > 0
        assert speed.forward > 0


def graphed(inputs, encoding):
    options = {"compute": inputs.compute, "batch_size": 8, "full_batches": 100, "meter": Meter()}
    return CudaForward(inputs.backbone, inputs.manifest.points, encoding, **options)


def test_a_trunk_that_does_not_do_the_same_again_is_not_replayed(gpu, caplog):
    inputs, encoding, pixels = setup("bfloat16", 8, gpu)
    passes = iter(range(100))
    hook = inputs.backbone.model.blocks[1].register_forward_hook(lambda _, __, output: output + next(passes))
    caplog.set_level("INFO", logger="losa_cache")
    forward = graphed(inputs, encoding)
    hook.remove()
    assert forward.why_eager == "a replayed pass differs from an eager one"
    assert "not run as a CUDA graph" in caplog.text
    values, _ = forward.run(pixels[:1])[0]()
    encoded = EncodedBatch.empty(encoding, 8, inputs.manifest.shape, gpu)
    inputs.backbone.run(pixels[0].to(gpu), inputs.manifest.points, encoded.put, compute=inputs.compute)
    assert torch.equal(values, encoded.stored.cpu())


WAITS = """
import torch
from tests.cuda.test_extraction import graphed, setup
inputs, encoding, pixels = setup("bfloat16", 8, torch.device("cuda"))
inputs.backbone.model.blocks[1].register_forward_hook(lambda *_: torch.cuda.synchronize())
forward = graphed(inputs, encoding)
results = [fetch()[0] for fetch in forward.run([pixels[0]] * 3)]
print(forward.why_eager is not None and all(torch.equal(results[0], other) for other in results))
"""


def test_a_trunk_that_no_graph_can_hold_runs_eagerly():
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
