"""Captures of CUDA graphs, beside whatever other threads do on the device."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def capture(
    graph: torch.cuda.CUDAGraph, *, pool: Any = None, stream: torch.cuda.Stream | None = None
) -> Iterator[None]:
    """Capture what this context launches; other threads may use the device meanwhile.

    No garbage is collected meanwhile: a capture fails if a CUDA graph that nobody uses any more is destroyed during it.

    Args:
        graph: what is captured becomes.
        pool: memory that graphs share.
        stream: of the capture; by default one of torch's.
    """
    with (
        without_collections(),
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        yield


@contextmanager
def without_collections() -> Iterator[None]:
    """Let Python collect no garbage in this context."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def after_failed_capture(device: torch.device) -> None:
    """Release a GPU's random generator after a capture that failed: it belongs to that capture until another one
    succeeds.
    """
    with capture(torch.cuda.CUDAGraph()):
        torch.zeros(1, device=device)
