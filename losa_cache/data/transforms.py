"""Transform a decoded image to the pixels that a backbone expects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

from losa_cache.data.normalisation import NORMALISATIONS, TIMM, require_normalisation
from losa_cache.data.picture import converted
from losa_cache.errors import UserError

RESIZE_MODES = ("crop", "exact")
CROP_ONLY = "crop"


@dataclass(frozen=True)
class InputSpec:
    """The input that a backbone expects, in timm's terms; a part of a cache's identity.

    ``size`` is (channels, height, width); ``mean`` and ``std`` refer to pixels scaled to 0 ... 1. A backbone of videos
    takes ``frames`` frames, ``stride`` apart (0: spread evenly over the whole video); for images ``frames`` is 1.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    frames: int = 1
    stride: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's pixels: ``size``; for a video, the number of frames comes before it."""
        return self.size if self.frames == 1 else (self.frames, *self.size)

    @classmethod
    def from_timm(cls, config: dict[str, Any]) -> "InputSpec":
        """Take the fields of timm's resolved data config."""
        return cls(
            size=tuple(config["input_size"]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "InputSpec":
        """Take ``fields.input`` of a cache."""
        taken: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**taken)

    def resized(self, mode: str) -> "InputSpec":
        """Follow ``--resize``: ``crop`` keeps timm's resize and crop, ``exact`` squeezes the whole image in.

        Raises:
            UserError: for another mode.
        """
        if mode not in RESIZE_MODES:
            raise UserError(f"unknown resize mode {mode!r}: choose one of {', '.join(RESIZE_MODES)}.")
        return replace(self, crop_pct=1.0, crop_mode="squash") if mode == "exact" else self

    def normalised(self, name: str) -> "InputSpec":
        """Follow ``--normalise``: ``timm`` keeps mean and deviation.

        Raises:
            UserError: for an unknown name, or one of three channels that are not all alike, for an input of one.
        """
        require_normalisation(name)
        if name == TIMM:
            return self
        mean, std = NORMALISATIONS[name]
        if (count := self.size[0]) != len(mean):
            if len({*mean}) > 1:
                raise UserError(f"normalise is {name!r}, which is for three channels, and the backbone takes {count}.")
            mean, std = mean[:1] * count, std[:1] * count
        return replace(self, mean=mean, std=std)

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Build the evaluation transform: image to uint8 ``(channels, height, width)``, not yet normalised.

        The pixels are copied to the device as bytes, not floats; :meth:`normalise` follows there.
        """
        resize, mode = self.resize(), "L" if self.size[0] == 1 else "RGB"
        return lambda image: resize(converted(image, mode))

    def resize(self) -> Callable[[Image.Image | Tensor], Tensor]:
        """Build resize and crop alone, for an image of the right mode or for uint8 ``(channels, height, width)``.

        A tensor stays on its device; pixels resized there may differ by a few grey levels.
        """
        resize: Callable[[Image.Image | Tensor], Tensor] = create_transform(
            input_size=self.size, interpolation=self.interpolation, **self._frame
        )
        return resize

    def nearest(self) -> Callable[[Image.Image], Tensor]:
        """Build the same resize and crop for an image of one channel, whose values are taken over and never mixed.

        What lies beyond the image is 0.
        """
        resize: Callable[[Image.Image], Tensor] = create_transform(
            input_size=(1, *self.size[1:]), interpolation="nearest", mean=(0.0,), **self._frame
        )
        return resize

    @property
    def _frame(self) -> dict[str, Any]:
        return {"crop_pct": self.crop_pct, "crop_mode": self.crop_mode, "normalize": False}

    def augmentation(self, policy: str) -> Callable[[Image.Image], Tensor]:
        """Build timm's training transform: random resized crop, horizontal flip and a policy; not yet normalised.

        It draws from the process-wide generators (``losa_cache.data.augment``).

        Args:
            policy: timm's name, as ``rand-m9-mstd0.5-inc1``, or ``crop`` for crop and flip alone.

        Raises:
            UserError: for a policy that timm does not know.
        """
        mean = self.mean * 3 if self.size[0] == 1 else self.mean
        try:
            if not policy:  # timm would crop and flip alone
                raise ValueError("it is empty")
            augment = create_transform(
                input_size=self.size,
                is_training=True,
                interpolation=self.interpolation,
                mean=mean,
                normalize=False,
                **({"color_jitter": None} if policy == CROP_ONLY else {"auto_augment": policy}),
            )
        except (AssertionError, ValueError, KeyError, IndexError) as error:
            raise UserError(
                f"timm does not know the augmentation {policy!r} ({error}): try rand-m9-mstd0.5-inc1, augmix-m3-w3, "
                f"original, 3a, or {CROP_ONLY} for a random crop and flip alone."
            ) from error
        if self.size[0] == 1:  # timm's policies are for colour images
            return lambda image: rgb_to_grayscale(augment(converted(image, "RGB")))
        return lambda image: augment(converted(image, "RGB"))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn uint8 pixels ``(batch, *shape)`` into float32 of zero mean and unit deviation."""
        mean, std = _on_device(self.mean, pixels.device), _on_device(self.std, pixels.device)
        return (pixels.float() / 255 - mean) / std


@cache  # a copy from pageable memory in every batch would wait for the device
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(-1, 1, 1)
