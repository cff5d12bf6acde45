"""How much memory is left, and how it is allocated."""

import math
import mmap
import resource
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.machine.device import default_workers
from losa_cache.machine.sizes import readable_bytes

LOCKED_IN_PLACE = 2**28  # bytes: torch's own page-locked memory is rounded up to a power of two
_LIMITLESS = 2**62


def allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, pin: bool = False) -> torch.Tensor:
    """Allocate a tensor for data that are read into it.

    On the host it is page-locked for a GPU, if ``pin`` is set. Otherwise it lies in large pages, if the system gives
    them (numpy requests them), which makes reads 5 % faster.

    Raises:
        UserError: if so much memory cannot be page-locked.
    """
    count = math.prod(shape)
    if device.type != "cpu" or (pin and count * dtype.itemsize < LOCKED_IN_PLACE):
        return torch.empty(tuple(shape), dtype=dtype, device=device, pin_memory=pin)
    return torch.from_numpy(_pages(count * dtype.itemsize, locked=pin)).view(dtype)[:count].view(*shape)


def _pages(nbytes: int, *, locked: bool) -> NDArray[np.uint8]:
    """Allocate whole pages that are not shared with other memory."""
    size = -(-max(1, nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = np.empty(size + mmap.PAGESIZE, dtype=np.uint8)
    start = -whole.ctypes.data % mmap.PAGESIZE
    pages = whole[start : start + size]
    if locked:
        with ThreadPoolExecutor(default_workers()) as threads:  # CUDA would have one thread ask for every page
            list(threads.map(lambda part: part[:: mmap.PAGESIZE].fill(0), np.array_split(pages, default_workers())))
        address, runtime = pages.ctypes.data, torch.cuda.cudart()
        if (error := int(runtime.cudaHostRegister(address, size, 0))) != 0:
            raise UserError(
                f"{readable_bytes(size)} of the host's memory cannot be page-locked for the GPU (CUDA error {error}): "
                "choose --residency disk, or a smaller --limit."
            )
        weakref.finalize(whole, runtime.cudaHostUnregister, address).atexit = False
    return pages


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, as far as the system says.

    On the CPU the least of what Linux calls available, what the control group leaves and what ``ulimit -v`` leaves;
    elsewhere no limit is known.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_meminfo(), _control_group(), _address_space())


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has had allocated on a device at most; on the CPU its largest resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in _read("/proc/self/status").splitlines():  # Linux: there ru_maxrss would count the parent's, too
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _meminfo() -> int:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _LIMITLESS


def _control_group() -> int:
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    return max(0, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else _LIMITLESS


def _address_space() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read("/proc/self/statm").split()
    if limit == resource.RLIM_INFINITY or not pages:
        return _LIMITLESS
    return max(0, limit - int(pages[0]) * resource.getpagesize())


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
