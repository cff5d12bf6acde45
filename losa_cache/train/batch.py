"""The contract between a source of activations and the training loop."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What the loop sees.

    Attributes:
        blocks: k block outputs, first to last, each ``(batch, tokens, width)`` on the training device. They are valid
            until the next batch is asked for: sources reuse their memory.
        labels: int64 ``(batch,)`` on the training device.
        ids: sample ids.
    """

    blocks: list[Tensor]
    labels: Tensor
    ids: list[str]


class Source(Protocol):
    """Where batches come from: a cache, or the backbone itself."""

    def batches(self, rows: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """Yield the samples of these rows, in this order, the last batch perhaps smaller."""
        ...


def split_rows(rows: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cut rows into batches."""
    return [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
