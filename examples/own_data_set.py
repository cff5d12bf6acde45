"""Extract and train from images that are in memory: here noisy stripes, made by a generator."""

from collections.abc import Iterator

import numpy as np

import losa_cache as lc

CLASSES = ("horizontal", "vertical")


def pictures(labels: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Make one picture a label: stripes under noise, uint8 (16, 16, 3)."""
    noise = np.random.default_rng(seed)
    stripes = np.tile([200, 200, 50, 50], 4)
    for label in labels:
        picture = np.tile(stripes, (16, 1)) if label else np.tile(stripes[:, None], (1, 16))
        picture = picture + noise.normal(0, 60, picture.shape)
        yield np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


caches = {}
for seed, (split, count) in enumerate({"train": 160, "test": 80}.items()):
    labels = np.arange(count) % 2
    samples = lc.Samples.from_images("stripes", pictures(labels, seed), labels, CLASSES, split=split)
    caches[split] = lc.extract("vit_digits", samples)

result = lc.train(caches["train"], rank=4, epochs=5, val_fraction=0.2)
tested = lc.evaluate_run(result.run, cache=caches["test"].path)
print(f"test accuracy: {tested['top1']:.1f} % of {tested['samples']} images")
