"""The options of ``plan`` and ``extract``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from losa_cache.cache.precision_names import MOST_BITS
from losa_cache.errors import UserError, require_counts
from losa_cache.extract.part import Part
from losa_cache.folders import is_url
from losa_cache.inputs_config import STORED, WORKERS, InputsConfig, of_images
from losa_cache.machine.device_names import require_device_name
from losa_cache.machine.gpus import count_gpus, parse_gpus
from losa_cache.machine.sizes import parse_bytes
from losa_cache.options import Option, options_of

if TYPE_CHECKING:
    from losa_cache.cache.location import Location

ON_ERROR = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class PlanConfig(InputsConfig):
    """What is extracted, where to, and by what.

    Attributes:
        out: the ``.zarr`` folder, or its URL (``s3://bucket/x.zarr``); by default below ``$LOSA_CACHE_HOME/caches``,
            named by content and identity.
        batch_size: images in a forward pass; by default at most 64, at most 512 MiB of activations, and what fits
            ``max_device_memory``. Results are those of this batch size, whatever the memory.
        device: ``cpu``, ``cuda`` or ``cuda:1``; by default the GPU if there is one.
        workers: decoding threads; by default one for each core, at most 16.
        max_device_memory: device memory that backbone and forward pass may take: ``"4GB"``, ``"1.5GiB"`` or a number of
            bytes. Weights that do not fit stay on the host (if ``weights`` is a safetensors file, on the disk). They
            are streamed through the device in groups of blocks, once for many batches, which are collected on the host:
            up to 1024 images that take a quarter of its free memory. The default is 80 % of the device's free memory if
            the backbone is larger than that; otherwise nothing is streamed. It is no part of the cache's identity.
        gpus: of a plan, the number of GPUs for which it is made, too; or those of an extraction.
    """

    out: Annotated[
        "str | Location | None",
        Option(
            "Cache to write: a .zarr folder or its URL; default: a folder below $LOSA_CACHE_HOME/caches.", path=True
        ),
    ] = None
    batch_size: Annotated[
        int | None, Option("Images in a forward pass; default: 64, or fewer if the activations are large.")
    ] = None
    device: Annotated[
        str | None, Option("Device that computes: cpu, cuda or cuda:1; default: the GPU if there is one.")
    ] = None
    workers: Annotated[int | None, of_images(WORKERS)] = None
    max_device_memory: Annotated[
        str | int | None,
        Option(
            "Limit of device memory, such as 4GB or 1.5GiB. A backbone that is larger is kept in host memory "
            "and streamed "
            "through the device block by block. Default: stream only if the backbone does not fit."
        ),
    ] = None
    gpus: Annotated[
        str | int | list[int] | None,
        Option(
            "Also estimate the time on this number of GPUs like this one, and the decoding and disk speed that they "
            "need; all: the GPUs of this machine."
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus is not None:
            self.require_gpus()
        require_counts(batch_size=self.batch_size, workers=self.workers)
        if self.device is not None:
            require_device_name(self.device)
        if self.max_device_memory is not None:
            parse_bytes(self.max_device_memory)
        if isinstance(self.out, str) and is_url(self.out):
            from losa_cache.cache.location import store_of

            store_of(self.out)

    def require_gpus(self) -> None:
        """Refuse what can be no number of GPUs."""
        assert self.gpus is not None
        count_gpus(self.gpus, 1)

    @property
    def named(self) -> bool:
        """Whether backbone and data set are given by name: then a cache says how its samples are computed again."""
        return isinstance(self.backbone, str) and isinstance(self.dataset, str)

    def to_json(self) -> dict[str, Any]:
        """Give what a cache stores of its extraction: what decides the numbers, and the batch size.

        Backbone and data set must be named.
        """
        stored = {own.name: getattr(self, own.name) for own in options_of(InputsConfig)}
        return stored | self.paths(str(self.dataset), Path.absolute) | {"batch_size": self.batch_size}


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(PlanConfig):
    """The options of an extraction.

    Attributes:
        on_error: ``stop`` at an image that does not decode, or ``skip``, count and list it.
        part: share the cache with other processes that are given the same: ``auto`` takes whatever nobody has, ``3/16``
            every sixteenth unit of work from the third on. By default one process writes the cache alone, unless it is
            a task of a job array (of SLURM or LSF), which shares it as by ``auto``.
        gpus: GPUs of this machine, a process for each: ``all``, ``"0,2,3"`` or a list of numbers. By default this
            process extracts alone.
        processes: so many processes on the CPU. Decoding ``workers`` are divided among processes of either kind.
    """

    on_error: Annotated[
        str, Option("What to do with an image that does not decode: stop, or skip (leave it out and list it).")
    ] = "stop"
    part: Annotated[
        str | None,
        Option(
            "Share the cache with other processes, on any machine that sees it: auto (take what no other process has "
            "claimed) or 3/16 (the third of 16 parts). Default: write it alone; in a SLURM or LSF job array, auto."
        ),
    ] = None
    gpus: Annotated[
        str | int | list[int] | None,
        Option(
            "Run one process on each of these GPUs of this machine: all, or their numbers, such as 0,2,3. Default: one "
            "process on one device."
        ),
    ] = None
    processes: Annotated[
        int | None,
        Option("Run this number of processes on the CPU of this machine. Default: 1. For GPUs there is --gpus."),
    ] = None

    def __post_init__(self) -> None:
        if self.part is not None:
            Part.parse(self.part)
        if self.on_error not in ON_ERROR:
            raise UserError(f"on-error is {self.on_error!r}: choose stop or skip.")
        require_counts(processes=self.processes)
        if self.processes is not None and self.device not in (None, "cpu"):
            raise UserError(f"--processes divides the CPU, and device is {self.device!r}: for GPUs there is --gpus.")
        super().__post_init__()

    def require_gpus(self) -> None:
        """Refuse what can name no GPU, and devices that contradict each other."""
        assert self.gpus is not None
        parse_gpus(self.gpus)
        if self.processes is not None:
            raise UserError("--gpus runs one process on each GPU: leave --processes out.")
        if self.device not in (None, "cuda"):
            raise UserError(f"--gpus names the devices, and device is {self.device!r}: leave one of the two out.")


@dataclass(frozen=True)
class Rate:
    """On the command line, short forms of the precisions ``predict:BITS`` and ``predict:ERROR%``."""

    bits: Annotated[
        float | None,
        of_images(
            "Bits a value, such as 2, 1 or 0.5: each layer is predicted from the one before it, and only the "
            "difference is stored. The same as --precision predict:BITS.",
            panel=STORED,
        ),
    ] = None
    error: Annotated[
        float | None,
        of_images(
            "Relative error that a layer may have, such as 0.2. The same as --precision predict:ERROR%, here "
            "predict:20%.",
            panel=STORED,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.bits is not None and not 0.001 <= self.bits <= MOST_BITS:
            raise UserError(f"bits is {self.bits:g}: it must lie between 0.001 and {MOST_BITS:g}, as in --bits 1.5.")
        if self.error is not None and not 0.0001 <= self.error <= 0.99:
            raise UserError(f"error is {self.error:g}: it must lie between 0.0001 and 0.99, as in --error 0.2.")
