"""Decode samples to batches of pixels, in parallel and a few batches ahead of the consumer.

Plain images and clips are decoded by threads, because the libraries release the interpreter lock. Augmented images are
decoded by worker processes, because timm's random transforms draw from process-wide generators, which threads would
share.
"""

import mmap
import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from losa_cache.data.augment import seed_generators
from losa_cache.data.clips import Clip
from losa_cache.data.nvjpeg import DeviceImages
from losa_cache.data.picture import upright
from losa_cache.data.samples import Samples
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from losa_cache.extras import MissingExtraError
from losa_cache.machine.prefetch import work_ahead
from losa_cache.stop import SIGNALS, WARNINGS

DECODE_AHEAD = 2

View = tuple[int, int | None]
"""A sample's index and which augmentation of it, ``None`` for the plain image; or which clip, ``None`` for clip 0."""

Found = tuple[int, NDArray[np.uint8] | str]
"""A sample's index and its pixels, shaped as ``InputSpec.shape``, or why there are none."""


@dataclass(frozen=True)
class Decoded:
    """A batch of pixels.

    Attributes:
        pixels: uint8 ``(batch, channels, height, width)``, for clips ``(batch, frames, channels, height, width)``;
            black if decoding failed.
        failures: for each position in the batch that failed, the index of its sample and the reason.
    """

    pixels: Tensor
    failures: dict[int, tuple[int, str]]

    def require(self, samples: Samples, advice: str) -> None:
        """Refuse a batch if one of its samples did not decode.

        Raises:
            UserError: naming the first image or video that did not.
        """
        kind = "image" if samples.clip is None else "video"
        for index, reason in self.failures.values():
            raise UserError(f"{kind} {samples.ids[index]!r} does not decode ({reason}): {advice}.")


class Decoder:
    """Decode and transform views of samples.

    Args:
        samples: the samples that views refer to.
        spec: the input of the backbone, an image or a video. A backbone of images gets the middle frame of a clip.
        workers: number of threads, or of processes if images are augmented.
        augment: timm's name of the augmentation, or ``None``.
        seed: seed of the augmentation.
        clips: number of clips of a video; view v is clip v.
        pin: put pixels into pinned memory, for a GPU.
        turn: turn pictures upright, as their EXIF orientation or their video's display matrix says.
        on: the device to decode JPEG files on, and to leave the pixels on (``losa_cache.data.nvjpeg``); ``None``:
            Pillow decodes everything.

    Raises:
        UserError: for clips of images, or augmented ones.
    """

    def __init__(
        self,
        samples: Samples,
        spec: InputSpec,
        *,
        workers: int,
        augment: str | None = None,
        seed: int = 0,
        clips: int = 1,
        pin: bool = False,
        turn: bool = False,
        on: torch.device | None = None,
    ) -> None:
        self._shape, self._pin = spec.shape, pin
        self._images = None if on is None else DeviceImages(samples, spec, on, turn=turn)
        self._views = _Views(samples, spec, augment, seed, clips, turn)
        self._threads: ThreadPoolExecutor | None = None
        self._processes: DataLoader[Found] | None = None
        if augment is None:
            self._threads = ThreadPoolExecutor(workers, "decode")
        else:
            self._plan, self._obedience = _Plan(), _Obedience()
            self._processes = DataLoader(
                self._views,
                batch_sampler=self._plan,
                num_workers=workers,
                collate_fn=_as_arrays,
                worker_init_fn=self._obedience,
                multiprocessing_context="fork",  # samples may live in memory: they are not pickled
                persistent_workers=True,
                generator=torch.Generator(),  # the caller's is left alone
            )

    def batches(self, plan: Iterable[list[View]], *, ahead: int = DECODE_AHEAD) -> Generator[Decoded, None, None]:
        """Yield a batch for each sequence of views, in order; up to ``ahead`` batches are decoded in advance.

        Processes decode at most two batches ahead each, whatever ``ahead`` is.
        """
        if self._processes is not None:
            self._plan.batches = plan
            try:
                for found in self._processes:
                    yield self._collate(found)
            except RuntimeError as error:
                if "worker" not in str(error):
                    raise
                raise UserError(
                    f"a process that decodes images died ({str(error).splitlines()[0]}): if the machine is short of "
                    "memory, give fewer --workers."
                ) from error
        else:
            with closing(work_ahead(self._by_threads, plan, ahead)) as decoded:
                for batch in decoded:
                    if batch.pixels.is_cuda:  # its memory is not used again before the caller's work with it is done
                        batch.pixels.record_stream(torch.cuda.current_stream(batch.pixels.device))
                    yield batch

    def close(self) -> None:
        """Stop decoding."""
        if self._threads is not None:
            self._threads.shutdown()
        if self._processes is not None:
            self._obedience.end()
        self._processes = None  # its workers end with it

    def _by_threads(self, views: Sequence[View]) -> Decoded:
        assert self._threads is not None
        if self._images is None:
            return self._collate(list(self._threads.map(self._views.__getitem__, views)))
        pixels, left = self._images.decode(list(self._threads.map(self._images.read, (index for index, _ in views))))
        if not left:
            return Decoded(pixels, {})
        rest = self._collate(list(self._threads.map(self._views.__getitem__, [views[place] for place in left])))
        self._images.fill(pixels, left, rest.pixels)
        return Decoded(pixels, {left[place]: failure for place, failure in rest.failures.items()})

    def _collate(self, found: Sequence[Found]) -> Decoded:
        pixels = torch.empty(len(found), *self._shape, dtype=torch.uint8, pin_memory=self._pin)
        filled = pixels.numpy()  # torch's own fill and copy would start a second team of OpenMP threads on this thread
        failures: dict[int, tuple[int, str]] = {}
        for place, (index, image) in enumerate(found):
            if isinstance(image, str):
                failures[place], filled[place] = (index, image), 0
            else:
                filled[place] = image
        return Decoded(pixels, failures)


