"""The peak memory of a process, for the benchmarks."""

from pathlib import Path


def peak_gigabytes() -> float:
    """Read this process's peak resident memory (Linux; ru_maxrss would count the parent's, too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
