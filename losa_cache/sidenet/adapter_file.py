"""Adapter files: what training leaves behind, a safetensors file and a JSON config.

The config has a seal and the digest of the tensors' file, so that every change made to either is noticed. The tensors
are those that training changes and, where the classifier reads through it, the backbone's frozen tail: so an adapter
stands alone. Adapters of earlier versions may have no seal, no digest and no tail.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta, Struct
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from losa_cache.data.pixel_rules import PixelFields, PixelRules
from losa_cache.errors import UserError
from losa_cache.files import with_seal, without_seal, write_json, write_whole
from losa_cache.outside import UnreadableError, fit, read_file, read_json
from losa_cache.points import DECODERS, HEADS, LAST, STARTS, TAPS, tapped_points
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.adapter_folder import FORMAT, VERSION, AdapterFiles, find_files, new_files
from losa_cache.sidenet.build import build_adapter
from losa_cache.sidenet.spec import SIDES
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.tasks import CLASSIFICATION, get_task
from losa_cache.tuned.spec import Method, parse_method

TAIL = "tail."  # before the names of the frozen tail's tensors
TRUNK = "trunk."  # before the names of tensors that were trained inside the backbone
HEADER = 2**24  # bytes that a safetensors file has beside its tensors, at most
MOST_INSIDE = 2**36  # bytes of those tensors: what they are is known with the backbone

Size = Annotated[int, Meta(ge=1, le=2**24)]


class _Dense(Struct, forbid_unknown_fields=True):
    """The further arguments of :class:`losa_cache.sidenet.dense.DenseAdapter`."""

    decoder: str
    grid: tuple[Size, Size]


class _Arguments(Struct, forbid_unknown_fields=True):
    """Those of :class:`Adapter`, as a config has them."""

    side: str
    depth: Annotated[int, Meta(ge=1, le=2**13)]
    tokens: Size
    width: Size
    rank: Annotated[int, Meta(ge=0, le=2**20)]
    classes: Annotated[int, Meta(ge=1, le=2**24)]
    seed: Annotated[int, Meta(ge=0)] = 0
    grid: Annotated[list[Size], Meta(min_length=3, max_length=3)] | None = None
    head: str = LAST
    dense: _Dense | None = None
    points: Annotated[int, Meta(ge=1, le=2**13)] = 1


class _Named(Struct):
    name: str


class _Backbone(Struct):
    name: str
    weights: str


Number = Annotated[float, Meta(gt=-1e6, lt=1e6)]


class _Input(Struct):
    """The preprocessing (``losa_cache.data.transforms.InputSpec``)."""

    size: tuple[Annotated[int, Meta(ge=1, le=4)], Size, Size]
    mean: Annotated[list[Number], Meta(min_length=1, max_length=4)]
    std: Annotated[list[Annotated[float, Meta(gt=0, lt=1e6)]], Meta(min_length=1, max_length=4)]
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"]
    crop_pct: Annotated[float, Meta(gt=0, le=4)]
    crop_mode: Literal["center", "squash", "border"]
    frames: Annotated[int, Meta(ge=1, le=2**16)] = 1
    stride: Annotated[int, Meta(ge=0, le=2**16)] = 1


class _Sampling(Struct):
    seed: Annotated[int, Meta(ge=0)]


class _Views(Struct, frozen=True):
    clips: Annotated[int, Meta(ge=1, le=2**16)] = 1


class _Fields(Struct):
    """What is read of a cache's fields here, or by those who ask whether an adapter fits a cache or a backbone."""

    backbone: _Backbone
    input: _Input
    tap: str
    precision: str
    sampling: _Sampling
    dataset: _Named
    views: _Views = _Views()  # the caches of early versions have none
    pixels: PixelFields = {}


class _Cache(Struct):
    identity: str
    fields: _Fields
    checked: bool = False  # whether pictures that hardly use their range were refused; earlier versions do not say


class _Probe(Struct, forbid_unknown_fields=True):
    """How a probe was fitted that has seen the samples held out of training."""

    c: Annotated[float, Meta(gt=0)]
    share: Annotated[float, Meta(ge=0)]
    ridge: Annotated[float, Meta(ge=0)] = 0.0  # adapters of earlier versions have a logistic regression alone
    logistic_share: Annotated[float, Meta(ge=0)] = 1.0
    ridge_share: Annotated[float, Meta(ge=0)] = 0.0


class _Method(Struct, forbid_unknown_fields=True):
    """What was trained inside the backbone (:class:`losa_cache.tuned.spec.Method`)."""

    name: str
    variant: str | int | None = None
    rank: Annotated[int, Meta(ge=0, le=2**20)] = 0


class _Targets(Struct, forbid_unknown_fields=True):
    """The target set that it learned."""

    name: str
    kind: str
    fingerprint: str


