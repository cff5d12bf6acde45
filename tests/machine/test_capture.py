"""Captures of CUDA graphs, of which a CPU knows what surrounds them."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch

from losa_cache.machine.capture import capture, without_collections


class Ring:
    """What only a collection frees."""

    def __init__(self):
        self.own = self


@pytest.fixture
def eager_collections():
    """Collect garbage at nearly every allocation."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)


def allocate():
    return [[at] for at in range(1000)]


@pytest.mark.usefixtures("eager_collections")
def test_nothing_is_collected_while_a_graph_is_captured(monkeypatch):
    asked = []

    @contextmanager
    def graph(*args, **options):
        asked.append((args, options))
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    with capture("graph", pool="pool", stream="stream"):
        ring = weakref.ref(Ring())
        allocate()
        assert ring() is not None
    allocate()
    assert ring() is None
    assert asked == [(("graph",), {"pool": "pool", "stream": "stream", "capture_error_mode": "thread_local"})]


@pytest.mark.parametrize("enabled", [True, False])
def test_collections_go_on_as_before_whatever_happens(enabled):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ValueError, match="cannot be captured"), without_collections():
            assert not gc.isenabled()
            raise ValueError("cannot be captured")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
