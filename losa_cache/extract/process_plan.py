"""What each of several processes of one extraction is started with. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any

from losa_cache.errors import UserError
from losa_cache.extract.config import ExtractConfig
from losa_cache.extract.part import AUTO, Part
from losa_cache.machine.gpus import VISIBLE
from losa_cache.options import options_of


@dataclass(frozen=True)
class Share:
    """One process.

    Attributes:
        name: as messages name it.
        environment: variables that it is started with.
        options: fields of :class:`ExtractConfig`, as JSON.
    """

    name: str
    environment: Mapping[str, str]
    options: Mapping[str, Any]


def shares_of(config: ExtractConfig, gpus: Mapping[int, str] | None, *, workers: int) -> list[Share]:
    """Divide an extraction among processes.

    Args:
        config: of the extraction.
        gpus: the numbers of the GPUs to use, and the name of each in ``CUDA_VISIBLE_DEVICES``; ``None``: the CPU.
        workers: decoding threads of each process, if ``config`` does not say how many there are in all.

    Raises:
        UserError: if backbone and data set are objects, which another process could not open.
    """
    if not config.named:
        raise UserError(
            "several processes open backbone and data set by their names: name them, or extract with one process."
        )
    starts: list[tuple[str, dict[str, str]]]
    if gpus is not None:
        starts = [(f"GPU {number}", {VISIBLE: name}) for number, name in gpus.items()]
    else:
        starts = [(f"process {number}", {}) for number in range(1, (config.processes or 1) + 1)]
    own = replace(
        config,
        gpus=None,
        processes=None,
        device="cpu" if gpus is None else "cuda",
        workers=max(1, config.workers // len(starts)) if config.workers else workers,
    )
    values = {option.name: getattr(own, option.name) for option in options_of(ExtractConfig)}
    shared = {name: _plain(value) for name, value in values.items()}
    return [
        Share(name, environment, shared | {"part": part_of(config.part, number, len(starts))})
        for number, (name, environment) in enumerate(starts)
    ]


def part_of(part: str | None, number: int, count: int) -> str:
    """Divide a part of an extraction again, so that the parts of this part are units of it alone.

    Args:
        part: of this machine; ``None``: all of the extraction.
        number: of the process, from 0.
        count: of the processes.
    """
    whole = Part.parse(part or AUTO)
    return AUTO if whole.free else f"{whole.number + whole.count * number}/{whole.count * count}"


def _plain(value: Any) -> Any:
    """Give a value as JSON has it; places are named."""
    simple = isinstance(value, bool | int | float | str | list | None)
    return value if simple else fspath(value) if isinstance(value, PathLike) else str(value)
