"""The peak memory of a process, for the benchmarks."""

from pathlib import Path


def peak_gigabytes(process: int | str = "self") -> float:
    """Read a process's peak resident memory, by default this one's (Linux; ru_maxrss would count the parent's, too)."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
