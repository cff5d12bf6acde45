"""The methods of a comparison as a user names them: ``METHOD[:VARIANT][@RANK]``, or ``SIDE:online``. No torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from losa_cache.errors import UserError, nearest
from losa_cache.sidenet.spec import SIDES
from losa_cache.tuned.spec import METHODS, parse_method
from losa_cache.tuned.spec import SIDES as NAMED

ONLINE = "online"
"""The variant of a side network that is trained with the backbone in every step, as the paper does."""
NETWORKS = {**NAMED} | {f"side-{own}" if own in METHODS else own: own for own in SIDES if own not in NAMED.values()}
"""Side networks by the names under which they are compared; some methods have the name of one."""


@dataclass(frozen=True)
class Entry:
    """A method of a comparison.

    Attributes:
        text: as the user named it.
        lr: its default learning rate.
        side: the side network that it is; ``None``: it trains inside the backbone.
        method: with its variant, as of ``--method``; ``None``: it is a side network.
        rank: the inner width that was asked for; ``None``: its default.
        online: whether the backbone runs in every step.
    """

    text: str
    lr: float
    side: str | None = None
    method: str | None = None
    rank: int | None = None
    online: bool = False

    @property
    def cached(self) -> bool:
        """Whether it is trained from a cache."""
        return not self.online

    @property
    def folder(self) -> str:
        """Name of the folder that holds its runs."""
        return re.sub(r"[^\w.-]", "_", self.text)

    @property
    def words(self) -> list[str]:
        """Its options on the command line of ``train``."""
        named = ["--side", self.side] if self.side is not None else ["--method", str(self.method)]
        return named + ([] if self.rank is None else ["--rank", str(self.rank)])


def parse_entry(text: str) -> Entry:
    """Read the name of a method.

    Raises:
        UserError: naming what there is.
    """
    named, at, behind = text.partition("@")
    rank = None
    if at:
        if not (behind.isascii() and behind.isdecimal() and 1 <= int(behind) <= 2**20):
            raise UserError(f"methods has {text!r}: behind @ stands a rank, a whole number from 1, as in losa@8.")
        rank = int(behind)
    name, colon, variant = named.partition(":")
    if name in NETWORKS:
        if colon and variant != ONLINE:
            raise UserError(
                f"methods has {text!r}: write {name}, or {name}:{ONLINE} to train it with the backbone in every step."
            )
        spec = SIDES[NETWORKS[name]]
        _require_rank(text, rank, spec.rank)
        return Entry(text, spec.lr, side=NETWORKS[name], rank=rank, online=bool(colon))
    if name not in METHODS:
        known = [*NETWORKS, *METHODS]
        raise UserError(f"methods has {text!r}, which is unknown: choose of {', '.join(known)}{nearest(name, known)}.")
    method = parse_method(named)
    _require_rank(text, rank, bool(method.spec.rank))
    return Entry(text, method.spec.lr, method=named, rank=rank, online=True)


def _require_rank(text: str, rank: int | None, has: bool) -> None:
    if rank is not None and not has:
        raise UserError(f"methods has {text!r}, which has no rank: leave @{rank} out.")


def parse_entries(texts: str) -> list[Entry]:
    """Read a list of methods.

    Raises:
        UserError: for a name that is unknown or comes twice, or an empty list.
    """
    named = [text.strip() for text in texts.split(",") if text.strip()]
    if not named:
        raise UserError(f"methods is {texts!r}: name at least one, as in losa,lora:qkv,bitfit.")
    if twice := next((text for number, text in enumerate(named) if text in named[:number]), None):
        raise UserError(f"methods has {twice!r} twice: leave one of them out.")
    return [parse_entry(text) for text in named]


def all_entries(*, video: bool) -> list[str]:
    """Name all methods that images, or videos, can be learned with; LoSA as the paper trains it, too."""
    inside = [name for name, spec in METHODS.items() if video or not spec.video]
    return [f"losa:{ONLINE}", *NETWORKS, *inside]


def rates(default: float, count: int) -> list[float]:
    """Give so many learning rates, in ascending order: the default, then in turn one above and one below.

    Neighbours differ by half a decade.
    """
    below = (count - 1) // 2
    return [float(f"{default * 10 ** ((place - below) / 2):.2g}") for place in range(count)]


def named_in(texts: Sequence[str]) -> list[Entry]:
    """Read methods that were checked when they were first named."""
    return [parse_entry(text) for text in texts]
