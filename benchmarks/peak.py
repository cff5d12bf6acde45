"""The machine, and the peak memory of a process, for the benchmarks."""

from pathlib import Path

import torch


def machine() -> str:
    """Name what computes, and torch's version."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{device}, torch {torch.__version__}"


def peak_gigabytes(process: int | str = "self") -> float:
    """Read a process's peak resident memory, by default this one's (Linux; ru_maxrss would count the parent's, too)."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
