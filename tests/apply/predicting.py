"""What tests of ``predict`` share: class folders of small pictures, caches of them, and adapters trained on these."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import losa_cache as lc
from losa_cache.extract.extract import extract
from tests.conftest import tiny_backbone

CLASSES = ("a", "b", "c")
COUNT = 21
TRAINED = {"rank": 2, "epochs": 2, "lr": 0.01, "device": "cpu"}


def picture(seed, size=(9, 10)):
    """Something random, of another shape than the backbone wants."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def photos(root):
    """Class folders with 21 pictures."""
    for number in range(COUNT):
        path = root / CLASSES[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return root


def cache_of(root, out, precision="float32"):
    return extract(tiny_backbone(), "folder", data_dir=str(root), precision=precision, device="cpu", out=out)


def train(cache, out, **options):
    return lc.train(cache, out=out, **TRAINED | options).run


def probabilities(run, cache):
    """Give the probabilities of each sample of a cache, by its id, in the order of the classes."""
    model = lc.load_adapter(run, cache=cache.path, device="cpu")
    found = {}
    options = {"points": model.points, "shuffle": False, "device": "cpu"}
    with torch.inference_mode(), lc.batches(cache.path, **options) as batches:
        for batch in batches:
            found |= dict(zip(batch.ids, model(batch.blocks).double().softmax(1).numpy(), strict=True))
    return found


def ranked(entry, name):
    """The probabilities of a prediction in the order of the classes."""
    by_class = {own["class"]: own["probability"] for own in entry["predictions"][name]}
    return np.array([by_class[own] for own in CLASSES])


def files(folder):
    """The files of a folder and their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }
