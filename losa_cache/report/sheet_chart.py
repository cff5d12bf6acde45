"""Examples of maps beside each other, as a picture."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.sweep.report.drawing import INK, WIDTH, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TURN = 0.61803398875  # of the circle of hues, from class to class: neighbours in number differ (the golden ratio)
GREY = 128
"""Pixels that count nowhere."""


def colours(classes: int) -> NDArray[np.uint8]:
    """Give a colour for each class, ``(classes, 3)``."""
    hues = [(at * TURN % 1, 0.55 + 0.35 * (at % 2), 0.95 - 0.3 * (at // 2 % 2)) for at in range(classes)]
    return np.array([[round(255 * own) for own in colorsys.hsv_to_rgb(*hue)] for hue in hues], np.uint8)


def painted(mask: NDArray[np.uint8], classes: int, image: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Paint the classes of a mask, ``(H, W)`` to ``(H, W, 3)``, half through on an image of this size if there is one.

    Pixels of no class are grey, or the image itself.
    """
    known = mask < classes
    paint = colours(classes)[np.where(known, mask, 0)]
    if image is None:
        return np.where(known[..., None], paint, np.uint8(GREY))
    mixed = (paint.astype(np.uint16) + image) // 2
    return np.where(known[..., None], mixed, image).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class SheetChart:
    """Rows of pictures.

    Attributes:
        heads: above the columns.
        rows: an id, and a picture for each column: colours uint8 ``(H, W, 3)``, or numbers ``(H, W)``, where NaN is
            white and all pictures of a row have one scale.
        legend: names and colours of what is painted.
        caption: what it shows, as a sentence.
    """

    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[NDArray[Any]]]]
    legend: Sequence[tuple[str, NDArray[np.uint8]]]
    caption: str
    name: str = "examples"

    def draw(self) -> "Figure":
        """Draw all rows, and the legend above them."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        height, width = self.rows[0][1][0].shape[:2]
        each = WIDTH / len(self.heads) * height / width + 0.3
        size = (WIDTH, each * len(self.rows) + 0.25 * (len(self.legend) / 4 + 1))
        figure = Figure(size, dpi=120, layout="constrained", facecolor="white")
        grid = figure.subplots(len(self.rows), len(self.heads), squeeze=False)
        for number, (line, (title, pictures)) in enumerate(zip(grid, self.rows, strict=True)):
            values = np.concatenate([[], *(own[np.isfinite(own)] for own in pictures if own.ndim == 2)])
            scale: dict[str, Any] = {"vmin": values.min(), "vmax": values.max()} if len(values) else {}
            heads = self.heads if number == 0 else [""] * len(self.heads)
            told = [f"{heads[0]}\n{plain(title, 40)}".strip(), *heads[1:]]
            for axes, picture, head in zip(line, pictures, told, strict=True):
                axes.imshow(picture, interpolation="nearest", **scale)
                axes.set_axis_off()
                axes.set_title(head, fontsize=8, color=INK)
        if self.legend:
            patches = [Patch(color=tuple((colour / 255).tolist()), label=plain(name)) for name, colour in self.legend]
            figure.legend(handles=patches, loc="outside upper left", ncols=4, frameon=False, fontsize=8)
        return figure
