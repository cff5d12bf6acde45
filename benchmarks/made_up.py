"""Backbones with random weights and images of noise: speed does not depend on them, and no download is needed."""

import numpy as np
import torch
from PIL import Image

from losa_cache.backbone import Backbone, load_backbone
from losa_cache.data.samples import Samples, hash_lines


def random_backbone(name: str, device: torch.device, *, frames: int | None = None) -> Backbone:
    """Load a backbone, of videos where ``frames`` are given, with random weights.

    The device itself draws them: on a CPU the weights of a large backbone take minutes.
    """
    with device:
        return load_backbone(name, weights="random", frames=frames).to(device)


def noise_images(count: int, *, classes: int = 10) -> Samples:
    """Make images of 224 pixels, in memory, that need no decoding."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
    ids = [f"{i:05d}" for i in range(count)]
    labels = np.arange(count, dtype=np.int64) % classes
    names = tuple(f"class {number}" for number in range(classes))
    return Samples("noise", "train", names, ids, labels, lambda i: Image.fromarray(pixels[i]), hash_lines(ids, b""))
