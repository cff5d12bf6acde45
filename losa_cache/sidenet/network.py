"""The contract between the file of a side network and the adapter (:mod:`losa_cache.sidenet.spec`)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from losa_cache.errors import UserError


@dataclass(frozen=True)
class Sizes:
    """The sizes for which a side network is built.

    Attributes:
        depth: number k of its inputs: block outputs, or the points that are tapped in their place.
        tokens: tokens n of a block output, prefix tokens included, or the rows that it was pooled to.
        width: channels d of a block output.
        rank: inner width r, if it has one.
        grid: frames, rows and columns of a video's tokens, which follow any prefix tokens; ``None`` for images.
        tail: config of the backbone's frozen tail (``docs/protocol.md``, section "Tail").
        seed: seed of the noise in training. The random initial weights are seeded already.
    """

    depth: int
    tokens: int
    width: int
    rank: int
    grid: Sequence[int] | None
    tail: Mapping[str, Any]
    seed: int


def require_shape(depth: int, tokens: int, width: int, rank: int) -> None:
    """Refuse sizes of a side network.

    Raises:
        UserError: for one below 1, or a rank above the width.
    """
    for name, value in (("depth", depth), ("tokens", tokens), ("width", width)):
        if value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1.")
    if not 1 <= rank <= width:
        raise UserError(f"rank is {rank}: choose one from 1 to the backbone's width, {width}.")


class SideStack(nn.Module, ABC):
    """K side networks of one shape, as tensors with the trial first, trained on one read of the block outputs.

    Its ``forward`` takes the arguments of a single network's, and gives its results with the trial as the first
    dimension.
    """

    @abstractmethod
    def unstack(self, networks: Sequence[Any]) -> None:
        """Write each trial's tensors back into a network."""

    @abstractmethod
    def keep(self, trials: Sequence[int]) -> None:
        """Drop all trials but these; the owner of the parameters drops theirs."""

    @abstractmethod
    def decayed(self) -> list[tuple[nn.Parameter, bool]]:
        """List the trained tensors, trial first, and whether weight decay applies to them: only to matrices, as in one
        network.
        """
