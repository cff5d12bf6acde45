"""How much memory is left."""

import resource
from pathlib import Path

import torch

_LIMITLESS = 2**62


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, as far as the system says.

    On the CPU the least of what Linux calls available, what the control group leaves and what ``ulimit -v`` leaves;
    elsewhere no limit is known.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_meminfo(), _control_group(), _address_space())


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
