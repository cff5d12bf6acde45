"""Augmentation by timm's own transforms, reproducible sample by sample.

timm draws from the process-wide generators of ``random``, numpy and torch. They are seeded by a key (seed, epoch and
sample id, or seed and step), so that nothing depends on threads, on the order, or on an interruption.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.mixup import Mixup, one_hot
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from losa_cache.errors import UserError


def seed_generators(*key: object) -> None:
    """Seed the process-wide generators that timm draws from, also that of the GPU."""
    text = "\0".join(map(str, key)).encode("utf-8", "surrogateescape")
    number = int.from_bytes(hashlib.sha256(text).digest()[:4], "little")
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@contextmanager
def seeded(*key: object, device: torch.device) -> Iterator[None]:
    """Seed the generators within a context, and restore their states behind it."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            seed_generators(*key)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@dataclass(frozen=True)
class BatchAugmentation:
    """Random erasing, mixup and cutmix, on normalised images on their device, as timm's training script applies them.

    Attributes:
        mixup, cutmix: alpha of the Beta distribution from which the share is drawn; 0: not used. With both, each batch
            draws one of them.
        reprob: probability that a rectangle of an image is replaced by noise.
        classes: number of classes.

    Raises:
        UserError: for a value out of its range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    reprob: float = 0.0
    classes: int = 2

    def __post_init__(self) -> None:
        for name, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= value < float("inf"):
                raise UserError(f"{name} is {value}: it must be at least 0.")
        if not 0 <= self.reprob <= 1:
            raise UserError(f"reprob is {self.reprob}: it must lie between 0 and 1.")
        if self.mixes and self.classes < 2:
            raise UserError(f"mixup and cutmix mix the labels of at least 2 classes; the data set has {self.classes}.")

    @property
    def mixes(self) -> bool:
        """Tell whether labels become shares of classes."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images: Tensor, labels: Tensor, *key: object) -> tuple[Tensor, Tensor]:
        """Augment a batch in place.

        Args:
            images: normalised, ``(batch, channels, height, width)``.
            labels: int64 ``(batch,)``.
            key: seeds the generators.

        Returns:
            the images, and the labels: unchanged, or ``(batch, classes)`` shares if images were mixed.
        """
        if not (self.reprob or self.mixes):
            return images, labels  # reading a GPU's generator would wait for the GPU
        with seeded(*key, device=images.device):
            if self.reprob:
                images = RandomErasing(self.reprob, mode="pixel", device=str(images.device))(images)
            if not self.mixes:
                return images, labels
            mix = Mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=self.classes)
            even = len(images) - len(images) % 2  # timm mixes pairs: the last of an odd batch stays as it is
            targets = one_hot(labels, self.classes)
            if even:
                _, targets[:even] = mix(images[:even], labels[:even])
            return images, targets
