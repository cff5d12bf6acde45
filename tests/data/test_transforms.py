"""Pixels against timm's own evaluation transform."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError

CONFIG = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.4),
    "crop_pct": 0.875,
    "crop_mode": "center",
}


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))


def test_equals_timms_evaluation_transform(image):
    spec = InputSpec.from_timm(CONFIG)
    ours = spec.normalise(spec.transform()(image)[None])[0]
    torch.testing.assert_close(ours, create_transform(**CONFIG)(image), rtol=1e-5, atol=1e-5)


def test_exact_squeezes_the_whole_image_in(image):
    pixels = InputSpec.from_timm(CONFIG).resized("exact").transform()(image)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_every_image_mode_becomes_three_channels(image, mode):
    converted = Image.new("I;16", (50, 40)) if mode == "I;16" else image.convert(mode)
    pixels = InputSpec.from_timm(CONFIG).transform()(converted)
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.uint8)


def test_unknown_resize_modes_are_refused():
    with pytest.raises(UserError, match="crop, exact"):
        InputSpec.from_timm(CONFIG).resized("squeeze")
