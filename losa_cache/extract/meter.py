"""What an extraction counts while it runs."""

from dataclasses import dataclass, field
from time import perf_counter


@dataclass
class Meter:
    """What an extraction has done so far; a progress bar overrides :meth:`update`.

    Attributes:
        total, images: images to write in this run, and written.
        bytes: bytes written.
        waited_decode, waited_write: seconds that the main thread waited for images, and for what comes after it: the
            device, if there is one, and the disk.
        forward, encode, copy: seconds that the device spent on the backbone, on encoding, and on copies to the host.
        write: seconds that were spent on packing and writing.
        seconds: since the first batch was asked for.
    """

    total: int = 0
    images: int = 0
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
        """Begin with so many images to go."""
        self.total, self._started = total, perf_counter()

    def update(self) -> None:
        """Note that figures changed."""
        self.seconds = perf_counter() - self._started
