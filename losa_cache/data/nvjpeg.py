"""Decode and resize JPEG files on the GPU by nvJPEG, for machines with few CPU cores.

Pixels differ a little from those of Pillow, the default decoder: nvJPEG rounds and interpolates colours differently,
    and torch resizes like Pillow except for rounding. So the choice is a part of a cache's identity. Pillow decodes
    files that are no complete JPEG, have another number of colours than one or three (CMYK), or are refused by nvJPEG.
    Which images these are depends only on the images.
"""

import io
import logging
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from losa_cache.data.names import NVJPEG, PILLOW, require_decoder_name
from losa_cache.data.picture import exif_orientation
from losa_cache.data.samples import Samples
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, read_file

log = logging.getLogger(__name__)

AT_ONCE = 16  # images that lie on the device in full size
UPRIGHT, FIRST_THAT_EXCHANGES_AXES = 1, 5
MIRRORED = {1: (), 2: (-1,), 3: (-2, -1), 4: (-2,), 5: (), 6: (-1,), 7: (-2, -1), 8: (-2,)}
"""By EXIF orientation: which axes are mirrored, after height and width have changed places from 5 on."""
START, END = b"\xff\xd8\xff", b"\xff\xd9"
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of the segments that say an image's size and colours


def require_decoder(name: str, device: torch.device, *, augment: str | None, budget: int | None) -> None:
    """Check that the decoder works with these options.

    Args:
            name: name of the decoder.
            device: device of the backbone.
        augment: name of an augmentation, or ``None``.
        budget: bytes of the device that a streamed backbone may take, or ``None``.

    Raises:
        UserError: if not.
    """
    require_decoder_name(name)
    if name == PILLOW:
        return
    if device.type != "cuda":
        raise UserError(
            f"decoder is {name!r}, which needs a CUDA device, and the backbone is on {device}: choose {PILLOW}, or run "
            "this on a machine with a GPU."
        )
    if augment is not None:
        raise UserError(
            f"decoder is {name!r}, but augment ({augment!r}) draws on the CPU: choose {PILLOW}, or no augmentation."
        )
    if budget is not None:
        raise UserError(f"decoder is {name!r}, but the backbone needs the device's memory: choose {PILLOW}.")
    try:
        picture = io.BytesIO()
        Image.new("RGB", (16, 16)).save(picture, "JPEG")
        decode_jpeg([_bytes(picture.getvalue())], device=device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"decoder is {name!r}, but torchvision cannot use nvJPEG here ({reason}): choose {PILLOW}."
        ) from error


def require_files(name: str, samples: Samples) -> None:
    """Check that the decoder can decode a data set's images.

    Raises:
        UserError: if they are not image files, or something is to be done with them that nvJPEG does not do.
    """
    if name == NVJPEG and (not samples.stored or samples.clip is not None):
        raise UserError(f"decoder is {name!r}, but data set {samples.name!r} is not of image files: choose {PILLOW}.")
    if name == NVJPEG and (asked := [own for own in samples.pixels.fields() if own != "range"]):  # JPEG has 8 bits
        raise UserError(
            f"decoder is {name!r}, which takes JPEG files as they are: choose {PILLOW}, or leave out "
            f"{' and '.join(asked)}."
        )


class DeviceImages:
    """Decode JPEG files on a device, and bring them to a backbone's size there.

    Args:
        samples: of image files.
        spec: the input of the backbone.
        device: a CUDA device; on the CPU libjpeg decodes in place of nvJPEG.
        turn: turn pictures upright, as their EXIF orientation says.
    """

    def __init__(self, samples: Samples, spec: InputSpec, device: torch.device, *, turn: bool = False) -> None:
        self._turn = turn
        self._samples, self._shape, self.device = samples, spec.size, device
        self._resize = spec.resize()
        self._mode = ImageReadMode.GRAY if spec.size[0] == 1 else ImageReadMode.RGB
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._refused = False

    def read(self, index: int) -> tuple[Tensor, int] | None:
        """Read a file: its bytes as uint8 and its EXIF orientation.

        ``None`` if it is no complete JPEG file or cannot be read; Pillow then reads it, and says why if it cannot.
        """
        try:
            content = self._stored(index)
        except (UnreadableError, OSError, ValueError):
            return None
        whole = content.startswith(START) and content.rstrip(b"\0").endswith(END)
        if not whole or components(content) not in (1, 3):
            return None
        return _bytes(content), orientation_of(content) if self._turn else UPRIGHT

    def _stored(self, index: int) -> bytes:
        if self._samples.encoded is not None:
            return self._samples.encoded(index)
        assert self._samples.file is not None
        return read_file(self._samples.file(index))

    def decode(self, files: Sequence[tuple[Tensor, int] | None]) -> tuple[Tensor, list[int]]:
        """Decode and resize what :meth:`read` gave.

        Returns:
            uint8 ``(batch, channels, height, width)`` on the device, and the positions that Pillow must fill; these are
            black.
        """
        with torch.cuda.stream(self._stream):  # nothing where there is none
            pixels = torch.zeros(len(files), *self._shape, dtype=torch.uint8, device=self.device)
            left = [place for place, content in enumerate(files) if content is None]
            there = [(place, *content) for place, content in enumerate(files) if content is not None]
            for start in range(0, len(there), AT_ONCE):
                part = there[start : start + AT_ONCE]
                images = self._decoded([content for _, content, _ in part])
                for (place, _, orientation), image in zip(part, images, strict=True):
                    if image is None:
                        left.append(place)
                    else:
                        pixels[place] = self._resize(turned(image, orientation))
        self._wait()
        return pixels, left

    def fill(self, pixels: Tensor, places: list[int], rest: Tensor) -> None:
        """Fill the positions that :meth:`decode` left with what Pillow decoded."""
        with torch.cuda.stream(self._stream):
            pixels[places] = rest.to(pixels.device)
        self._wait()

    def _wait(self) -> None:
        """Wait until what was begun on the device is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def _decoded(self, files: list[Tensor]) -> Iterator[Tensor | None]:
        """Decode files together or, if that fails, one by one; ``None`` for a file that is refused."""
        self._wait()  # nvJPEG writes by a stream of its own, perhaps where an image lay that is still being resized
        try:
            yield from decode_jpeg(files, self._mode, device=self.device)
            return
        except RuntimeError:
            pass
        for content in files:
            try:
                image = decode_jpeg([content], self._mode, device=self.device)[0]
            except RuntimeError as error:
                image = None
                if not self._refused:
                    self._refused = True
                    log.info("Images that nvJPEG refuses (%s) are decoded by Pillow.", str(error).splitlines()[0])
            yield image


def orientation_of(content: bytes) -> int:
    """Read the EXIF orientation of a JPEG file; 1 if it is missing or damaged."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return exif_orientation(image)
    except Exception:  # as of a file that Pillow does not read: nvJPEG may
        return UPRIGHT


def turned(image: Tensor, orientation: int) -> Tensor:
    """Turn pixels ``(channels, height, width)`` as an EXIF orientation, 1 to 8, says."""
    if orientation >= FIRST_THAT_EXCHANGES_AXES:
        image = image.transpose(-1, -2)
    axes = MIRRORED[orientation]
    return image.flip(axes) if axes else image


def components(content: bytes) -> int:
    """Read from a JPEG file how many colours it has: 0 if it does not say."""
    at = 2
    while at + 9 < len(content):
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        if marker in FRAMES:
            return content[at + 9]
        at += 2 + length
    return 0


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
