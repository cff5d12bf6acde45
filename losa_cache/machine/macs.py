"""Multiply-accumulates of a forward pass, counted operation by operation."""

from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_macs(forward: Callable[[], object]) -> int:
    """Count the multiply-accumulates of matrix products, convolutions and attention, and compute nothing.

    Attention counts as its two products. Norms, activations and sums are not counted; timm's published figures have
    0.1 % more, because they count norms. The paper's "GFLOPs" are multiply-accumulates, too (its Table 5).

    Args:
        forward: runs modules in evaluation mode, on inputs that it makes itself. Modules may lie on ``meta``.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a transformer layer would be one operation, which has no count
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FakeTensorMode(allow_non_fake_inputs=True),
            FlopCounterMode(display=False) as counter,
        ):
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
