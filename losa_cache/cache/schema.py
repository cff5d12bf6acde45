"""Checks of a cache's attributes: types and bounds by msgspec, then whether they agree with each other.

A cache may come from anywhere, or from a failing disk. This module and ``arrays.py`` check everything that it declares,
before it decides how much memory is allocated or which numbers are read.
"""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from losa_cache.cache.precision import Precision, get_precision
from losa_cache.data.pixel_rules import PixelFields, PixelRules
from losa_cache.errors import UserError
from losa_cache.inputs_config import InputsConfig
from losa_cache.options import OptionField, options_of
from losa_cache.outside import fit, require
from losa_cache.points import ALL, POOLED, stored_points
from losa_cache.targets.check import require_name, require_names

MOST = 2**31 - 1  # of whatever is counted but rows
LARGEST = 1.7976931348623157e308  # the largest finite number

Count = Annotated[int, Meta(ge=1, le=MOST)]
Whole = Annotated[int, Meta(ge=0, le=MOST)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Rows = Annotated[int, Meta(ge=0, le=2**62)]
Finite = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
Error = Annotated[float, Meta(ge=0, le=LARGEST)]


class Backbone(TypedDict):
    """``fields.backbone``."""

    name: str
    weights: str


class Input(TypedDict):
    """``fields.input``: the transform, in timm's terms."""

    size: Annotated[list[Count], Meta(min_length=3, max_length=3)]
    mean: Annotated[list[Finite], Meta(min_length=1, max_length=4)]
    std: Annotated[list[Positive], Meta(min_length=1, max_length=4)]
    interpolation: str
    crop_pct: Positive
    crop_mode: str
    frames: Count
    stride: Whole


class DataSet(TypedDict):
    """``fields.dataset``."""

    name: str
    split: str
    fingerprint: str


class Sampling(TypedDict):
    """``fields.sampling``."""

    seed: Seed
    limit: Count | None


class Views(TypedDict):
    """``fields.views``."""

    count: Count
    augment: str | None
    clips: Count


class Fields(TypedDict):
    """``fields``: what decides the numbers."""

    backbone: Backbone
    input: Input
    tap: str
    layers: Annotated[list[Count], Meta(min_length=1)]
    embedding: bool
    precision: str
    compute: str
    dataset: DataSet
    sampling: Sampling
    views: Views
    decoder: NotRequired[str]
    orientation: NotRequired[str]
    pixels: NotRequired[PixelFields]
    tokens: NotRequired[Literal["pooled"]]
    made_from: NotRequired[Annotated[list[str], Meta(min_length=1)]]


class Tokens(TypedDict):
    """``tokens``."""

    total: Count
    prefix: Whole
    grid: Annotated[list[Count], Meta(min_length=2, max_length=3)]


class Norm(TypedDict):
    """A norm of the tail."""

    type: Literal["identity", "layernorm", "rmsnorm"]
    eps: NotRequired[Error | None]
    affine: NotRequired[bool]
    bias: NotRequired[bool]


class Map(TypedDict):
    """``tail.map``: attention pooling."""

    heads: Count
    latents: Count
    positions: Whole
    bias: bool
    q: bool
    qk_norm: Norm
    norm: Norm
    hidden: Count
    activation: str
    reduce: Literal["avg", "token"]


class Tail(TypedDict):
    """``tail``: config of the frozen tail."""

    width: Count
    prefix_tokens: Whole
    pool: Literal["token", "avg", "max", "avgmax", "map"]
    pool_prefix: bool
    class_tokens: Count
    norm: Norm
    fc_norm: Norm
    map: NotRequired[Map]


class Encoded(TypedDict):
    """``encoding``: what the precision says of itself."""

    error: Error | list[Error]
    compressed: Positive | None
    bits: NotRequired[Positive]
    group: NotRequired[Count | None]
    bits_by_layer: NotRequired[list[Error]]
    fitted_error: NotRequired[list[Error]]


class Skipped(TypedDict):
    """An entry of ``skipped``."""

    row: Rows
    id: str
    reason: str


class Targets(TypedDict):
    """An entry of ``targets``."""

    kind: Literal["class", "multilabel", "numbers", "mask", "depth"]
    names: list[str]
    fingerprint: Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]


class Made(TypedDict):
    """An entry of ``made_from``."""

    identity: str
    fields: dict[str, Any]
    software: dict[str, str]
    digest: NotRequired[Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]]


class Attributes(TypedDict):
    """The attributes of a cache."""

    protocol: int
    identity: str
    fields: Fields
    tokens: Tokens
    width: Count
    depth: Count
    classes: list[str]
    tail: Tail
    software: dict[str, str]
    encoding: Encoded
    options: dict[str, Any] | None
    complete: bool
    skipped: list[Skipped]
    overflowed: Rows
    non_finite: Rows
    targets: NotRequired[dict[str, Targets]]
    made_from: NotRequired[Annotated[list[Made], Meta(min_length=1)]]


