"""Images decoded and resized on a device: what is decoded there, what is left to Pillow, and who may ask for it.

libjpeg stands in for nvJPEG here; tests/cuda has the same on a GPU.
"""

import io
import re

import numpy as np
import pytest
import torch

from losa_cache.data.decode import Decoder
from losa_cache.data.nvjpeg import components, require_decoder
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from losa_cache.extract.extract import extract
from losa_cache.inputs import describe
from tests.conftest import tiny_backbone, tiny_samples
from tests.data.pictures import folder, picture

SPEC = InputSpec((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center")


def batch(samples, spec=SPEC, on=None):
    decoder = Decoder(samples, spec, workers=2, on=on)
    try:
        (found,) = decoder.batches([[(index, None) for index in range(len(samples))]])
    finally:
        decoder.close()
    return found


@pytest.mark.parametrize("mode", ["crop", "exact"])
@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_pillows_within_rounding_and_the_rest_is_left_to_pillow(tmp_path, channels, mode):
    samples = folder(tmp_path)
    spec = InputSpec((channels, 32, 32), (0.5,), (0.5,), "bicubic", 0.9, "center").resized(mode)
    ours, theirs = batch(samples, spec, torch.device("cpu")), batch(samples, spec)
    assert ours.failures == theirs.failures
    assert sorted(ours.failures) == [4, 5]
    apart = (ours.pixels.int() - theirs.pixels.int()).abs()
    assert apart.max() <= 3
    assert apart[:2].float().mean() < 0.5
    assert not apart[2:].any()


def test_the_order_of_samples_is_kept(tmp_path):
    samples = folder(tmp_path)
    order = np.array([2, 0, 1])
    wanted = batch(samples, on=torch.device("cpu")).pixels[order]
    assert torch.equal(batch(samples.select(order), on=torch.device("cpu")).pixels, wanted)


@pytest.mark.parametrize(("mode", "count"), [("RGB", 3), ("L", 1), ("CMYK", 4)])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_file_says_how_many_colours_it_has(mode, count, progressive):
    file = io.BytesIO()
    picture(0).convert(mode).save(file, "JPEG", progressive=progressive)
    assert components(file.getvalue()) == count


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0" + b"\0" * 40])
def test_a_file_that_does_not_say_has_none(content):
    assert components(content) == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"decoder": "turbo"}, "unknown decoder 'turbo': choose one of pillow, nvjpeg."),
        (
            {"decoder": "nvjpeg"},
            "needs a CUDA device, and the backbone is on cpu: choose pillow, or run this on a machine with a GPU.",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(tmp_path, options, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        extract("vit_b", "folder", data_dir=tmp_path / "none", device="cpu", **options)


def test_augmentation_and_streaming_are_refused():
    gpu = torch.device("cuda")
    with pytest.raises(UserError, match=r"augment \('crop'\) draws on the CPU"):
        require_decoder("nvjpeg", gpu, augment="crop", budget=None)
    with pytest.raises(UserError, match="needs the device's memory"):
        require_decoder("nvjpeg", gpu, augment=None, budget=1)


def test_only_another_decoder_changes_the_identity():
    options = {
        "layers": [4],
        "tap": "block",
        "embedding": False,
        "precision": "float32",
        "compute": torch.float32,
        "seed": 0,
        "limit": None,
        "views": 1,
        "augment": None,
        "clips": 1,
    }
    plain, pillow, other = (
        describe(tiny_backbone(), tiny_samples(), **options, **more)
        for more in ({}, {"decoder": "pillow"}, {"decoder": "nvjpeg"})
    )
    assert plain.identity == pillow.identity != other.identity
    assert "decoder" not in pillow.fields
