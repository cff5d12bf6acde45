"""The bottleneck of an epoch: what took its time, how that compares with the machine's bandwidth, and what would
shorten it. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from losa_cache.sidenet.spec import SIDES

PARTS = ("read", "decode", "copy", "backbone", "compute")
"""What a step waits for: reads, decoding (online: of images), copies to the GPU, the backbone, the side network."""


@dataclass(frozen=True)
class Bandwidth:
    """The largest speed at which this machine can read, in GB/s.

    Attributes:
        memory: copying in memory.
        disk: reading the cache's own shards past the page cache; ``None`` if the cache is not on a disk.
    """

    memory: float
    disk: float | None

    def over(self, reached: float) -> tuple[str, float]:
        """Name the limit for a speed: data that came faster than the disk can read came out of memory."""
        if self.disk is not None and reached <= 1.2 * self.disk:
            return "disk", self.disk
        return "memory", self.memory


def time_metrics(seconds: float, spent: Mapping[str, float], bandwidth: Bandwidth | None) -> dict[str, float]:
    """Divide an epoch's seconds.

    Args:
        seconds: duration of the epoch's steps.
        spent: measurements of sources and loop: seconds of :data:`PARTS`; if a cache was read, also ``reading``, the
            duration of its reads, whether or not other work ran at the same time, and ``gigabytes``.
        bandwidth: of the machine, for a cache.

    Returns:
        metrics: ``train_seconds_<part>``, ``train_read_gb_per_second`` and ``train_read_roof_gb_per_second``. On a GPU
        the host waits for reads while the device still computes, so only the time that the other parts leave counts as
        waiting.
    """
    parts = {part: spent[part] for part in PARTS if part in spent}
    if "read" in parts:
        others = sum(value for part, value in parts.items() if part != "read")
        parts["read"] = min(parts["read"], max(0.0, seconds - others))
    metrics = {f"train_seconds_{part}": value for part, value in parts.items()}
    if spent.get("gigabytes") and spent.get("reading"):
        metrics["train_read_gb_per_second"] = spent["gigabytes"] / spent["reading"]
        if bandwidth is not None:
            metrics["train_read_roof_gb_per_second"] = bandwidth.over(metrics["train_read_gb_per_second"])[1]
    return metrics


def rates_and_joules(samples: int, seconds: float, spent: Mapping[str, float]) -> dict[str, float]:
    """Say how many samples a second an epoch of so many seconds has trained, and what energy that took.

    Args:
        samples: of the epoch.
        seconds, spent: as of :func:`time_metrics`, with the joules of :mod:`losa_cache.machine.energy`.

    Returns:
        metrics: ``train_images_per_second`` and, where it was measured, ``train_cpu_joules`` and ``train_gpu_joules``.
    """
    joules = {f"train_{name}": value for name, value in spent.items() if name.endswith("_joules")}
    return {"train_images_per_second": samples / seconds} | joules


RANK, LAYERS = "a smaller --rank", "fewer --layers"
REMEDIES = {
    "compute": (RANK, LAYERS),
    "decode": ("bfloat16 (no decoding)", "int8 (almost none)", LAYERS),
    "copy": (LAYERS, "fewer bits", "--residency device where it fits"),
    "backbone": ("a cache (losa-cache extract)",),
    "images": ("more --workers", "a cache (losa-cache extract)"),
    "trained": ("a side network from a cache (losa-cache extract)",),
    "disk": (LAYERS, "a cache of fewer bits (--precision int8)", "memory that holds it"),
    "memory": (LAYERS, "fewer bits (--precision int8)"),
}
"""What would shorten an epoch."""
NAMES = {
    "compute": "the side network",
    "decode": "decoding",
    "copy": "copies to the GPU",
    "backbone": "the backbone",
    "images": "decoding images",
    "trained": "the backbone, which is trained",
    "disk": "reading from disk",
    "memory": "reading from memory",
}


def limiter(
    metrics: Mapping[str, float], bandwidth: Bandwidth | None = None, *, side: str = "losa", inside: bool = False
) -> str:
    """Say in one sentence what took an epoch's time, and what would shorten it.

    Args:
        metrics: of the epoch, with those of :func:`time_metrics`.
        bandwidth: as there.
        side: the side network: some have no rank, and some read one layer alone.
        inside: whether the backbone itself is trained, and no side network.
    """
    parts = {part: metrics[f"train_seconds_{part}"] for part in PARTS if f"train_seconds_{part}" in metrics}
    speed = metrics.get("train_read_gb_per_second")
    rest = {part: f"{value / metrics['train_seconds']:.0%}" for part, value in parts.items()}
    largest = max(parts, key=lambda part: parts[part])
    what = largest
    if largest == "decode" and (inside or "backbone" in parts):
        what = "images"
    if largest == "compute" and inside:
        what = "trained"
    if largest == "read":
        what = "memory" if bandwidth is None or speed is None else bandwidth.over(speed)[0]
    read = ""
    if speed is not None and bandwidth is not None:
        name, limit = bandwidth.over(speed)
        read = f" at {speed:.1f} GB/s, {'the disk gives' if name == 'disk' else 'memory copies at'} {limit:.1f}"
    others = ", ".join(
        f"{part} {share}{read if part == 'read' else ''}" for part, share in rest.items() if part != largest
    )
    within = f"{rest[largest]} of the time{read if largest == 'read' else ''}"
    *more, last = _remedies(what, side) or [""]
    advice = f": {' or '.join(filter(None, [', '.join(more), last]))} would shorten it" if last else ""
    return f"limited by {NAMES[what]} ({within}; {others}){advice}."


def _remedies(what: str, side: str) -> list[str]:
    useless = {RANK: not SIDES[side].rank, LAYERS: SIDES[side].last_layer}
    return [remedy for remedy in REMEDIES[what] if not useless.get(remedy)]
