"""Points of a trunk that can be cached: block outputs (Eq. 3), their branches (Table 4), the embedding (Table 6).

A point is named ``block.L``, ``attention.L`` or ``mlp.L``, L being a block number from 1; or ``embedding``: b_0, which
enters the first block. A branch's output is what it adds to the residual stream, after LayerScale, without drop path
(*not from the paper*, which leaves open where a branch ends), so that b_l = b_{l-1} + attention_l + mlp_l.

A cache holds all tokens of its points, or pooled rows of them (*not from the paper*): then one more point, ``tail``,
holds the features that the frozen tail makes of b_L, which pooled rows no longer tell.
"""

from collections.abc import Sequence

from losa_cache.errors import UserError

TAPS = {
    "block": ("block",),
    "attention": ("attention",),
    "mlp": ("mlp",),
    "both": ("attention", "mlp"),
}
"""Kinds of points that each tap takes of a block, in sequence."""
EMBEDDING = "embedding"
STARTS = ("output", EMBEDDING)
"""What a side network can refine: y_0 = b_L, or y_0 = b_0."""
ALL_LAYERS, LAST = "all", "last"
HEADS = (ALL_LAYERS, LAST)
"""What a classifier reads: pooled rows of all layers, or what the frozen tail makes of y_k."""
LINEAR, CONV = "linear", "conv"
DECODERS = (LINEAR, CONV)
"""What makes outputs of the patches of their tokens: a linear map, or a small convolutional network."""
ALL, POOLED = "all", "pooled"
TOKENS = (ALL, POOLED)
"""What a cache holds of a point: all of its tokens, or the class token and the mean of the patches."""
TAIL = "tail"
"""The last point of a pooled cache: the feature vector of the frozen tail."""


def require_tap(tap: str) -> None:
    """Refuse an unknown tap.

    Raises:
        UserError: naming the known ones.
    """
    if tap not in TAPS:
        raise UserError(f"unknown tap {tap!r}: choose one of {', '.join(TAPS)}.")


def require_tokens(tokens: str) -> None:
    """Refuse an unknown choice of tokens.

    Raises:
        UserError: naming the known ones.
    """
    if tokens not in TOKENS:
        raise UserError(f"unknown tokens {tokens!r}: choose one of {', '.join(TOKENS)}.")


def tapped_points(tap: str, layers: Sequence[int]) -> list[str]:
    """Name what a tap takes of these blocks: the k inputs of the side network, first to last."""
    return [f"{kind}.{layer}" for layer in layers for kind in TAPS[tap]]


def stored_points(tap: str, layers: Sequence[int], *, embedding: bool, tokens: str = ALL) -> list[str]:
    """Name the points that a cache holds, in its order.

    Args:
        tap: which of ``TAPS``.
        layers: block numbers, ascending; the last is the backbone's last.
        embedding: whether the input of the first block is there: it comes first.
        tokens: which of ``TOKENS`` it holds.

    Returns:
        the last is what the linear probe reads: the output of the last block, y_0, or the tail's features behind it.
    """
    points = _ending_in(f"block.{layers[-1]}", tapped_points(tap, layers))
    return [*([EMBEDDING] if embedding else []), *points, *([TAIL] if tokens == POOLED else [])]


def input_points(tap: str, layers: Sequence[int], *, start: str) -> list[str]:
    """Name the points that a side network reads, in the order of ``Batch.blocks``: its k inputs, and y_0 last.

    Args:
        tap, layers: as of :func:`stored_points`.
        start: which of ``STARTS`` is y_0.
    """
    y_0 = EMBEDDING if start == EMBEDDING else f"block.{layers[-1]}"
    return _ending_in(y_0, tapped_points(tap, layers))


def _ending_in(last: str, points: list[str]) -> list[str]:
    return points if points[-1] == last else [*points, last]
