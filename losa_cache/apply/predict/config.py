"""The options of ``predict``."""

from dataclasses import dataclass
from typing import Annotated

from losa_cache.errors import UserError, require_counts
from losa_cache.machine.device_names import require_device_name
from losa_cache.machine.sizes import parse_bytes
from losa_cache.options import Option

PILLOW_WARNS, PILLOW_REFUSES = 89_478_485, 178_956_970
"""Pixels above which Pillow takes a picture for a decompression bomb: with a warning, and with an error."""


@dataclass(frozen=True)
class PredictConfig:
    """What is predicted, where to, and by what.

    Attributes:
        out: a file whose suffix says the format (``losa_cache.apply.predict.formats``); without one nothing is written.
        top_k: classes of each image; all of them where an adapter has fewer, and of several labels.
        embed: give refined feature vectors in place of predictions.
        weights: of the backbone, as of ``losa_cache.load_backbone``; by default what a cache of this user had, or
            timm's own.
        batch_size: images a forward pass.
        device: ``cpu``, ``cuda``, ``cuda:1``; by default the GPU where there is one.
        workers: decoding threads; by default one a core, at most 16.
        max_device_memory: of the backbone, as of ``losa_cache.ExtractConfig``.
        max_pixels: larger pictures are skipped before they are decoded.
    """

    out: Annotated[
        str | None,
        Option(
            "File to write: .csv, .jsonl or .parquet; .zarr for maps, or a folder with a slash at its end (masks/) for "
            "masks as PNG files; with --embed .npy, .parquet or .zarr. Default: a table.",
            path=True,
        ),
    ] = None
    top_k: Annotated[int, Option("Most probable classes to give of each image; of several labels all are given.")] = 5
    embed: Annotated[bool, Option("Write refined feature vectors in place of predictions.")] = False
    weights: Annotated[
        str | None,
        Option("File of the backbone's weights; default: where a cache of yours had them, or timm's.", path=True),
    ] = None
    batch_size: Annotated[int, Option("Images in a forward pass.")] = 64
    device: Annotated[str | None, Option("cpu, cuda or cuda:1; default: the GPU if there is one.")] = None
    workers: Annotated[int | None, Option("Threads that decode; default: one a core.")] = None
    max_device_memory: Annotated[
        str | int | None,
        Option("Limit of device memory, such as 4GB or 1.5GiB; a larger backbone streams through the device."),
    ] = None
    max_pixels: Annotated[
        int, Option("Skip pictures of more pixels, which may be decompression bombs; at most 178956970.")
    ] = PILLOW_WARNS

    def __post_init__(self) -> None:
        require_counts(top_k=self.top_k, batch_size=self.batch_size, workers=self.workers, max_pixels=self.max_pixels)
        if self.device is not None:
            require_device_name(self.device)
        if self.max_device_memory is not None:
            parse_bytes(self.max_device_memory)
        if self.max_pixels > PILLOW_REFUSES:
            raise UserError(
                f"max-pixels is {self.max_pixels}: Pillow decodes no picture of more than {PILLOW_REFUSES}."
            )
