"""A folder of small pictures of several kinds, some of them damaged."""

from pathlib import Path

import numpy as np
from PIL import Image

from losa_cache.data.request import Request
from losa_cache.data.samples import Samples
from losa_cache.data.sources.folder import load

MODES = {"a.jpg": "RGB", "b.jpg": "L", "c.png": "RGB", "d.jpg": "CMYK", "e.jpg": "RGB", "f.jpg": "RGB"}


def picture(seed: int) -> Image.Image:
    """Something smooth, 90 x 70."""
    levels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((90, 70), Image.Resampling.BICUBIC)


def folder(root: Path) -> Samples:
    """Six images: in colour, in grey, a PNG, a CMYK one, one cut off, and one of which the middle is missing."""
    (root / "train/x").mkdir(parents=True)
    for seed, (name, mode) in enumerate(MODES.items()):
        picture(seed).convert(mode).save(root / "train/x" / name, quality=95)
    cut = root / "train/x/e.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    gone = root / "train/x/f.jpg"
    gone.write_bytes(b"\xff\xd8\xff" + b"\0" * 50 + b"\xff\xd9")
    return load(Request(str(root), "train"))
