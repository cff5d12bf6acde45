"""Block outputs as the kernels read them: where the bytes of each layer lie, and how a tile of b_i + y_0 is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from losa_cache.factors import Codes
from losa_cache.sidenet.operand import Block, Gathered

ALIGNED = 16  # bytes that a thread reads at once
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.int8: tl.int8}


@dataclass(frozen=True)
class Layers:
    """Block outputs of one form, which one launch reads.

    Attributes:
        table: int64 ``(4, layers)`` on the device: the position of a layer among those of its kind, and the addresses
            of its values or codes, of its tokens' scales and of its channels' scales.
        pitch: elements from one token to the next.
        element, scale: Triton's types of a value or code, and of a token's scale.
        coded: whether the values are codes.
        rows: int64 ``(batch,)``, which samples at the addresses are meant; ``None``: all, in order.
    """

    table: Tensor
    pitch: int
    element: Any
    scale: Any
    coded: bool
    rows: Tensor | None

    @property
    def count(self) -> int:
        """How many layers there are."""
        return self.table.shape[1]


def readable(block: Block) -> bool:
    """Tell whether the kernels can read a block output as it lies in memory."""
    if isinstance(block, Codes):
        codes, tokens = block.codes, block.tokens
        regular = codes.stride() == (codes.shape[1] * codes.stride(1), codes.stride(1), 1)
        typed = codes.dtype == torch.int8 and tokens.dtype in TYPES and block.channels.dtype == torch.float32
        return regular and typed and tokens.is_contiguous() and codes.data_ptr() % ALIGNED == 0
    tensor = block.kept if isinstance(block, Gathered) else block
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dtype not in TYPES:
        return False
    aligned = (tensor.data_ptr() | tensor.shape[-1] * tensor.element_size()) % ALIGNED == 0
    return tensor.is_contiguous() and aligned and tensor.numel() > 0


def layers_of(blocks: Sequence[Block]) -> list[Layers]:
    """Sort the block outputs of one kind of side layer by their form, each :func:`readable`."""
    forms: dict[tuple[Any, ...], list[int]] = {}
    for at, block in enumerate(blocks):
        forms.setdefault(_form(block), []).append(at)
    found = []
    for (kind, element, scale, pitch, _), positions in forms.items():
        first = blocks[positions[0]]
        table = _table(tuple((at, *_addresses(blocks[at])) for at in positions), _tensors(first)[0].device)
        rows = first.rows if isinstance(first, Gathered) else None
        found.append(Layers(table, pitch, TYPES[element], TYPES[scale], kind is Codes, rows))
    return found


def _tensors(block: Block) -> list[Tensor]:
    if isinstance(block, Codes):
        return [block.codes, block.tokens, block.channels]
    if isinstance(block, Gathered):
        return [block.kept]
    assert isinstance(block, Tensor)
    return [block]


def _form(block: Block) -> tuple[type, torch.dtype, torch.dtype, int, int]:
    """Tell apart what one launch cannot read: the last two are the pitch and where the numbers of the rows lie."""
    values, *scales = _tensors(block)
    pitch = values.stride(1) if isinstance(block, Codes) else values.shape[2]  # strides of one token may be any
    rows = block.rows.data_ptr() if isinstance(block, Gathered) else 0
    return type(block), values.dtype, scales[0].dtype if scales else torch.float32, pitch, rows


def _addresses(block: Block) -> tuple[int, int, int]:
    values, *scales = (tensor.data_ptr() for tensor in _tensors(block))
    tokens, channels = scales or (0, 0)
    return values, tokens, channels


def _table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Put addresses on the device: once, or as numbers of kernels while a CUDA graph is captured.

    A graph cannot hold a copy from the host. What is read in place has been met before the capture, in the batch that
    warms up, but tensors that the step itself makes lie elsewhere in a capture.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return by_kernels(rows, device)
    return _copied(rows, device)


@cache
def _copied(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Copy addresses to the device. A graph that reads them may outlive any limit on how many tables are kept."""
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.int64).T.contiguous().to(device)


def by_kernels(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Give the columns of ``rows``, int64, without a copy from the host."""
    columns = []
    for values in zip(*rows, strict=True):
        steps = {after - before for before, after in pairwise(values)}
        if len(steps) < 2:
            columns.append(torch.arange(len(values), device=device) * sum(steps) + values[0])
        else:
            columns.append(torch.stack([torch.full((), value, device=device) for value in values]))
    return torch.stack(columns)


@triton.jit
def read_values(
    table,
    layer,
    start,
    sample,
    source,
    token,
    channel,
    known,
    there,
    layers: tl.constexpr,
    n: tl.constexpr,
    d: tl.constexpr,
    pitch: tl.constexpr,
    element: tl.constexpr,
    scale: tl.constexpr,
    coded: tl.constexpr,
    dtype: tl.constexpr,
):
    """Give a tile of b_i + y_0, rounded to the products' dtype; zero where ``there`` is false.

    The indices of a tile's rows and columns may be columns or rows of it: ``sample`` (place in the batch), ``source``
    (place in the block's tensor), ``token`` and ``channel``. ``known`` marks the tokens that exist. ``start`` is y_0
    ``(batch, n, d)``.
    """
    values = tl.multiple_of(tl.load(table + layers + layer).to(tl.pointer_type(element)), 16)
    x = tl.load(values + (source * n + token) * pitch + channel, mask=there, other=0)
    if coded:
        tokens = tl.load(table + 2 * layers + layer).to(tl.pointer_type(scale))
        channels = tl.load(table + 3 * layers + layer).to(tl.pointer_type(tl.float32))
        factor = tl.load(tokens + sample * n + token, mask=known, other=0).to(tl.float32)
        factor = x.to(tl.float32) * factor
        x = (factor * tl.load(channels + channel, mask=channel < d, other=0)).to(dtype)
    y = tl.load(start + (sample * n + token) * d + channel, mask=there, other=0)
    return (x.to(tl.float32) + y.to(tl.float32)).to(dtype)
