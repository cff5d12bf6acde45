"""Extract and train from Python objects: here noisy bars, in a data set as torch has them."""

import numpy as np

import losa_cache as lc


class Bars:
    """Pictures of a bright bar on a noisy ground, uint8 (16, 16, 3); every second one is vertical."""

    classes = ("horizontal", "vertical")

    def __init__(self, count: int, seed: int) -> None:
        self.targets = np.arange(count) % 2  # known without an image: losa-cache need not ask for each
        self.seed = seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng((self.seed, index))
        picture = rng.normal(60, 30, (16, 16, 3))
        place = rng.integers(3, 10)
        picture[place : place + 3] += 120
        label = int(self.targets[index])
        return (picture.swapaxes(0, 1) if label else picture).clip(0, 255).astype(np.uint8), label


caches = {}
for seed, (split, count) in enumerate({"train": 160, "test": 80}.items()):
    samples = lc.Samples.of(Bars(count, seed), "bars", split=split)
    caches[split] = lc.extract("vit_digits", samples)

result = lc.train(caches["train"], rank=4, epochs=5, val_fraction=0.2)
tested = lc.evaluate_run(result.run, cache=caches["test"].path)
print(f"test accuracy: {tested['top1']:.1f} % of {tested['samples']} images")
