"""A CUDA graph without CUDA: operations are recorded with the very tensors that they read and write, and replayed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Unrecordable(RuntimeError):
    pass


class _Taping(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:  # a GPU would have to be waited for
            raise Unrecordable("a number is read from a tensor")
        found = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        own = [None if t.untyped_storage().data_ptr() in given else t for t in tensors(found)]
        self.calls.append((func, args, kwargs or {}, own))
        return found


def tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class TapeRecorder:
    """Replays what was done, not the code that did it: numbers of the time of recording stay what they were.

    A capture executes nothing. Here it does, and what it changed is put back.

    Args:
        state: gives the tensors that the work changes.
    """

    def __init__(self, state: Callable[[], Sequence[Tensor]]) -> None:
        self._state = state
        self.warmed = self.recorded = self.replayed = 0

    def warm_up(self, work: Callable[[], None]) -> None:
        self.warmed += 1
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        before = [(tensor, tensor.detach().clone()) for tensor in self._state()]
        try:
            with _Taping() as taping:
                work()
        finally:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.detach().copy_(value)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            with torch.no_grad():
                for func, args, kwargs, own in taping.calls:
                    for there, new in zip(own, tensors(func(*args, **kwargs)), strict=True):
                        if there is not None:
                            there.copy_(new)

        return replay
