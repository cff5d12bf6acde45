"""Which process this is, and whether another one has ended, as far as the system can tell."""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ENDED = "ZX"  # states of a process that has ended and is only still listed


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    Attributes:
        host: name of the machine, for people.
        namespace: the machine since its last start, and which of its processes have numbers of their own (a container
            may); empty where the system does not say.
        number: of the process.
        started: when it was started, in the system's ticks: numbers are used again.
    """

    host: str
    namespace: str
    number: int
    started: int

    @property
    def ended(self) -> bool | None:
        """Whether it has ended; ``None``: nothing is known of it, for it is one of another machine."""
        if not self.namespace or self.namespace != _namespace():
            return None
        found = _stat(self.number)
        return found is None or found != self.started


def this_process() -> Process:
    """Describe this process."""
    found = _stat(os.getpid())
    return Process(socket.gethostname(), "" if found is None else _namespace(), os.getpid(), found or 0)


@cache
def _namespace() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _stat(number: int) -> int | None:
    """Give the start of a process of this machine; ``None`` if there is none, or none of its threads runs."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(") ")[2].split()  # what stands before is its name, which may hold anything
    if fields[0] in ENDED and int(fields[17]) <= 1:  # more: only the first thread has ended so far
        return None
    return int(fields[19])
