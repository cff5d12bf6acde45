"""Where the pixels of a backbone's input lie in the file of its image: masks and depth maps follow them exactly."""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from losa_cache.data.picture import stored_frame
from losa_cache.data.samples import Samples
from losa_cache.data.transforms import InputSpec

KEPT = 64  # sizes of images whose transform is remembered


@dataclass(frozen=True)
class Frames:
    """The images that dense targets belong to, and the transform that they go through.

    Attributes:
        samples: images, in the order of the samples.
        spec: input of the backbone.
        upright: whether pictures are turned as their EXIF orientation says.
    """

    samples: Samples
    spec: InputSpec
    upright: bool

    def stored(self, sample: int) -> tuple[tuple[int, int], Image.Transpose | None]:
        """Read width and height of a sample's image as it is stored, and how it is turned.

        Raises:
            Exception: whatever a decoder raises.
        """
        if self.samples.encoded is not None:
            size, turn = stored_frame(io.BytesIO(self.samples.encoded(sample)), self.samples.pixels)
        elif self.samples.file is not None:
            size, turn = stored_frame(self.samples.file(sample), self.samples.pixels)
        else:  # pictures in memory have no orientation
            return self.samples.load(sample).size, None
        return size, turn if self.upright else None

    def pixels(self, size: tuple[int, int], turn: Image.Transpose | None) -> NDArray[np.int32]:
        """Say which pixel of a stored picture each pixel of the input is, by the nearest.

        Args:
            size: width and height of the picture as it is stored.
            turn: how it is turned.

        Returns:
            ``(height, width)`` of the input: 1 + the number of the pixel, row by row; 0 beyond the picture.
        """
        return _pixels(self.spec, size, turn)


@lru_cache(KEPT)
def _pixels(spec: InputSpec, size: tuple[int, int], turn: Image.Transpose | None) -> NDArray[np.int32]:
    """Send the numbers of the pixels themselves through the evaluation transform of a picture."""
    width, height = size
    numbers = Image.fromarray(np.arange(1, width * height + 1, dtype=np.int32).reshape(height, width))
    if turn is not None:
        numbers = numbers.transpose(turn)
    found: NDArray[np.int32] = spec.nearest()(numbers)[0].numpy()
    return found
