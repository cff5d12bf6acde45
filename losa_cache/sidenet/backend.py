"""What computes a chain of side layers on this device: torch's products, or Triton kernels where they are faster."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from losa_cache.fastest import fastest, why_not_triton
from losa_cache.sidenet.chain import Chain
from losa_cache.sidenet.fast import Backend, TorchBackend
from losa_cache.sidenet.operand import Block
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
    """Compute by ``"torch"`` or ``"triton"`` within this context, whatever is faster: for tests and benchmarks.

    What the kernels cannot read is left to torch all the same. On a CPU the kernels run where Triton interprets them
    (``TRITON_INTERPRET=1``).
    """
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


def choose_backend(chain: Chain, layers: tuple[Packed, Packed], blocks: Sequence[Block], start: Tensor) -> Backend:
    """Choose what computes a chain: on CUDA by a measurement on the first batch of about this size, then remembered.

    Args:
        chain, layers, blocks, start: as of :func:`losa_cache.sidenet.fast.refine`.
    """
    asked = _asked.get()
    usable = chain.dtype in HALVES and why_not_triton(start.device) is None
    if asked == "torch" or not (usable or asked == "triton"):
        return TORCH
    triton = _triton()
    if not triton.takes(chain, blocks, start):
        return TORCH
    if asked == "triton":
        return triton
    what = _describe(chain, layers, blocks, start)
    if what not in _known:
        ways = {
            name: partial(_step, backend, chain, layers, blocks, start)
            for name, backend in (("triton", triton), ("torch", TORCH))
        }
        with torch.inference_mode(False), torch.no_grad():
            _known[what] = fastest(what, ways, start.device)
    return triton if _known[what] == "triton" else TORCH


def _triton() -> "TritonBackend":
    from losa_cache.sidenet.kernels.backend import TritonBackend

    return TritonBackend()


def _describe(chain: Chain, layers: tuple[Packed, Packed], blocks: Sequence[Block], start: Tensor) -> str:
    """Name the work: a batch is as good as any between the same powers of two."""
    _, batch, n, d = start.shape
    trials = len(layers[CHANNEL].down)
    forms = sorted({type(block).__name__ for block in blocks})
    dtype = str(chain.dtype).removeprefix("torch.")
    return (
        f"side network of {len(chain.kinds)} layers ({sum(chain.kinds)} mix tokens), {trials} x rank {chain.rank}, "
        f"{n} x {d}, batch {1 << batch.bit_length() - 1}, {'/'.join(forms)} in {dtype}"
    )


def _step(
    backend: Backend, chain: Chain, layers: tuple[Packed, Packed], blocks: Sequence[Block], start: Tensor
) -> None:
    """Compute the part of a training step in which backends differ."""
    w, _, _ = backend.pack(chain, layers, backend.filled(chain, start.shape[2]))
    inner, states, _, base = backend.forward(chain, blocks, start, w)
    grads = (torch.ones_like(states[CHANNEL]), torch.ones_like(states[TOKEN]))
    backend.backward(chain, blocks, base, inner, grads, w)
