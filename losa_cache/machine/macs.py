"""Multiply-accumulates of a forward pass, counted operation by operation."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Thing = TypeVar("Thing")


def count_macs(forward: Callable[[], object]) -> int:
    """Count the multiply-accumulates of matrix products, convolutions and attention.

    Attention counts as its two products. Norms, activations and sums are not counted; timm's published figures have
    0.1 % more, because they count norms. The paper's "GFLOPs" are multiply-accumulates, too (its Table 5).

    Args:
        forward: runs modules in evaluation mode. On ``meta`` nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode  # a tenth of a second

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a transformer layer would be one operation, which has no count
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def without_values(thing: Thing, tensors: Iterable[Tensor]) -> Thing:
    """Copy what holds tensors: in the copy these are on ``meta``, so it takes no memory and computes nothing."""
    empty = {}
    for own in tensors:
        shape = own.detach().to("meta")
        empty[id(own)] = nn.Parameter(shape, requires_grad=False) if isinstance(own, nn.Parameter) else shape
    return deepcopy(thing, empty)
