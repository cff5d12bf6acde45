"""Speeds that reads are compared with: a copy in memory, and the cache's own disk read past the page cache."""

import mmap
import os
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

COPIED = 2**27  # bytes, larger than most caches of a core
REQUEST = 2**22  # bytes, as dd bs=4M
MOST_BYTES, MOST_SECONDS = 2**28, 0.5


def memory_bandwidth() -> float:
    """Measure how fast all of torch's threads copy memory, in GB/s of copied bytes."""
    source = torch.zeros(COPIED, dtype=torch.uint8)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(3):
        started = perf_counter()
        target.copy_(source)
        seconds.append(perf_counter() - started)
    return COPIED / 1e9 / median(seconds)


def disk_bandwidth(path: Path) -> float | None:
    """Measure how fast the beginning of a file is read past the page cache, for half a second at most, in GB/s.

    ``None`` if the system (macOS) or the file system has no direct reads, or the file is smaller than a request.
    """
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    try:
        blocks = mmap.mmap(-1, REQUEST)
        size = min(os.fstat(handle).st_size, MOST_BYTES) // REQUEST * REQUEST
        done, started = 0, perf_counter()
        while done < size and perf_counter() - started < MOST_SECONDS:
            done += os.preadv(handle, [blocks], done)
        return done / 1e9 / (perf_counter() - started) if done else None
    except OSError:
        return None
    finally:
        os.close(handle)