class _Views(Dataset[Found]):
    """A function from a view to its pixels, or to the reason why there are none."""

    def __init__(
        self, samples: Samples, spec: InputSpec, augment: str | None, seed: int, clips: int, turn: bool
    ) -> None:
        self._samples, self._seed = samples, seed
        self._seen = upright if turn else _as_stored
        self._clip = Clip(spec.frames, spec.stride, count=clips)
        samples.require_clips(self._clip)
        if augment is not None and (spec.frames > 1 or clips > 1):
            raise UserError(f"augment is {augment!r}, but clips of videos cannot be augmented: leave it out.")
        self._plain = spec.transform()
        self._random = None if augment is None else spec.augmentation(augment)
        self._last: tuple[int, Image.Image] | None = None

    def __getitem__(self, view: View) -> Found:
        index, draw = view
        try:
            if self._samples.clip is not None and self._random is None:
                clip = self._samples.clip(index, replace(self._clip, number=draw or 0))
                frames = [self._plain(self._seen(frame)).numpy() for frame in clip]
                return index, frames[0] if self._clip.frames == 1 else np.stack(frames)
            image = self._decoded(index)
            if draw is None or self._random is None:
                return index, self._plain(image).numpy()
            seed_generators(self._seed, draw, self._samples.ids[index])
            return index, self._random(image).numpy()
        except MissingExtraError:
            raise
        except Exception as error:  # decoders raise anything; the image is named and the choice is the user's
            return index, f"{type(error).__name__}: {error}"

    def _decoded(self, index: int) -> Image.Image:
        if self._random is None:
            return self._seen(self._samples.load(index))
        if self._last is None or self._last[0] != index:  # the views of a sample follow one another
            self._last = index, self._seen(self._samples.load(index))
        return self._last[1]


def _as_stored(image: Image.Image) -> Image.Image:
    return image


class _Plan:
    """The next work of the worker processes, which stay alive for several passes."""

    batches: Iterable[list[View]] = ()

    def __iter__(self) -> Iterator[list[View]]:
        return iter(self.batches)


def _as_arrays(found: list[Found]) -> list[Found]:
    """Send arrays through a pipe: tensors would be sent through /dev/shm, which is small in containers."""
    return found


class _Obedience:
    """Leave signals to the main process, which ends the workers when it is done with them.

    A signal to a whole group or job reaches workers, too. They go on decoding, so that the main process can stop at a
    clean point. The signal that it sends to a worker which does not end by itself comes after :meth:`end`.
    """

    def __init__(self) -> None:
        self._ending = mmap.mmap(-1, 1)  # shared with the processes forked later

    def end(self) -> None:
        """Let workers obey signals again."""
        self._ending[0] = 1

    def __call__(self, _: int) -> None:
        """Begin, in a worker."""
        for number in (*SIGNALS, *WARNINGS):
            signal.signal(number, self._take)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._ending[0]:
            os._exit(128 + number)
