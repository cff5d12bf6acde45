"""Cost of an extraction, and when it pays: arithmetic on measured speeds, no effects."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from losa_cache.machine.sizes import readable_bytes

EPOCHS = 100  # that `losa-cache train` does by default: a cache must pay within one run, or it serves a sweep only
MEMORY_SHARE = 0.8  # of the free memory, that a cache may fill and still be read from there in the second epoch
HOUR = 3600.0


@dataclass(frozen=True)
class Speeds:
    """Speeds that were measured on this machine.

    Attributes:
        write, read, reread: bytes a second of the target disk: writing with fsync, reading cold, and reading from the
            page cache.
        decode: images a second of decoding.
        forward: images a second of the backbone, including encoding.
        shared: whether decoding and the backbone share the processor.
        memory: free bytes.
        free: bytes on the disk.
    """

    write: float
    read: float
    reread: float
    decode: float
    forward: float
    shared: bool
    memory: int
    free: int

    @property
    def online(self) -> float:
        """Images a second with the backbone in the loop."""
        if self.shared:
            return 1 / (1 / self.decode + 1 / self.forward)
        return min(self.decode, self.forward)


@dataclass(frozen=True)
class Candidate:
    """One way of caching.

    Attributes:
        precision: its name.
        total: bytes of the whole cache.
        row: bytes of one row.
        unpack: rows a second that are decompressed and decoded for training.
    """

    precision: str
    total: int
    row: float
    unpack: float


@dataclass(frozen=True)
class Forecast:
    """The cost of a candidate.

    Attributes:
        candidate: the candidate.
        fits: whether the disk is large enough.
        extraction: duration in seconds.
        cached, online: seconds that an epoch takes to get the features; the side network's own time comes on top of
            both.
        break_even: number of epochs after which the extraction has paid; ``None`` for never.
    """

    candidate: Candidate
    fits: bool
    extraction: float
    cached: float
    online: float
    break_even: int | None

    @property
    def hours(self) -> float:
        """Hours of the extraction."""
        return short(self.extraction / HOUR)

    @property
    def pays(self) -> bool:
        """Whether it fits and pays within one run."""
        return self.fits and self.break_even is not None and self.break_even <= EPOCHS

    def figures(self) -> dict[str, Any]:
        """Give the figures for JSON."""
        return {
            "precision": self.candidate.precision,
            "bytes": self.candidate.total,
            "bytes_per_row": round(self.candidate.row),
            "fits": self.fits,
            "hours_to_extract": self.hours,
            "cached_epoch_seconds": short(self.cached),
            "break_even_epochs": self.break_even,
        }


def forecast(candidate: Candidate, speeds: Speeds, *, samples: int, views: int) -> Forecast:
    """Predict one candidate.

    Args:
        candidate: bytes and decoding speed.
        speeds: of the machine.
        samples: number of samples of the data set.
        views: rows of each sample; an epoch reads one of them.
    """
    resident = candidate.total <= MEMORY_SHARE * speeds.memory
    reading = (speeds.reread if resident else speeds.read) / candidate.row
    cached, online = samples / min(reading, candidate.unpack), samples / speeds.online
    extraction = samples * views / min(speeds.online, speeds.write / candidate.row)
    break_even = ceil(extraction / (online - cached)) if cached < online else None
    return Forecast(candidate, candidate.total <= speeds.free, extraction, cached, online, break_even)


def on_gpus(candidate: Candidate, speeds: Speeds, *, gpus: int, rows: int) -> dict[str, Any]:
    """Predict an extraction by several GPUs, each as fast as the one that was measured, with a process for each.

    Args:
        candidate: bytes of a row.
        speeds: of the machine. Its cores decode for all GPUs, and its disk takes what all of them write.
        gpus: how many.
        rows: to extract.

    Returns:
        ``count``, ``hours``, ``gpu_hours`` of all together, ``images_per_second``, what these are ``limited_by``, and
        ``busy``: the ``hours`` if neither decoding nor writing held the GPUs up, and for that the images a second to
        ``decode`` and the bytes a second to ``write``.
    """
    able = {"the GPUs": gpus * speeds.forward, "decoding": speeds.decode, "the disk": speeds.write / candidate.row}
    slowest = min(able, key=lambda part: able[part])
    hours, busy = rows / able[slowest] / HOUR, able["the GPUs"]
    return {
        "count": gpus,
        "hours": short(hours),
        "gpu_hours": short(gpus * hours),
        "images_per_second": short(able[slowest]),
        "limited_by": slowest,
        "busy": {"hours": short(rows / busy / HOUR), "decode": short(busy), "write": round(busy * candidate.row)},
    }


def recommend(chosen: Forecast, others: Sequence[Forecast]) -> str:
    """Say in one sentence what to do.

    Args:
        chosen: forecast for the requested precision.
        others: forecasts for other precisions, in the order of preference.
    """
    precision = chosen.candidate.precision
    if chosen.pays:
        return f"Extract: the cache pays for itself after {_epochs(chosen.break_even)} and serves every run after that."
    trouble = _trouble(chosen)
    for other in others:
        if other.pays:
            return (
                f"Extract with --precision {other.candidate.precision}: it pays for itself after "
                f"{_epochs(other.break_even)}, while with {precision} {trouble}."
            )
    if not chosen.fits and chosen.break_even is not None:
        return f"Extract fewer --layers, or train online: with {precision} {trouble}, and no other precision pays."
    return f"Do not cache: train online (losa-cache train --online), for with {precision} {trouble}."


def _trouble(found: Forecast) -> str:
    if not found.fits:
        return f"the cache of {readable_bytes(found.candidate.total)} does not fit the disk"
    if found.break_even is None:
        return "reading an epoch takes longer than running the backbone"
    return f"it takes {_epochs(found.break_even)} until the extraction has paid"


def short(value: float) -> float:
    """Round to four digits: more were not measured."""
    return float(f"{value:.4g}")


def _epochs(count: int | None) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"
