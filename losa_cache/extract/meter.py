"""Counts of a running extraction."""

from dataclasses import dataclass, field
from time import perf_counter


@dataclass
class Meter:
    """The work of an extraction so far; a progress bar overrides :meth:`update`.

    Attributes:
        total, images: number of images to write in this run, and number written.
        elsewhere: number of these that other processes have written.
        bytes: bytes written.
        waited_decode, waited_write: seconds that the main thread waited for images, and for the later parts: the
            device, if there is one, and the disk.
        forward, encode, copy: seconds that the device spent on the backbone, on encoding, and on copies to the host.
        write: seconds of packing and writing.
        seconds: time since the first batch was requested.
    """

    total: int = 0
    images: int = 0
    elsewhere: int = 0
    bytes: int = 0
    waited_decode: float = 0.0
    waited_write: float = 0.0
    forward: float = 0.0
    encode: float = 0.0
    copy: float = 0.0
    write: float = 0.0
    seconds: float = 0.0
    _started: float = field(default_factory=perf_counter, repr=False)

    def start(self, total: int) -> None:
        """Start, with so many images to write."""
        self.total, self._started = total, perf_counter()

    def update(self) -> None:
        """Is called when figures change."""
        self.seconds = perf_counter() - self._started
