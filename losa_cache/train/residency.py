"""Where a run keeps the cache it reads: pure decisions, and the sentence that explains them."""

from dataclasses import dataclass

from losa_cache.errors import UserError
from losa_cache.memory import readable_bytes

RESIDENCIES = ("auto", "device", "memory", "disk")
DEVICE_SHARE = 0.7  # of a device's free memory: the rest is a training step's
MEMORY_SHARE = 0.6  # of the host's available memory


@dataclass(frozen=True)
class Residency:
    """Where block outputs lie while a run reads them, again and again.

    Attributes:
        where: ``device``, ``memory`` or ``disk``.
        decoded: what lies there is values, not the cache's codes.
        direct: of a disk: read past the page cache.
        reason: one sentence for the user.
    """

    where: str
    decoded: bool = False
    direct: bool = False
    reason: str = ""


DISK = Residency("disk")


@dataclass(frozen=True)
class Room:
    """What there is to be read, and what there is to hold it.

    Attributes:
        stored: bytes that a run reads in an epoch, as the cache's codes.
        decoded: the same as values, or ``None`` where codes are used as they are.
        device: free bytes of the training device, or ``None`` where that is the CPU.
        memory: available bytes of the host.
        passes: times that each is read.
        remote: the cache lies on a server.
    """

    stored: int
    decoded: int | None
    device: int | None
    memory: int
    passes: int
    remote: bool = False


def choose_residency(asked: str, room: Room) -> Residency:
    """Choose where a run keeps what it reads.

    ``auto`` takes the fastest place that it fits: a GPU's memory, the host's, else the disk; what is read once is read
    from the disk. Values are kept in place of codes where they fit, too: that spares decoding in every epoch.

    Args:
        asked: one of :data:`RESIDENCIES`.
        room: bytes wanted and free.

    Raises:
        UserError: for another name, or a place that what is read does not fit.
    """
    if asked not in RESIDENCIES:
        raise UserError(f"unknown residency {asked!r}: choose one of {', '.join(RESIDENCIES)}.")
    places = {"device": room.device, "memory": room.memory}
    if room.device is None:  # a CPU's own memory is the host's
        places.pop("device")
        asked = "memory" if asked == "device" else asked
    if asked in places:
        return _kept(asked, places[asked], room)
    if asked == "auto" and room.passes > 1:
        for where, free in places.items():
            if room.stored <= _limit(where, free):
                return _kept(where, free, room)
    direct = room.stored > room.memory and not room.remote
    if asked == "disk":
        why = "as asked"
    elif room.passes == 1:
        why = "every sample is read once"
    else:
        why = f"only {readable_bytes(_limit('memory', room.memory))} of memory may be taken"
    past = ", past the page cache, which cannot hold it" if direct else ""
    whence = "the server" if room.remote else "disk"
    reason = f"{readable_bytes(room.stored)} are read from {whence}{past}: {why}."
    return Residency("disk", direct=direct, reason=reason)


def _kept(where: str, free: int | None, room: Room) -> Residency:
    limit = _limit(where, free)
    if room.stored > limit:
        size, most = readable_bytes(room.stored), readable_bytes(limit)
        raise UserError(
            f"--residency {where} would keep {size}, and may take {most}: choose fewer --layers, a smaller --limit, a "
            "cache of fewer bits, or --residency disk."
        )
    decoded = room.decoded is not None and room.decoded <= limit
    kept = room.decoded if decoded and room.decoded is not None else room.stored
    place = "the device's memory" if where == "device" else "memory"
    how = ", decoded" if decoded else ""
    return Residency(where, decoded=decoded, reason=f"{readable_bytes(kept)} are kept in {place}{how}.")


def _limit(where: str, free: int | None) -> int:
    return int((DEVICE_SHARE if where == "device" else MEMORY_SHARE) * (free or 0))
