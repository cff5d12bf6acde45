"""Extract and train from images that are in memory: here noisy bars, made by a generator."""

from collections.abc import Iterator

import numpy as np

import losa_cache as lc

CLASSES = ("horizontal", "vertical")


def pictures(labels: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Make one picture a label: a bright bar somewhere on a noisy ground, uint8 (16, 16, 3)."""
    rng = np.random.default_rng(seed)
    for label in labels:
        picture = rng.normal(60, 30, (16, 16, 3))
        place = rng.integers(3, 10)
        picture[place : place + 3] += 120
        if CLASSES[label] == "vertical":
            picture = picture.swapaxes(0, 1)
        yield picture.clip(0, 255).astype(np.uint8)


caches = {}
for seed, (split, count) in enumerate({"train": 160, "test": 80}.items()):
    labels = np.arange(count) % 2
    samples = lc.Samples.from_images("bars", pictures(labels, seed), labels, CLASSES, split=split)
    caches[split] = lc.extract("vit_digits", samples)

result = lc.train(caches["train"], rank=4, epochs=5, val_fraction=0.2)
tested = lc.evaluate_run(result.run, cache=caches["test"].path)
print(f"test accuracy: {tested['top1']:.1f} % of {tested['samples']} images")
