"""Where a run keeps the activations that it reads: pure decisions, and the sentence that explains them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.machine.sizes import readable_bytes

RESIDENCIES = ("auto", "device", "memory", "disk")
DEVICE_SHARE = 0.7  # of a device's free memory: the rest is a training step's
MEMORY_SHARE = 0.6  # of the host's available memory
WORTH_SPLITTING = 0.1  # of what is read: less than this on the device saves too little time


@dataclass(frozen=True)
class Residency:
    """Where block outputs are kept while a run reads them in every epoch.

    Attributes:
        where: ``device``, ``memory``, ``disk``, or ``split`` (one part on the device, the rest in the host's memory).
        decoded: whether values are kept, not the cache's codes.
        direct: with ``disk``, whether reads bypass the page cache.
        share: with ``split``, the share of the rows on the device.
        reason: one sentence for the user.
    """

    where: str
    decoded: bool = False
    direct: bool = False
    share: float = 1.0
    reason: str = ""


DISK = Residency("disk")


@dataclass(frozen=True)
class Sizes:
    """The bytes that a run reads, and the memory that is free.

    Attributes:
        stored: bytes that a run reads in an epoch, as the cache's codes.
        decoded: the same as values, or ``None`` if codes are used without decoding.
        device: free bytes of the training device, or ``None`` if that is the CPU.
        memory: available bytes of the host.
        passes: how often each sample is read.
        remote: whether the cache is on a server.
        batch: bytes of a batch as the cache's codes.
        plane: bytes of a plane of it.
        made: bytes that the device takes to decode a batch of codes: values, and where a graph reads them.
        normed: bytes that it takes to norm a batch in a step: of the first one, and of those that a graph norms.
        pooled: bytes of the rows that are pooled beside values, where these are normed once in the memory of the
            training device.
    """

    stored: int
    decoded: int | None
    device: int | None
    memory: int
    passes: int
    remote: bool = False
    batch: int = 0
    plane: int = 0
    made: int = 0
    normed: int = 0
    pooled: int = 0

    @property
    def gathered(self) -> int:
        """Bytes that a batch takes out of codes on the device; values are read, and normed once, where they lie."""
        return self.batch + self.made + self.normed if self.made else 0

    @property
    def crossing(self) -> int:
        """Bytes that batches from the host take on the device: two, a plane on its way, and what is made of one."""
        return 2 * self.batch + self.plane + self.made + self.normed

    def held(self, where: str) -> tuple[int, int | None]:
        """Give the bytes that ``device`` or ``memory`` holds: of :attr:`stored`, and of :attr:`decoded`.

        Only values are normed, and only where they are trained on.
        """
        beside = self.pooled if where == "device" or self.device is None else 0
        if self.decoded is None:
            return self.stored + beside, None
        return self.stored, self.decoded + beside


def require_residency(name: str) -> None:
    """Refuse a name that is none of :data:`RESIDENCIES`.

    Raises:
        UserError: naming those that there are.
    """
    if name not in RESIDENCIES:
        raise UserError(f"unknown residency {name!r}: choose one of {', '.join(RESIDENCIES)}.")


def choose_residency(asked: str, sizes: Sizes) -> Residency:
    """Choose where a run keeps what it reads.

    ``auto`` takes the fastest place that holds the activations: GPU memory, GPU and host memory together, host memory,
        otherwise the disk. Activations that are read once are read from the disk. If they fit, values are kept in place
        of codes, which saves decoding in every epoch. With ``split`` they are kept as codes, because fewer bytes are
        copied faster.

    Args:
        asked: one of :data:`RESIDENCIES`.
        sizes: bytes to read, and free memory.

    Raises:
        UserError: for another name, or a place that is too small.
    """
    require_residency(asked)
    host_trains = asked == "device" and sizes.device is None
    asked = "memory" if host_trains else asked
    device, memory = _limit("device", sizes.device), _limit("memory", sizes.memory)
    kept = asked == "auto" and sizes.passes > 1
    if asked == "device" or (kept and sizes.device is not None):
        whole, values = sizes.held("device")
        if whole + sizes.gathered <= device or (values is not None and values <= device):
            return _kept("device", device, sizes)
        part = device - sizes.crossing
        worth = part > 0 and (asked == "device" or part >= WORTH_SPLITTING * whole)
        if worth and whole - part <= memory:
            return _split(part, whole)
        if asked == "device" and part <= 0 and sizes.held("memory")[0] <= memory:
            return _kept("memory", memory, sizes, why=", for batches alone fill what may be taken of the device's")
        if asked == "device":
            most = f"{readable_bytes(device)} on the device and, in the host's memory, {readable_bytes(memory)}"
            raise _too_large(asked, most, whole)
    needed, _ = sizes.held("memory")
    if asked == "memory" and needed > memory:
        raise _too_large(asked, readable_bytes(memory), needed)
    if asked == "memory" or (kept and needed <= memory):
        return _kept("memory", memory, sizes, why=", the training device's own" if host_trains else "")
    direct = sizes.stored > sizes.memory and not sizes.remote
    if asked == "disk":
        why = "as asked"
    elif sizes.passes == 1:
        why = "every sample is read once"
    else:
        why = f"only {readable_bytes(memory)} of memory may be taken"
        if sizes.device is not None:
            why += f", and {readable_bytes(device)} of the device's"
    past = ", past the page cache, which cannot hold it" if direct else ""
    whence = "the server" if sizes.remote else "disk"
    reason = f"{readable_bytes(sizes.stored)} are read from {whence}{past}: {why}."
    return Residency("disk", direct=direct, reason=reason)


def rows_on_device(count: int, share: float) -> NDArray[np.bool_]:
    """Choose which of ``count`` rows are kept on the device: at most this share, spread evenly over all.

    Every row is read equally often in an epoch, so all choices save the same number of copies. An even choice gives the
    batches of an evaluation, which come in the order of the cache, the same share each.
    """
    before = np.floor(np.arange(count + 1) * share).astype(np.int64)
    return np.diff(before) > 0


def _kept(where: str, limit: int, sizes: Sizes, why: str = "") -> Residency:
    codes, values = sizes.held(where)
    decoded = values is not None and values <= limit
    kept = values if decoded and values is not None else codes
    place = "the device's memory" if where == "device" else "memory"
    how = ", decoded" if decoded else ""
    return Residency(where, decoded=decoded, reason=f"{readable_bytes(kept)} are kept in {place}{how}{why}.")


def _split(part: int, whole: int) -> Residency:
    reason = (
        f"{readable_bytes(part)} of {readable_bytes(whole)} are kept in the device's memory, the rest in the host's."
    )
    return Residency("split", share=part / whole, reason=reason)


def _too_large(where: str, most: str, needed: int) -> UserError:
    return UserError(
        f"--residency {where} needs {readable_bytes(needed)}, but may use only {most}: choose fewer --layers, a "
        "smaller --limit, a cache of fewer bits, or --residency disk."
    )


def _limit(where: str, free: int | None) -> int:
    return int((DEVICE_SHARE if where == "device" else MEMORY_SHARE) * (free or 0))
