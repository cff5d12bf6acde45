"""Products of all block outputs of a kind with the side layers' matrices: where nearly every byte of a step is read.

One launch serves all layers of a kind. Neighbouring programs read the same part of y_0, so that the memory gives it
once and the L2 cache the other times. Sums are float32 and in a fixed order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from losa_cache.sidenet.kernels.tiles import Tiles, precision_of
from losa_cache.sidenet.kernels.values import TYPES, Layers, layers_of, read_values
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.products import CHANNEL


@triton.jit(do_not_specialize=["batch", "trials"])
def _project_channel(
    table, rows, start, weight, out, batch, trials,
    layers: tl.constexpr, depth: tl.constexpr, rank: tl.constexpr,
    n: tl.constexpr, filled: tl.constexpr, d: tl.constexpr,
    pitch: tl.constexpr, element: tl.constexpr, scale: tl.constexpr, coded: tl.constexpr, gathered: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr,
    tokens: tl.constexpr, step: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Out (S, depth * r, batch * n) = weight (S, depth * r, d) times (b_i + y_0) (batch * n, d), transposed."""
    groups = tl.cdiv(trials * rank, group)
    at = tl.program_id(0)
    row = (at % groups) * group + tl.arange(0, group)
    layer = (at // groups) % layers
    place = (at // (groups * layers)) * tokens + tl.arange(0, tokens)
    position = tl.load(table + layer)
    line = ((row // rank) * (depth * rank) + position * rank + row % rank).to(tl.int64)
    sample, token = place // filled, place % filled
    real = (sample < batch) & (token < n)
    source = sample.to(tl.int64)
    if gathered:
        source = tl.load(rows + sample, mask=real, other=0)
    total = tl.zeros((tokens, group), dtype=tl.float32)
    for k in range(0, d, step):
        channel = k + tl.arange(0, step)
        there = real[:, None] & (channel < d)[None, :]
        x = read_values(
            table, layer, start, sample[:, None].to(tl.int64), source[:, None], token[:, None], channel[None, :],
            real[:, None], there, layers, n, d, pitch, element, scale, coded, dtype,
        )  # fmt: skip
        w = tl.load(
            weight + line[None, :] * d + channel[:, None],
            mask=(row < trials * rank)[None, :] & (channel < d)[:, None],
            other=0,
        )
        total = tl.dot(x, w, total, input_precision=precision)
    to = out + line[None, :] * (batch * filled) + place[:, None]  # of tokens that are not real: zeros
    tl.store(to, total.to(dtype), mask=(row < trials * rank)[None, :] & (sample < batch)[:, None])


@triton.jit(do_not_specialize=["batch", "trials"])
def _project_token(
    table, rows, start, weight, out, batch, trials,
    layers: tl.constexpr, depth: tl.constexpr, rank: tl.constexpr,
    n: tl.constexpr, filled: tl.constexpr, d: tl.constexpr,
    pitch: tl.constexpr, element: tl.constexpr, scale: tl.constexpr, coded: tl.constexpr, gathered: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr,
    channels: tl.constexpr, step: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Out (S, depth * r, batch, d) = weight (S, depth * r, n) times (b_i + y_0) (batch, n, d)."""
    groups = tl.cdiv(trials * rank, group)
    parts = tl.cdiv(d, channels)
    at = tl.program_id(0)
    row = (at % groups) * group + tl.arange(0, group)
    layer = (at // groups) % layers
    part = (at // (groups * layers)) % parts
    sample = (at // (groups * layers * parts)).to(tl.int64)
    channel = part * channels + tl.arange(0, channels)
    position = tl.load(table + layer)
    line = ((row // rank) * (depth * rank) + position * rank + row % rank).to(tl.int64)
    source = sample
    if gathered:
        source = tl.load(rows + sample)
    total = tl.zeros((group, channels), dtype=tl.float32)
    for k in range(0, n, step):
        token = k + tl.arange(0, step)
        there = (token < n)[:, None] & (channel < d)[None, :]
        x = read_values(
            table, layer, start, sample, source, token[:, None], channel[None, :],
            (token < n)[:, None], there, layers, n, d, pitch, element, scale, coded, dtype,
        )  # fmt: skip
        w = tl.load(
            weight + line[:, None] * filled + token[None, :],
            mask=(row < trials * rank)[:, None] & (token < n)[None, :],
            other=0,
        )
        total = tl.dot(w, x, total, input_precision=precision)
    to = out + (line[:, None] * batch + sample) * d + channel[None, :]
    tl.store(to, total.to(dtype), mask=(row < trials * rank)[:, None] & (channel < d)[None, :])


@triton.jit(do_not_specialize=["batch", "trials"])
def _correlate_channel(
    table, rows, start, states, out, batch, trials, share,
    layers: tl.constexpr, depth: tl.constexpr, rank: tl.constexpr,
    n: tl.constexpr, filled: tl.constexpr, d: tl.constexpr,
    pitch: tl.constexpr, element: tl.constexpr, scale: tl.constexpr, coded: tl.constexpr, gathered: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr,
    channels: tl.constexpr, step: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Out (splits, S, depth * r, d): each split sums states (S, depth * r, batch * n) x (b_i + y_0) over its tokens."""
    groups = tl.cdiv(trials * rank, group)
    parts = tl.cdiv(d, channels)
    at = tl.program_id(0)
    row = (at % groups) * group + tl.arange(0, group)
    layer = (at // groups) % layers
    part = (at // (groups * layers)) % parts
    split = at // (groups * layers * parts)
    channel = part * channels + tl.arange(0, channels)
    position = tl.load(table + layer)
    line = ((row // rank) * (depth * rank) + position * rank + row % rank).to(tl.int64)
    total = tl.zeros((group, channels), dtype=tl.float32)
    for k in range(0, share, step):
        place = split * share + k + tl.arange(0, step)
        sample, token = place // filled, place % filled
        inside = (sample < batch) & (token < n) & (place < (split + 1) * share)
        source = sample.to(tl.int64)
        if gathered:
            source = tl.load(rows + sample, mask=inside, other=0)
        x = read_values(
            table, layer, start, sample[:, None].to(tl.int64), source[:, None], token[:, None], channel[None, :],
            inside[:, None], inside[:, None] & (channel < d)[None, :],
            layers, n, d, pitch, element, scale, coded, dtype,
        )  # fmt: skip
        s = tl.load(
            states + line[:, None] * (batch * filled) + place[None, :],
            mask=(row < trials * rank)[:, None] & inside[None, :],
            other=0,
        )
        total = tl.dot(s, x, total, input_precision=precision)
    to = out + (split.to(tl.int64) * (trials * depth * rank) + line[:, None]) * d + channel[None, :]
    tl.store(to, total, mask=(row < trials * rank)[:, None] & (channel < d)[None, :])


@triton.jit(do_not_specialize=["batch", "trials", "share"])
def _correlate_token(
    table, rows, start, states, out, batch, trials, share,
    layers: tl.constexpr, depth: tl.constexpr, rank: tl.constexpr,
    n: tl.constexpr, filled: tl.constexpr, d: tl.constexpr,
    pitch: tl.constexpr, element: tl.constexpr, scale: tl.constexpr, coded: tl.constexpr, gathered: tl.constexpr,
    dtype: tl.constexpr, precision: tl.constexpr,
    tokens: tl.constexpr, step: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Out (splits, S, depth * r, n): each split sums states (S, depth * r, batch, d) x (b_i + y_0) over its samples."""
    groups = tl.cdiv(trials * rank, group)
    parts = tl.cdiv(n, tokens)
    steps: tl.constexpr = (d + step - 1) // step
    at = tl.program_id(0)
    row = (at % groups) * group + tl.arange(0, group)
    layer = (at // groups) % layers
    part = (at // (groups * layers)) % parts
    split = at // (groups * layers * parts)
    token = part * tokens + tl.arange(0, tokens)
    position = tl.load(table + layer)
    line = ((row // rank) * (depth * rank) + position * rank + row % rank).to(tl.int64)
    total = tl.zeros((tokens, group), dtype=tl.float32)
    for k in range(0, share * steps):
        sample = split.to(tl.int64) * share + k // steps
        channel = (k % steps) * step + tl.arange(0, step)
        inside = channel < tl.where(sample < batch, d, 0)
        sample = tl.minimum(sample, batch - 1)
        source = sample
        if gathered:
            source = tl.load(rows + sample)
        x = read_values(
            table, layer, start, sample, source, token[:, None], channel[None, :],
            (token < n)[:, None], (token < n)[:, None] & inside[None, :],
            layers, n, d, pitch, element, scale, coded, dtype,
        )  # fmt: skip
        s = tl.load(
            states + (line[None, :] * batch + sample) * d + channel[:, None],
            mask=(row < trials * rank)[None, :] & inside[:, None],
            other=0,
        )
        total = tl.dot(x, s, total, input_precision=precision)
    to = out + (split.to(tl.int64) * (trials * depth * rank) + line[None, :]) * filled + token[:, None]
    tl.store(to, total, mask=(row < trials * rank)[None, :] & (token < n)[:, None])


def project(kind: int, blocks: Sequence[Block], start: Tensor, weight: Tensor, filled: int, tiles: Tiles) -> Tensor:
    """Multiply every b_i + y_0 of a kind by its layer's matrix.

    Args:
        kind: ``CHANNEL`` or ``TOKEN``.
        blocks: of the layers of this kind, in their order.
        start: y_0, ``(batch, n, d)``, contiguous.
        weight: ``(S, L * r, m)``, contiguous, in the dtype of the products.
        filled: tokens of weights and results, n and zeros behind them.
        tiles: sizes of the kernels' tiles.

    Returns:
        ``(S, L * r, batch, q)`` in the dtype of the products.
    """
    batch, n, d = start.shape
    trials, lines, _ = weight.shape
    out = weight.new_empty(trials, lines, batch, filled if kind == CHANNEL else d)
    group = tiles.group(trials * lines // len(blocks)) if blocks else 1
    for layers in layers_of(blocks):
        given = _given(layers, weight, len(blocks), n, filled, d)
        groups = triton.cdiv(trials * given["rank"], group)
        if kind == CHANNEL:
            tile = tiles.project_channel
            grid = (groups * layers.count * triton.cdiv(batch * filled, tile["tokens"]),)
            _project_channel[grid](
                layers.table, layers.rows, start, weight, out, batch, trials, **given, group=group, **tile
            )
        else:
            tile = tiles.project_token
            grid = (groups * layers.count * triton.cdiv(d, tile["channels"]) * batch,)
            _project_token[grid](
                layers.table, layers.rows, start, weight, out, batch, trials, **given, group=group, **tile
            )
    return out


def correlate(kind: int, blocks: Sequence[Block], start: Tensor, states: Tensor, filled: int, tiles: Tiles) -> Tensor:
    """Give the gradient of :func:`project`'s weight, float32 ``(S, L * r, m)``.

    Args:
        kind, blocks, start, filled, tiles: as there.
        states: the gradient of its result, ``(S, L * r, batch, q)``, contiguous.
    """
    batch, n, d = start.shape
    trials, lines = states.shape[:2]
    m = d if kind == CHANNEL else filled
    if not blocks:
        return states.new_zeros(trials, 0, m, dtype=torch.float32)
    group = tiles.group(trials * lines // len(blocks))
    tile = tiles.correlate_channel if kind == CHANNEL else tiles.correlate_token
    width = tile["channels" if kind == CHANNEL else "tokens"]
    programs = triton.cdiv(m, width) * triton.cdiv(trials * lines // len(blocks), group) * len(blocks)
    units = batch * filled if kind == CHANNEL else batch
    splits = max(1, min(units, tiles.programs // programs))
    share = triton.cdiv(units, splits)
    if kind == CHANNEL:
        share = triton.cdiv(share, tile["step"]) * tile["step"]
    splits = triton.cdiv(units, share)
    out = torch.empty(splits, trials, lines, m, dtype=torch.float32, device=states.device)
    kernel = _correlate_channel if kind == CHANNEL else _correlate_token
    for layers in layers_of(blocks):
        given = _given(layers, states, len(blocks), n, filled, d)
        groups = triton.cdiv(trials * given["rank"], group)
        grid = (groups * layers.count * triton.cdiv(m, width) * splits,)
        kernel[grid](layers.table, layers.rows, start, states, out, batch, trials, share, **given, group=group, **tile)
    return out.sum(0)


def _given(layers: Layers, like: Tensor, depth: int, n: int, filled: int, d: int) -> dict[str, Any]:
    """Collect what the kernels are compiled for."""
    return {
        "layers": layers.count,
        "depth": depth,
        "rank": like.shape[1] // depth,
        "n": n,
        "filled": filled,
        "d": d,
        "pitch": layers.pitch,
        "element": layers.element,
        "scale": layers.scale,
        "coded": layers.coded,
        "gathered": layers.rows is not None,
        "dtype": TYPES[like.dtype],
        "precision": precision_of(like.dtype),
    }
