"""The machine, and the peak memory of a process, for the benchmarks."""

from pathlib import Path

import torch


def machine() -> str:
    """Name what computes, and torch's version."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{device}, torch {torch.__version__}"


def peak_gigabytes() -> float:
    """Read this process's peak resident memory (Linux; ru_maxrss would count the parent's, too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
