"""Choice of what computes a chain of side layers on this device: torch's products, or Triton kernels if they are
faster.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from losa_cache.machine.fastest import Work, fastest, why_not_triton
from losa_cache.sidenet.chain import Chain
from losa_cache.sidenet.fast import Backend, TorchBackend
from losa_cache.sidenet.operand import Block, Gathered
from losa_cache.sidenet.packed import Packed
from losa_cache.sidenet.products import CHANNEL, TOKEN

if TYPE_CHECKING:
    from losa_cache.sidenet.kernels.backend import TritonBackend

log = logging.getLogger(__name__)

TORCH = TorchBackend()
HALVES = (torch.float16, torch.bfloat16)
_asked: ContextVar[str | None] = ContextVar("backend", default=None)
_known: dict[str, str] = {}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute with ``"torch"`` or ``"triton"`` within this context, even if the other is faster: for tests and
    benchmarks.

    Torch still computes what the kernels cannot read. On a CPU the kernels run where Triton interprets them
    (``TRITON_INTERPRET=1``).
    """
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


def choose_backend(chain: Chain, layers: tuple[Packed, Packed], blocks: Sequence[Block], start: Tensor) -> Backend:
    """Choose what computes a chain: on CUDA by a measurement on the first batch of about this size, which is
    remembered.

    Args:
        chain, layers, blocks, start: as of :func:`losa_cache.sidenet.fast.refine`.
    """
    asked = _asked_for(chain.dtype, start.device)
    if asked == "torch":
        return TORCH
    triton = _triton()
    if not triton.takes(chain, blocks, start):
        return TORCH
    if asked is None:
        each = (("triton", triton), ("torch", TORCH))
        ways = {name: partial(_step, backend, chain, layers, blocks, start) for name, backend in each}
        asked = _fastest(_describe(chain, layers, blocks, start), ways, start.device)
    return triton if asked == "triton" else TORCH


def norms_by_triton(block: Block, by_triton: Callable[[Block], object], by_torch: Callable[[Block], object]) -> bool:
    """Tell whether a kernel norms a block output: on CUDA by a measurement on the first of about this size.

    Args:
        block: ``(batch, n, d)``.
        by_triton, by_torch: the two ways.
    """
    kept = block.kept if isinstance(block, Gathered) else block
    if not isinstance(kept, Tensor):
        return False
    asked = _asked_for(kept.dtype, kept.device)
    if asked == "torch":
        return False
    from losa_cache.sidenet.kernels import norm

    if not norm.takes(block):
        return False
    if asked is None:
        _, n, d = kept.shape
        batch, dtype = len(block.rows if isinstance(block, Gathered) else kept), str(kept.dtype).removeprefix("torch.")
        what = f"layer norm of block outputs, {n} x {d}, batch {_rounded(batch)}, {type(block).__name__} in {dtype}"
        ways = {"triton": partial(by_triton, block), "torch": partial(by_torch, block)}
        asked = _fastest(what, ways, kept.device)
    return asked == "triton"


def _asked_for(dtype: torch.dtype, device: torch.device) -> str | None:
    """Name the requested way, or the only one there is; ``None`` for the faster one."""
    asked = _asked.get()
    usable = dtype in HALVES and why_not_triton(device) is None
    return asked if usable or asked == "triton" else "torch"


def _fastest(what: str, ways: Mapping[str, Work], device: torch.device) -> str:
    if what not in _known:
        with torch.inference_mode(False), torch.no_grad():
            _known[what] = fastest(what, ways, device)
    return _known[what]


def _rounded(batch: int) -> int:
    """A measurement is as good for any batch between the same powers of two."""
    return 1 << batch.bit_length() - 1


def _triton() -> "TritonBackend":
    from losa_cache.sidenet.kernels.backend import TritonBackend

    return TritonBackend()


def _describe(chain: Chain, layers: tuple[Packed, Packed], blocks: Sequence[Block], start: Tensor) -> str:
    """Name the work."""
    _, batch, n, d = start.shape
    trials = len(layers[CHANNEL].down)
    forms = sorted({type(block).__name__ for block in blocks})
    dtype = str(chain.dtype).removeprefix("torch.")
    return (
        f"side network of {len(chain.kinds)} layers ({sum(chain.kinds)} mix tokens), {trials} x rank {chain.rank}, "
        f"{n} x {d}, batch {_rounded(batch)}, {'/'.join(forms)} in {dtype}"
    )


def _step(
    backend: Backend, chain: Chain, layers: tuple[Packed, Packed], blocks: Sequence[Block], start: Tensor
) -> None:
    """Compute the part of a training step in which backends differ."""
    w, _, _ = backend.pack(chain, layers, backend.filled(chain, start.shape[2]))
    inner, states, _, base = backend.forward(chain, blocks, start, w)
    grads = (torch.ones_like(states[CHANNEL]), torch.ones_like(states[TOKEN]))
    backend.backward(chain, blocks, base, inner, grads, w)