def _stored(field: OptionField) -> Any:
    """Give the type that an option of an extraction has in a cache."""
    if field.name == "seed":
        return Seed
    if field.simple is int:
        return Whole if field.default is not None else Whole | None
    return field.kind if field.name not in ("backbone", "dataset") else str


OPTIONS = {own.name: _stored(own) for own in options_of(InputsConfig)} | {"batch_size": Count}
"""``options``: what the extraction was called with."""
_Options = TypedDict("_Options", OPTIONS, total=False)  # type: ignore[misc]


def check_attributes(content: Mapping[str, Any]) -> None:
    """Check the types and bounds of the attributes, and that they agree with each other.

    Raises:
        UnreadableError: if a type or bound is wrong; says where.
        ValueError: if two of them do not agree.
    """
    attributes = fit(content, Attributes)
    fields, tokens, tail, width = attributes["fields"], attributes["tokens"], attributes["tail"], attributes["width"]
    layers, depth = fields["layers"], attributes["depth"]
    holds = fields.get("tokens", ALL)
    points = len(stored_points(fields["tap"], layers, embedding=fields["embedding"], tokens=holds))
    require(layers == sorted(set(layers)), f"layers {layers} are not ascending")
    require(layers[-1] == depth, f"layers end at {layers[-1]}, the backbone at {depth}")
    rest = prod(tokens["grid"])
    require(
        tokens["prefix"] + rest == tokens["total"],
        f"tokens.total is {tokens['total']}, prefix and grid are {tokens['prefix']} + {rest}",
    )
    precision_of(fields["precision"])
    pixels_of(fields)
    if holds == POOLED:
        require(tokens["grid"] == [1, 1] and tokens["prefix"] <= 1, f"pooled rows are {tokens}")
        plain = tail["pool"] == "token" and tail["norm"]["type"] == tail["fc_norm"]["type"] == "identity"
        require(plain, "the tail of pooled rows does not read the first as it is")
    require(tail["width"] == width, f"tail.width is {tail['width']}, width {width}")
    require(
        tail["prefix_tokens"] == tokens["prefix"],
        f"tail.prefix_tokens is {tail['prefix_tokens']}, tokens.prefix {tokens['prefix']}",
    )
    firsts = max(1, tokens["prefix"]) if tail["pool"] == "token" else tokens["total"]
    require(tail["class_tokens"] <= firsts, f"tail.class_tokens is {tail['class_tokens']}, of {firsts}")
    require(("map" in tail) == (tail["pool"] == "map"), f"tail.pool is {tail['pool']}, and tail.map does not agree")
    norms = [tail["norm"], tail["fc_norm"]]
    if (pool := tail.get("map")) is not None:
        norms += [pool["qk_norm"], pool["norm"]]
        require(width % pool["heads"] == 0, f"tail.map.heads is {pool['heads']}, width {width}")
        pooled = tokens["total"] - (0 if tail["pool_prefix"] else tokens["prefix"])
        require(pool["positions"] in (0, pooled), f"tail.map.positions is {pool['positions']}, tokens {pooled}")
    for norm in norms:
        require(
            norm["type"] == "identity" or {"eps", "affine", "bias"} <= norm.keys(), f"a {norm['type']} lacks its config"
        )
    require(bool(attributes["classes"]), "there are no classes")
    errors = [
        attributes["encoding"]["error"],
        attributes["encoding"].get("fitted_error"),
        attributes["encoding"].get("bits_by_layer"),
    ]
    for one in errors:
        require(not isinstance(one, list) or len(one) == points, "the encoding's errors or bits are not one a point")
    rows = [entry["row"] for entry in attributes["skipped"]]
    require(len(set(rows)) == len(rows), "a row is skipped twice")
    for name, declared in attributes.get("targets", {}).items():  # it names a folder
        require_name(name)
        require_names(declared["kind"], declared["names"])


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of an extraction that a cache stores.

    Raises:
        UnreadableError: if one is of another type.
        ValueError: if one is missing, or not known to this version.
    """
    if unknown := sorted(options.keys() - OPTIONS.keys()):
        raise ValueError(f"there is an option {unknown[0]!r}")
    fitted: dict[str, Any] = fit(options, _Options)  # type: ignore[arg-type]
    if lacking := {"backbone", "dataset"} - fitted.keys():
        raise ValueError(f"there is no {min(lacking)}")
    require("/" not in fitted.get("split", ""), "the split is a path")
    return fitted


def precision_of(name: str) -> Precision:
    """Look up the precision that a cache names.

    Raises:
        ValueError: if there is none of this name.
    """
    try:
        return get_precision(name)
    except UserError as error:
        raise ValueError(str(error)) from error


def pixels_of(fields: Mapping[str, Any]) -> PixelRules:
    """Read the rules of pixels that a cache names.

    Raises:
        ValueError: if there are no such rules.
    """
    try:
        return PixelRules.from_fields(fields)
    except UserError as error:
        raise ValueError(str(error)) from error
