"""What a transcode changes of a cache: what stays as it is stored, what is decoded, what is refused. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from losa_cache.cache.manifest import Manifest
from losa_cache.cache.precision import get_precision
from losa_cache.cache.precision_names import PREDICT, parse_predict, require_precision
from losa_cache.errors import UserError
from losa_cache.layers import choose_layers
from losa_cache.points import POOLED, TAIL, require_tokens
from losa_cache.sidenet.pooled import pooling_of, tail_of_pooled
from losa_cache.software import software

BITS = {"float32": 32.0, "float16": 16.0, "bfloat16": 16.0, "int8": 8.0, "int4": 4.0}
"""Bits of a stored value, by precision; ``predict`` says its own."""
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Change:
    """What a transcode makes of a cache.

    Attributes:
        manifest: of the new cache, without its encoding.
        kept: positions in the old cache of the points that are read, in their order.
        decoded: whether values are decoded and encoded anew; otherwise the stored elements are copied.
        pooled: whether tokens are pooled to rows, and the features of the tail are added.
    """

    manifest: Manifest
    kept: list[int]
    decoded: bool
    pooled: bool


def plan_change(
    source: Manifest,
    place: str,
    *,
    layers: str | int | Sequence[int] | None = None,
    precision: str | None = None,
    tokens: str | None = None,
) -> Change:
    """Decide what a transcode does.

    Args:
        source: of the old cache, complete.
        place: of it, for messages.
        layers: as of ``losa_cache.layers.choose_layers``, out of those of the cache; ``None``: all.
        precision: of the new cache; ``None``: the same.
        tokens: which tokens the new cache holds; ``None``: the same.

    Raises:
        UserError: for layers that are not there, tokens that pooled rows no longer tell, a precision that is finer than
            that of the stored values, and fewer layers in the same ``predict`` precision.
    """
    chosen = source.layers if layers is None else choose_layers(layers, source.layers)
    holds = source.holds if tokens is None else tokens
    require_tokens(holds)
    pooled = holds == POOLED and source.holds != POOLED
    if holds != source.holds and not pooled:
        raise UserError(
            f"cache {place!r} holds pooled rows alone, of which tokens cannot be made: leave out --tokens {holds}, or "
            "name a cache of all tokens."
        )
    wanted = source.precision if precision is None else precision
    require_precision(wanted, tokens=holds)
    coded = get_precision(wanted)
    coded.require(source.width)
    fewer, decoded = chosen != source.layers, pooled or coded.name != source.precision
    if not pooled and is_finer(coded.name, source):
        raise UserError(
            f"precision {coded.name} is finer than {source.precision}, in which {place!r} stores its values, and would "
            "hold nothing more: choose a coarser one, or extract again."
        )
    if fewer and not decoded and coded.chained:
        lost = ", ".join(str(layer) for layer in source.layers if layer not in chosen)
        raise UserError(
            f"{coded.name} predicts each layer from the one before it, and layers {lost} would be missing: keep all "
            "layers, or choose a --precision with fewer bits, which is fitted anew."
        )
    exact = not pooled and coded.name in FLOATS and source.precision in ("float32", coded.name)
    fields = source.fields | {"layers": chosen, "precision": coded.name}
    if pooled:
        fields["tokens"] = POOLED
    if (fewer or decoded) and not exact:
        fields["made_from"] = [source.identity]
    manifest = replace(begun(source, fields, [source]), options=_options(source, fields))
    if pooled:
        rows = pooling_of(source.tail).rows
        tail = tail_of_pooled(source.width, rows)
        manifest = replace(manifest, tokens={"total": rows, "prefix": rows - 1, "grid": [1, 1]}, tail=tail)
    points = [point for point in manifest.points if not (pooled and point == TAIL)]
    return Change(manifest, [source.points.index(point) for point in points], decoded, pooled)


def begun(like: Manifest, fields: dict[str, Any], sources: Sequence[Manifest]) -> Manifest:
    """Give the manifest of a cache that is made from others, without shards and target sets yet.

    Args:
        like: whose tokens, classes, tail and encoding it has.
        fields: what decides its numbers.
        sources: of the caches that it is made from.
    """
    made_from = [{"identity": one.identity, "fields": one.fields, "software": one.software} for one in sources]
    empty: dict[str, Any] = {"complete": False, "skipped": [], "overflowed": 0, "non_finite": 0, "targets": {}}
    return replace(like, fields=fields, made_from=made_from, software=software(), **empty)


def kept_encoding(encoding: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Give what a cache's encoding says of some of its points."""
    return {name: [value[at] for at in kept] if isinstance(value, list) else value for name, value in encoding.items()}


def total_error(before: float | list[float], after: float | list[float]) -> float | list[float]:
    """Bound the error of values that were encoded twice: the second error is one of the values that the first left."""
    return _by_point(_short, before, after)


def largest_error(one: float | list[float], other: float | list[float]) -> float | list[float]:
    """Bound the error of values of which some have the one error, and some the other."""
    return _by_point(max, one, other)


def _by_point(
    of: Callable[[float, float], float], one: float | list[float], other: float | list[float]
) -> float | list[float]:
    """Compute an error from two, each of all points or one for each."""
    if isinstance(one, float | int) and isinstance(other, float | int):
        return of(one, other)
    points = max(len(own) for own in (one, other) if isinstance(own, list))
    ones, others = (own if isinstance(own, list) else [own] * points for own in (one, other))
    return [of(*pair) for pair in zip(ones, others, strict=True)]


def _short(before: float, after: float) -> float:
    return float(f"{before + after + before * after:.3g}")


def is_finer(name: str, source: Manifest) -> bool:
    """Whether a precision would spend more on a value than the stored values have."""
    if name == source.precision:
        return False
    stated = source.encoding["error"]
    held = BITS[source.precision] if source.precision in BITS else float(source.encoding["bits"])
    if name.partition(":")[0] == PREDICT:
        bits, error = parse_predict(name)
        if error is not None:
            return error < (sum(stated) / len(stated) if isinstance(stated, list) else stated)
        assert bits is not None
        return bits > held
    return BITS[name] > held or (name, source.precision) == ("float16", "bfloat16")


def _options(source: Manifest, fields: dict[str, Any]) -> dict[str, Any] | None:
    """Give the options of an extraction with the same layers, tokens and precision."""
    if source.options is None:
        return None
    changed = {"layers": fields["layers"]} if fields["layers"] != source.layers else {}
    changed |= {"tokens": POOLED} if fields.get("tokens") == POOLED else {}
    return source.options | changed | {"precision": fields["precision"]}
