"""Seconds by name, on the host's clock or the GPU's."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

import torch

Item = TypeVar("Item")


class Stopwatch:
    """Add up what parts of a source take; on a GPU by events, so that nothing waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def waiting(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Pass items through, and count the wait for each."""
        started = perf_counter()
        for item in items:
            self._seconds[name] += perf_counter() - started
            yield item
            started = perf_counter()

    @contextmanager
    def computing(self, name: str) -> Iterator[None]:
        """Count what the device computes in this block."""
        if self._device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(torch.cuda.current_stream(self._device))
            yield
            end.record(torch.cuda.current_stream(self._device))
            self._events.append((name, start, end))
        else:
            started = perf_counter()
            yield
            self._seconds[name] += perf_counter() - started

    def add(self, name: str, amount: float) -> None:
        """Count what something else measured."""
        self._seconds[name] += amount

    def take(self) -> dict[str, float]:
        """Return the seconds so far and start again from zero."""
        for name, start, end in self._events:
            end.synchronize()
            self._seconds[name] += start.elapsed_time(end) / 1000
        taken = dict(self._seconds)
        self._seconds.clear()
        self._events.clear()
        return taken
