"""The contract of what targets are read from: a table or a folder, opened before any sample is known."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # it loads torch
    from losa_cache.targets.frame import Frames

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Source(ABC):
    """Targets by ids of their own.

    Attributes:
        path: of the file or folder, for messages.
        kind: of the target set that it gives.
        ids: of its targets, each there once.
    """

    path: Path
    kind: str
    ids: Sequence[str]

    @property
    def framed(self) -> bool:
        """Whether a target is a picture, which follows the transform of its image."""
        return False

    @abstractmethod
    def values(
        self, places: NDArray[np.int64], frames: "Frames | None", progress: Progress
    ) -> tuple[list[str], NDArray[Any]]:
        """Give the names and the values of a target set.

        Args:
            places: for each sample the place of its target among ``ids``; -1 for a sample that needs none.
            frames: of the samples' images, where the targets are pictures.
            progress: is called with the share of the samples that are done.

        Raises:
            UserError: for a target that cannot be used.
        """
