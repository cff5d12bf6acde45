"""The search space of a sweep: choices and ranges of a run's options, as text, in a file, and as a grid."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from losa_cache.errors import UserError
from losa_cache.options import options_of
from losa_cache.options_file import read_options
from losa_cache.sidenet.spec import SIDES
from losa_cache.text import shown
from losa_cache.train.config import TrainConfig

DECADE = 10  # ranges of a decade or more are searched by orders of magnitude
MOST_CHOICES = 1000  # of an option
MOST_COMBINATIONS = 10_000  # of a grid
LARGEST = 2**31 - 1  # integer: seeds of more bits are not the same on all devices


@dataclass(frozen=True)
class Choices:
    """A list of values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """All values between two bounds, both included. They are integers if both bounds are. Ranges of a decade or more
    are searched on a logarithmic scale.
    """

    low: int | float
    high: int | float

    @property
    def log(self) -> bool:
        """Whether it is searched by orders of magnitude."""
        return self.low > 0 and self.high >= DECADE * self.low

    @property
    def integer(self) -> bool:
        """Whether its values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Space = dict[str, Choices | Range]
"""What is searched, by the name of a field of ``TrainConfig``."""

_SEARCHED = [own for own in options_of(TrainConfig) if own.option.searched]
KINDS: dict[str, type] = {own.name: own.simple for own in sorted(_SEARCHED, key=lambda own: own.simple is str)}
"""What can be searched, and the type of its values."""


def parse(name: str, text: str) -> Choices | Range:
    """Read ``4,8,16`` as choices, ``1e-4..1e-2`` as a range.

    Raises:
        UserError: for values that are not of the option's type, a repeated value, and a range whose bounds are wrong.
    """
    if ".." not in text:
        return choices(name, [part.strip() for part in text.rstrip().removesuffix(",").split(",")])
    low, high = (_value(name, part.strip()) for part in text.split("..", 1))
    return _range(name, low, high)


def choices(name: str, values: Sequence[Any]) -> Choices:
    """Take some values of an option.

    Raises:
        UserError: for values that are not of the option's type, a repeated value, no value or too many.
    """
    option = _option(name)
    if not 1 <= len(values) <= MOST_CHOICES:
        raise UserError(f"{option} has {len(values)} values: list from 1 to {MOST_CHOICES}.")
    parsed = [_value(name, value) for value in values]
    if twice := [value for at, value in enumerate(parsed) if value in parsed[:at]]:
        raise UserError(f"{option} lists {_brief(twice[0])} twice: leave one out.")
    return Choices(tuple(parsed))


def read_space(path: Path) -> Space:
    """Read a TOML or YAML file: for each option a list of choices, ``"1e-4..1e-2"``, or one value.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    return {name: _read(name, value) for name, value in read_options(path, "space").items()}


def _read(name: str, value: Any) -> Choices | Range:
    if isinstance(value, list):
        return choices(name, value)
    return parse(name, value) if isinstance(value, str) and ".." in value else choices(name, [value])


def split_fixed(given: Mapping[str, str | None], file: Path | None, seeds: int) -> tuple[dict[str, Any], Space]:
    """Separate searched options from fixed ones, which have one value.

    Args:
        given: text by option; ``None`` if it was not given.
        file: file with more options, or ``None``; an option may be in one place only.
        seeds: number of seeds of every combination.

    Raises:
        UserError: for an option in both places, or a number of seeds out of range.
    """
    read = {} if file is None else read_space(file)
    if not 1 <= seeds <= MOST_CHOICES:
        raise UserError(f"seeds is {seeds}: it must be from 1 to {MOST_CHOICES}.")
    for name, text in given.items():
        if text is None:
            continue
        if name in read:
            raise UserError(f"--{name.replace('_', '-')} is in the space file, too: leave one out.")
        read[name] = parse(name, text)
    if seeds > 1:
        read["seed"] = Choices(tuple(range(seeds)))
    fixed = {
        name: searched.values[0]
        for name, searched in read.items()
        if isinstance(searched, Choices) and len(searched.values) == 1
    }
    return fixed, {name: searched for name, searched in read.items() if name not in fixed}


def grid(space: Mapping[str, Choices | Range]) -> list[dict[str, Any]]:
    """List every combination, the last option changing fastest.

    Raises:
        UserError: for a range, because it has no finite number of values, and for too many combinations.
    """
    for name, searched in space.items():
        if isinstance(searched, Range):
            raise UserError(
                f"{name.replace('_', '-')} is the range {searched.low}..{searched.high}, which a grid cannot list: "
                "list its values, or search with --sampler random or tpe."
            )
    values = [dict.fromkeys(searched.values) for searched in space.values() if isinstance(searched, Choices)]
    if (count := math.prod(map(len, values))) > MOST_COMBINATIONS:
        raise UserError(
            f"the grid has {count} combinations, more than {MOST_COMBINATIONS}: list fewer values, or search with "
            "--sampler random or tpe."
        )
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]


def require_trainable(space: Mapping[str, Choices | Range], base: TrainConfig) -> None:
    """Refuse values that are invalid in a run, before the first trial.

    Raises:
        UserError: naming the value.
    """
    for name, searched in space.items():
        for value in searched.values if isinstance(searched, Choices) else (searched.low, searched.high):
            replace(base, **{name: value})


def _range(name: str, low: Any, high: Any) -> Range:
    if KINDS[name] is str or low >= high:
        raise UserError(f"{_option(name)} is {low}..{high}: a range is two numbers, the smaller one first.")
    return Range(low, high)


def _value(name: str, value: Any) -> Any:
    if name not in KINDS:
        raise UserError(f"{_option(name)} cannot be swept: choose among {', '.join(KINDS)}.")
    kind = KINDS[name]
    if name == "side" and value not in SIDES:
        raise UserError(f"unknown side network {_brief(value)}: choose one of {', '.join(SIDES)}.")
    try:
        if isinstance(value, bool):
            raise ValueError
        if kind is str:
            return ",".join(map(str, map(int, value))) if isinstance(value, list) else _text(value)
        number = float(value)
        if not math.isfinite(number) or (kind is int and (number != int(number) or abs(number) > LARGEST)):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{_option(name)} is {_brief(value)}: write numbers, as in 4,8,16 or 1e-4..1e-2.") from error
    return kind(number)


def _text(value: Any) -> str:
    if not isinstance(value, str | int):
        raise TypeError
    return str(value)


def _option(name: str) -> str:
    return shown(name[:40].replace("_", "-"))


def _brief(value: Any) -> str:
    """Show any value in a few characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = "what it is"
    return shown(text if len(text) <= 60 else text[:59] + "…")
