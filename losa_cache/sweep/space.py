"""What a sweep searches: choices and ranges of a run's options, as text, in a file, and as a grid."""

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from losa_cache.errors import UserError
from losa_cache.train.config import DEFAULT_LR, TrainConfig

DECADE = 10  # ranges of a decade or more are searched by orders of magnitude


@dataclass(frozen=True)
class Choices:
    """Some values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """All values between two, both included: integers where both are, by orders of magnitude from a decade on."""

    low: float
    high: float

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

KINDS: dict[str, type] = {
    "rank": int, "layers": str, "lr": float, "weight_decay": float, "label_smoothing": float, "clip_grad": float,
    "batch_size": int, "epochs": int, "side": str, "start": str, "seed": int,
}  # fmt: skip
"""What can be searched, and the type of its values."""


def parse(name: str, text: str) -> Choices | Range:
    """Read ``4,8,16`` as choices, ``1e-4..1e-2`` as a range.

    Raises:
        UserError: for values that are not of the option's type, and a range that is none.
    """
    if ".." not in text:
        return Choices(tuple(_value(name, part.strip()) for part in text.split(",")))
    low, high = (_value(name, part.strip()) for part in text.split("..", 1))
    return _range(name, low, high)


def read_space(path: Path) -> Space:
    """Read a TOML or YAML file: for each option a list of choices, ``"1e-4..1e-2"``, or one value.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    try:
        text = path.read_text()
        if path.suffix == ".toml":
            content: Any = tomllib.loads(text)
        else:
            import yaml

            content = yaml.safe_load(text)
    except (OSError, ValueError) as error:
        raise UserError(f"space {str(path)!r} cannot be read ({error}).") from error
    except Exception as error:  # yaml's own have no common base but this, without importing it
        raise UserError(f"space {str(path)!r} is no YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(content, dict):
        raise UserError(f"space {str(path)!r} holds no options: write one a line, such as rank: [4, 8].")
    return {str(name).replace("-", "_"): _read(str(name).replace("-", "_"), value) for name, value in content.items()}


def _read(name: str, value: Any) -> Choices | Range:
    if isinstance(value, list):
        return Choices(tuple(_value(name, one) for one in value))
    return parse(name, value) if isinstance(value, str) and ".." in value else Choices((_value(name, value),))


def split_fixed(given: Mapping[str, str | None], file: Path | None, seeds: int) -> tuple[dict[str, Any], Space]:
    """Tell what is searched from what is fixed: options with one value.

    Args:
        given: text by option; ``None`` where it was not given.
        file: of more options, or ``None``; an option may be in one place only.
        seeds: of every combination.

    Raises:
        UserError: for an option in both places, or fewer seeds than one.
    """
    read = {} if file is None else read_space(file)
    if seeds < 1:
        raise UserError(f"seeds is {seeds}: it must be at least 1.")
    for name, text in given.items():
        if text is None:
            continue
        if name in read:
            raise UserError(f"--{name.replace('_', '-')} stands in the space file, too: leave one out.")
        read[name] = parse(name, text)
    if seeds > 1:
        read["seed"] = Choices(tuple(range(seeds)))
    fixed = {name: own.values[0] for name, own in read.items() if isinstance(own, Choices) and len(own.values) == 1}
    return fixed, {name: own for name, own in read.items() if name not in fixed}


def grid(space: Mapping[str, Choices | Range]) -> list[dict[str, Any]]:
    """List every combination, the last option changing fastest.

    Raises:
        UserError: for a range, of which there is no end of values.
    """
    for name, own in space.items():
        if isinstance(own, Range):
            raise UserError(
                f"{name.replace('_', '-')} is the range {own.low}..{own.high}, which a grid cannot walk: list its "
                "values, or search with --sampler random or tpe."
            )
    values = [own.values for own in space.values() if isinstance(own, Choices)]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]


def require_trainable(space: Mapping[str, Choices | Range], base: TrainConfig) -> None:
    """Refuse values that no run takes, before the first trial.

    Raises:
        UserError: naming the value.
    """
    for name, own in space.items():
        for value in own.values if isinstance(own, Choices) else (own.low, own.high):
            replace(base, **{name: value})


def _range(name: str, low: Any, high: Any) -> Range:
    if KINDS[name] is str or low >= high:
        raise UserError(f"{name.replace('_', '-')} is {low}..{high}: a range is two numbers, the smaller one first.")
    return Range(low, high)


def _value(name: str, value: Any) -> Any:
    if name not in KINDS:
        raise UserError(f"{name.replace('_', '-')} cannot be swept: choose among {', '.join(KINDS)}.")
    kind = KINDS[name]
    try:
        if isinstance(value, bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        if name == "side" and value not in DEFAULT_LR:
            raise UserError(f"unknown side network {value!r}: choose one of {', '.join(DEFAULT_LR)}.")
        if kind is str:
            return ",".join(map(str, value)) if isinstance(value, list) else str(value)
        return kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name.replace('_', '-')} is {value!r}: write numbers, as in 4,8,16 or 1e-4..1e-2.") from error
