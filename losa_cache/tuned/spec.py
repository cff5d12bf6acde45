"""What is known of a method before torch is imported, and how methods are named."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from losa_cache.errors import UserError, nearest
from losa_cache.literals import read_literals
from losa_cache.sidenet.spec import SIDES as NETWORKS

if TYPE_CHECKING:
    from torch import nn

    from losa_cache.tuned.trunk import Trunk

FOLDER = Path(__file__).parents[1] / "methods"
LARGEST_RANK = 2**20
"""What is built says more: at most the backbone's width, where that bounds it."""
SIDES: Mapping[str, str] = {"losa": "losa", "linear": "linear", "lst": "ladder", "res-tuning": "res_tuning"}
"""Names under which ``--method`` knows side networks, which need no backbone and may read a cache."""


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """What is known of a method that trains inside the backbone.

    Attributes:
        label: its name in tables.
        source: the publication.
        lr: default peak learning rate of AdamW.
        rank: default inner width, which ``--rank`` sets; 0: it has none.
        variants: what may stand behind the colon, as in ``vpt:deep``; the first is the default.
        joins: whether several variants may be named together, as in ``lora:qkv+mlp``.
        counts: whether a whole number from 1 may stand behind the colon, as in ``last:2``; the default is 1.
        tail: whether the final norm is trained, too.
        merges: whether what it trained can be folded into the backbone's own weights (``merge``).
        video: whether it needs the tokens of a video.
    """

    label: str
    source: str
    lr: float = 1e-3
    rank: int = 0
    variants: tuple[str, ...] = ()
    joins: bool = False
    counts: bool = False
    tail: bool = False
    merges: bool = False
    video: bool = False


class MethodFile(Protocol):
    """What the file of a method holds beside ``SPEC``."""

    def insert(self, trunk: "Trunk", *, rank: int, variant: str | int | None) -> None:
        """Change a frozen trunk in place: afterwards exactly what the method trains requires a gradient.

        Args:
            trunk: whose parameters are all frozen.
            rank: inner width, where ``SPEC.rank``.
            variant: one of ``SPEC.variants``, or the number, where ``SPEC.counts``.

        Raises:
            UserError: for a trunk that lacks what it changes, or sizes that cannot be.
        """
        ...

    def merge(self, model: "nn.Module") -> None:
        """Fold what was trained into the trunk's own weights, in place; only where ``SPEC.merges``.

        The outputs stay the same within rounding, and the model has its own structure again.
        """
        ...


METHODS: dict[str, MethodSpec] = {
    path.stem.replace("_", "-"): MethodSpec(**read_literals(path, "SPEC"))
    for path in sorted(FOLDER.glob("*.py"))
    if path.stem != "__init__"
}
"""All methods that train inside the backbone, by name."""


@dataclass(frozen=True)
class Method:
    """A method as the user named it.

    Attributes:
        name: one of ``METHODS``.
        variant: what stood behind the colon, or the default; ``None`` where the method has none.
        rank: inner width; 0 where the method has none.
    """

    name: str
    variant: str | int | None = None
    rank: int = 0

    @property
    def spec(self) -> MethodSpec:
        """What is known of it."""
        return METHODS[self.name]

    def __str__(self) -> str:
        return self.name if self.variant is None else f"{self.name}:{self.variant}"


def parse_method(text: str, rank: int | None = None) -> Method:
    """Read a method's name, and what stands behind its colon.

    Args:
        text: the name as the user writes it.
        rank: inner width; by default the method's own.

    Raises:
        UserError: naming what there is and how it is written, or for an inner width of a method that has none.
    """
    name, _, _ = text.partition(":")
    plain, at, inner = text.partition("@")
    if at:
        raise UserError(f"method is {text!r}, as pareto names it: write {plain}, and --rank {inner} beside it.")
    if (side := text.removeprefix("side-")) in NETWORKS and text not in METHODS:
        raise UserError(f"method is {text!r}, which is a side network: use --side {side}.")
    if name not in METHODS:
        known = [*METHODS, *SIDES]
        raise UserError(f"unknown method {text!r}: choose one of {', '.join(known)}{nearest(name, known)}.")
    spec = METHODS[name]
    if rank is not None and rank != spec.rank and not spec.rank:
        raise UserError(f"rank is {rank}, but method {name!r} has no inner width: leave it out.")
    if spec.rank and rank is not None:
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise UserError(f"rank is {rank!r}: it must be a whole number.")
        if not 1 <= rank <= LARGEST_RANK:
            raise UserError(f"rank is {rank}: it must lie between 1 and {LARGEST_RANK}.")
    return Method(name, _variant(text, spec), spec.rank if rank is None else rank)


def listed_methods() -> str:
    """List all methods with their variants, the default first: ``vpt[:shallow|deep]``."""
    behind = {name: "K" if spec.counts else "|".join(spec.variants) for name, spec in METHODS.items()}
    return ", ".join(f"{name}[:{variants}]" if variants else name for name, variants in behind.items())


def _variant(text: str, spec: MethodSpec) -> str | int | None:
    """Read what stands behind the colon.

    Raises:
        UserError: naming what may stand there.
    """
    name, colon, behind = text.partition(":")
    if spec.counts:
        if colon and not (behind.isascii() and behind.isdecimal() and 1 <= int(behind) <= 2**12):
            raise UserError(f"method is {text!r}: write {name} or {name}:K, with a whole number K from 1.")
        return int(behind or 1)
    if not colon:
        return spec.variants[0] if spec.variants else None
    parts = behind.split("+") if spec.joins else [behind]
    if not spec.variants or not {*parts} <= {*spec.variants} or len({*parts}) < len(parts):
        known = ", ".join(f"{name}:{variant}" for variant in spec.variants) or f"{name}, which has no variants"
        joined = ", or several joined by +" if spec.joins else ""
        raise UserError(f"unknown method {text!r}: choose {known}{joined}.")
    return behind


def load_method(name: str) -> MethodFile:
    """Import the file of a method, and torch with it."""
    return cast("MethodFile", import_module(f"losa_cache.methods.{name.replace('-', '_')}"))
