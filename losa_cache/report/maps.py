"""What is shown of maps: a line a class of pixels, and a sheet of examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.report.details import Details, Table, defined
from losa_cache.report.outcome import Outcome
from losa_cache.report.sheet_chart import SheetChart, colours, painted

HEAD = ("class", "share of pixels", "precision", "recall", "iou")
NAMED = 32
"""The most classes that a legend has room for."""


def mask_details(outcome: Outcome, decided: NDArray[np.uint8], counts: NDArray[np.float64]) -> Details:
    """Show masks.

    Args:
        outcome: whose targets are masks of examples, ``(n, H, W)``.
        decided: predicted masks of the examples, ``(n, H, W)``.
        counts: of the pixels of each class that are right, predicted and there, on all samples: ``(3, C)``, or means.
    """
    right, predicted, there = counts
    with np.errstate(divide="ignore", invalid="ignore"):
        each = (there / there.sum(), right / predicted, right / there, right / (predicted + there - right))
    cells = zip(*(own.tolist() for own in each), strict=True)
    rows = [[name, *map(defined, line)] for name, line in zip(outcome.names, cells, strict=True)]
    caption = (
        "Of each class: its share of the pixels, the share of right ones among those predicted, and among its own; \
intersection over union."
    )
    classes = len(outcome.names)
    legend = list(zip(outcome.names, colours(classes), strict=True))[:NAMED]
    sheet = _sheet(outcome, decided, lambda mask, image: painted(mask, classes, image), legend)
    return Details([Table("classes", caption, HEAD, rows)], sheet)


def depth_details(outcome: Outcome, decided: NDArray[np.float32]) -> Details:
    """Show depth maps: ``decided`` and the outcome's targets are those of examples, ``(n, H, W)``."""
    return Details(charts=_sheet(outcome, decided, lambda depths, image: depths, []))


def _sheet(outcome: Outcome, decided: NDArray[Any], paint: Any, legend: Sequence[Any]) -> list[SheetChart]:
    if not len(decided):
        return []
    some = any(image is not None for image in outcome.images)
    images = outcome.images if some else [None] * len(decided)
    rows = []
    for name, target, prediction, image in zip(outcome.ids, outcome.targets.numpy(), decided, images, strict=False):
        blank = np.full((*target.shape, 3), 255, np.uint8)
        shown = [blank if image is None else image] if some else []
        rows.append((name, [*shown, paint(target, image), paint(prediction, image)]))
    heads = ["image"] * some + ["target", "prediction"]
    return [SheetChart(heads, rows, legend, f"The first {len(rows)} samples: {' and '.join(heads[-2:])}.")]
