"""How long work takes and how much memory it adds, for all benchmarks: several kinds of work in turn, medians.

On a GPU the time is that between two of its events, and short work is repeated between them.
"""

import gc
import statistics
from collections.abc import Callable, Mapping
from math import ceil
from time import perf_counter

import torch

Work = Callable[[], object]
Seconds = dict[str, list[float]]
LEAST, MOST_CALLS = 0.01, 100
"""Seconds that a measurement on a GPU should last, and how often work is called for that at most."""


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Work, *, calls: int = 1) -> float:
    """Time a call, as the mean of so many."""
    if not torch.cuda.is_available():
        started = perf_counter()
        for _ in range(calls):
            work()
        return (perf_counter() - started) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def in_turn(works: Mapping[str, Work], *, repeats: int, warm_up: int = 1) -> Seconds:
    """Time each kind of work so many times, all in turn, after so many times that do not count."""
    for _ in range(warm_up):
        for work in works.values():
            work()
    calls = dict.fromkeys(works, 1)
    if torch.cuda.is_available():
        calls = {name: min(MOST_CALLS, ceil(LEAST / seconds(work))) for name, work in works.items()}
    found: Seconds = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(seconds(work, calls=calls[name]))
    return found


def that_work(works: Mapping[str, Work]) -> tuple[dict[str, Work], dict[str, str]]:
    """Call each kind of work once: give those that raise nothing, and what the others raise."""
    usable, failed = {}, {}
    for name, work in works.items():
        try:
            work()
            synchronize()
        except Exception as error:  # a compiler that cannot, memory that is not there
            failed[name] = describe(error)
            free_memory()
        else:
            usable[name] = work
    return usable, failed


def describe(error: Exception) -> str:
    """Say in a line what was raised."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[0][:300]}"


def medians(found: Seconds) -> dict[str, float]:
    """Give the median of each kind of work."""
    return {name: statistics.median(taken) for name, taken in found.items()}


def free_memory() -> None:
    """Give memory that nobody uses back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def added_gigabytes(work: Work) -> float | None:
    """Measure what a call adds at most to the tensors on the GPU; without one, only call."""
    if not torch.cuda.is_available():
        work()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9
