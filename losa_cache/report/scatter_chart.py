"""Predicted numbers against targets, as a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from losa_cache.sweep.report.drawing import BLUE, DOT, panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 12
"""Columns that are drawn; all are in the table."""


@dataclass(frozen=True, eq=False)
class ScatterChart:
    """A panel for each column of numbers.

    Attributes:
        predictions, targets: ``(N, C)``.
        names: of the columns.
    """

    predictions: NDArray[np.float64]
    targets: NDArray[np.float64]
    names: Sequence[str]
    name: str = "scatter"
    caption: str = "Predictions against targets, a dot a sample. On the line both agree."

    def draw(self) -> "Figure":
        """Draw the first columns."""
        count = min(MOST, len(self.names))
        across = min(2, count)
        figure, grid = panels(math.ceil(count / across), across, 3.6)
        for axes in grid[count:]:
            axes.set_axis_off()
        for column, axes in enumerate(grid[:count]):
            x, y = self.targets[:, column], self.predictions[:, column]
            axes.scatter(x, y, s=10, color=BLUE, alpha=0.5, linewidths=0)
            axes.axline((float(x.mean()), float(x.mean())), slope=1, color=DOT, linewidth=1, linestyle=":")
            axes.set(xlabel=f"{plain(self.names[column])}: target", ylabel="prediction")
        return figure