class _Config(Struct):
    """An adapter's config, but for what this file does not read of it."""

    adapter: _Arguments
    layers: Annotated[list[Size], Meta(min_length=1, max_length=2**12)]
    tap: str
    start: str
    classes: list[str]
    cache: _Cache
    probe: _Probe | None = None
    task: str = CLASSIFICATION  # adapters of earlier versions do not name it
    tail: dict[str, Any] | None = None  # nor this
    targets: _Targets | None = None  # nor these two
    constants: dict[str, Any] = {}
    method: _Method | None = None  # a side network's has none


_UNREAD = ("format", "version", "software", "run", "pretrained", "sha256", "seal")
"""What else a config holds."""


def save_adapter(
    run: Path, adapter: Adapter, config: dict[str, Any], inside: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """Write the tensors and the config (arguments of :class:`Adapter`, and where it was trained), durably.

    Args:
        run: directory of the run, in which the folder ``adapter`` is made.
        adapter: whose training is over.
        config: what :class:`_Config` holds.
        inside: tensors that were trained inside the backbone, by their names there.

    Raises:
        UserError: if they cannot be written, or are not finite: there is no adapter then.
    """
    files = new_files(run)
    state = adapter.trained_state() | ({} if not adapter.reads_tail else _named(adapter.tail))
    state |= {f"{TRUNK}{name}": value for name, value in inside.items()}
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            raise UserError(f"{name} has values that are infinite or not numbers, and is not saved: lower --lr.")
    tensors = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
    whole = {"format": FORMAT, "version": VERSION, **config, "tail": adapter.tail.config}
    try:
        files.folder.mkdir(exist_ok=True)
        files.config.unlink(missing_ok=True)  # an earlier one's: it does not know these tensors
        write_whole(files.tensors, tensors)
        write_json(files.config, with_seal(whole | {"sha256": hashlib.sha256(tensors).hexdigest()}))
    except OSError as error:
        raise UserError(
            f"{str(error.filename or files.folder)!r} cannot be written ({error.strerror}): the training is over and "
            "its checkpoint kept; make room, or make it writable, and continue with --resume."
        ) from error


def _named(tail: FrozenTail) -> dict[str, Tensor]:
    return {f"{TAIL}{name}": value for name, value in tail.state_dict().items()}


def load_adapter_config(path: Path) -> dict[str, Any]:
    """Read an adapter's config.

    Args:
        path: of a finished run, or of an adapter.

    Raises:
        UserError: if it holds no adapter, or the config was altered.
    """
    files = find_files(path)
    try:
        config = read_json(files.config, dict[str, Any])
        if files.stands_alone:
            _require_known(config)
        if missing := {"adapter", "tap", "layers", "start", "classes", "cache"} - config.keys():
            raise UnreadableError(f"lacks {', '.join(sorted(missing))}")
        if surprises := config.keys() - {*_Config.__struct_fields__, *_UNREAD}:
            raise UnreadableError(f"{min(surprises)} is unknown")
        _require_whole(fit(config, _Config))
    except UnreadableError as error:
        raise UserError(f"{str(path)!r} holds no adapter ({files.config.relative_to(path)}: {error}).") from error
    if "seal" in config or "sha256" in config:
        try:
            without_seal(config)
        except ValueError as error:
            raise UserError(
                f"adapter {str(files.config)!r} cannot be loaded: {error}. Put back the original."
            ) from error
    return config


def _require_known(config: dict[str, Any]) -> None:
    """Refuse what is no adapter of this format, and versions to come."""
    if config.get("format") != FORMAT:
        raise UnreadableError(f"its format is {config.get('format')!r} and not {FORMAT!r}")
    if config.get("version") != VERSION:
        raise UnreadableError(f"it is of version {config.get('version')!r}, and this losa-cache reads {VERSION}")
    if "tail" not in config:
        raise UnreadableError("lacks tail")


def _require_whole(config: _Config) -> None:
    """Refuse a config whose parts do not go together."""
    own = config.adapter
    if config.start not in STARTS:
        raise UnreadableError(f"start is {config.start!r}")
    if list(config.layers) != sorted(set(config.layers)):
        raise UnreadableError(f"layers is {config.layers}")
    if config.tap not in TAPS:
        raise UnreadableError(f"tap is {config.tap!r}")
    if own.side not in SIDES:
        raise UnreadableError(f"side is {own.side!r}")
    if own.depth != (1 if SIDES[own.side].last_layer else len(tapped_points(config.tap, config.layers))):
        raise UnreadableError(f"depth is {own.depth} of {len(config.layers)} layers")
    if own.head not in HEADS:
        raise UnreadableError(f"head is {own.head!r}")
    if config.method is not None:
        _require_method(config.method, own.side)
    try:
        PixelRules.from_fields({"pixels": config.cache.fields.pixels})
        task = get_task(config.task).restored(config.constants)
        outputs = task.outputs(config.classes)
    except (UserError, ValueError) as error:
        raise UnreadableError(str(error).removesuffix(".")) from error
    if own.classes != outputs:
        raise UnreadableError(f"it counts {own.classes} classes and names {len(config.classes)}")
    if task.dense != (own.dense is not None):
        raise UnreadableError(f"the task {config.task} does not go with {'a' if own.dense else 'no'} decoder")
    if own.dense is not None and own.dense.decoder not in DECODERS:
        raise UnreadableError(f"decoder is {own.dense.decoder!r}")
    if config.targets is not None and config.targets.kind != task.kind:
        raise UnreadableError(f"the task {config.task} does not learn targets of the kind {config.targets.kind!r}")


def _require_method(method: _Method, side: str) -> None:
    """Refuse a method that is not known, or stands beside another side network than the plain classifier."""
    named = method.name if method.variant is None else f"{method.name}:{method.variant}"
    try:
        known = parse_method(named, method.rank)
    except UserError as error:
        raise UnreadableError(str(error).removesuffix(".")) from error
    if known != Method(method.name, method.variant, method.rank):
        raise UnreadableError(f"method is {method.variant!r} of {method.name!r}")
    if side != "linear":
        raise UnreadableError(f"method is {named!r}, and side is {side!r}")


def load_adapter(path: Path, config: dict[str, Any], tail: FrozenTail | None = None) -> Adapter:
    """Rebuild a trained adapter around a frozen tail (:func:`load_whole`)."""
    return load_whole(path, config, tail)[0]


def load_whole(path: Path, config: dict[str, Any], tail: FrozenTail | None = None) -> tuple[Adapter, dict[str, Tensor]]:
    """Rebuild a trained adapter around a frozen tail, and give what was trained inside the backbone, if something was.

    Args:
        path: of a finished run, or of an adapter.
        config: that :func:`load_adapter_config` has read.
        tail: by default its own.

    Returns:
        the adapter, and the tensors that its method has trained inside the backbone, by their names there.

    Raises:
        UserError: if the tensors are missing, were altered, are not those of the config, or are not finite; or if the
            adapter has no tail of its own, as those of earlier versions, and none is given.
    """
    files = find_files(path)
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes the config names
            declared = _declared_tail(config, files) if tail is None or files.stands_alone else tail
            empty = build_adapter(config["adapter"], declared)
            wanted = empty.trained_state() | (_named(declared) if files.stands_alone and empty.reads_tail else {})
        more = MOST_INSIDE if config.get("method") else 0
        raw = read_file(files.tensors, at_most=HEADER + more + sum(value.nbytes for value in wanted.values()))
        if "sha256" in config and hashlib.sha256(raw).hexdigest() != config["sha256"]:
            raise UnreadableError("it was altered since it was written")
        tensors = load(raw)
        inside = _taken(tensors, TRUNK) if config.get("method") else {}
        _require_these(tensors, wanted)
        _require_trained(inside)
        kept = _taken(tensors, TAIL)
        if tail is None:
            tail = FrozenTail(config["tail"], kept if empty.reads_tail else None)
        adapter = build_adapter(config["adapter"], tail)
        adapter.load_state_dict(tensors, strict=False)
    except (UnreadableError, UserError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"adapter {str(files.tensors)!r} cannot be loaded ({str(error).removesuffix('.')}).") from error
    return adapter, inside


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors whose names begin so, and name them without it."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _require_trained(inside: dict[str, Tensor]) -> None:
    """Refuse numbers that are none; names and shapes are held to the backbone when it is there."""
    for name, value in inside.items():
        require_alike(value, value.new_empty(value.shape, dtype=torch.float32), name, "where training is exact")


def _declared_tail(config: dict[str, Any], files: AdapterFiles) -> FrozenTail:
    if not files.stands_alone:
        raise UnreadableError("it has no frozen tail, as adapters of earlier versions: name a cache that it fits")
    return FrozenTail(config["tail"])


def rebuild(adapter: Adapter, config: dict[str, Any], tail: FrozenTail, *, tokens: int) -> Adapter:
    """Put a loaded adapter around another tail, or on other rows of the same blocks; weights are shared, not copied.

    Args:
        adapter: that is loaded.
        config: its own.
        tail: of the backbone, or of a cache.
        tokens: rows n of a block output.
    """
    with torch.device("meta"):
        found = build_adapter(config["adapter"] | {"tokens": tokens}, tail)
    found.load_state_dict(adapter.trained_state(), strict=False, assign=True)
    return found.eval()


def _require_these(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Refuse other tensors than those that are wanted, and numbers that are none."""
    if strange := tensors.keys() ^ wanted.keys():
        raise UnreadableError(f"its tensors are not those of its config: {min(strange)} is only in one of them")
    for name, value in wanted.items():
        require_alike(tensors[name], value, name, "by its config")


def require_alike(found: Tensor, wanted: Tensor, name: str, where: str) -> None:
    """Refuse a tensor of another shape or dtype, and numbers that are none.

    Args:
        found: that a file holds.
        wanted: what it must be like; its values do not count.
        name: of the tensor, for messages.
        where: what says how it must be, for messages: "by its config".

    Raises:
        UnreadableError: naming the tensor.
    """
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        here, there = (f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in (found, wanted))
        raise UnreadableError(f"{name} is {here}, and {there} {where}")
    if not bool(torch.isfinite(found).all()):
        raise UnreadableError(f"{name} holds values that are not finite")
