"""The confusion matrix as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from losa_cache.sweep.report.drawing import INK, panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTERS = 30
"""Letters of all names together that fit beside each other below the matrix."""
NUMBERED, NAMED = 16, 48
"""The most classes whose cells have room for a number, and whose rows have room for a name."""


@dataclass(frozen=True, eq=False)
class ConfusionChart:
    """A matrix of counts.

    Attributes:
        counts: by class (row) and predicted class (column), int64 ``(C, C)``.
        names: of the classes.
    """

    counts: NDArray[np.int64]
    names: Sequence[str]
    name: str = "confusion"
    caption: str = "Confusion matrix: the share of each class (row) that is predicted to be of each class (column)."

    def draw(self) -> "Figure":
        """Draw shares as shades, with counts where there is room."""
        classes = len(self.names)
        height = 3.0 + 4.0 * min(classes, NAMED) / NAMED
        figure, (axes,) = panels(1, 1, height)
        figure.set_size_inches(height + 1.4, height)  # square, beside the scale
        shares = self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        if classes <= NAMED:
            shown = [plain(name) for name in self.names]
            axes.set_xticks(range(classes), shown, rotation=90 if max(map(len, shown)) * classes > LETTERS else 0)
            axes.set_yticks(range(classes), shown)
        if classes <= NUMBERED:
            for row, column in np.argwhere(self.counts).tolist():
                colour = "white" if shares[row, column] > 0.5 else INK
                count = f"{self.counts[row, column]}"
                axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("class")
        figure.colorbar(picture, ax=axes, label="share of the class")
        return figure
