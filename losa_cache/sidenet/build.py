"""Adapters, and stacks of them, by their arguments: for tasks with one answer an image, and for dense ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.dense import DenseAdapter
from losa_cache.sidenet.dense_stack import DenseStack
from losa_cache.sidenet.stack import AdapterStack
from losa_cache.sidenet.tail import FrozenTail


def build_adapter(arguments: Mapping[str, Any], tail: FrozenTail) -> Adapter:
    """Build an untrained adapter.

    Args:
        arguments: those of :class:`DenseAdapter` where there is ``dense`` among them, else of :class:`Adapter`.
        tail: the backbone's frozen tail.
    """
    if arguments.get("dense") is None:
        return Adapter(**{name: value for name, value in arguments.items() if name != "dense"}, tail=tail)
    return DenseAdapter(**{name: value for name, value in arguments.items() if name != "grid"}, tail=tail)


def stack_adapters(adapters: Sequence[Adapter]) -> AdapterStack:
    """Stack adapters of one kind.

    Raises:
        ValueError: for side networks that cannot be stacked, or sizes that differ.
    """
    maps = [adapter for adapter in adapters if isinstance(adapter, DenseAdapter)]
    return DenseStack(maps) if maps else AdapterStack(adapters)
