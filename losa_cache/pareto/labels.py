"""Places for the labels of points, such that they cover neither each other nor a point. Pure; any unit of length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

PASSES = 6
DEGREES = (0, 180, 45, 135, 315, 225, 90, 270, 20, 160, 340, 200, 65, 115, 245, 295)
"""Directions in which a label may lie of its point: at its side first."""
REACHES = (1.0, 2.5, 5.0, 8.0, 12.0, 17.0, 23.0)
"""Distances from its mark, in gaps."""
GAP = 0.2
"""The least distance, in heights of a label."""


@dataclass(frozen=True)
class Box:
    """A rectangle.

    Attributes:
        left, bottom, right, top: its sides.
    """

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """Give the area that two have in common."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, wide) * max(0.0, high)

    @property
    def area(self) -> float:
        """Its area."""
        return (self.right - self.left) * (self.top - self.bottom)

    @property
    def middle(self) -> tuple[float, float]:
        """Its middle."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    within: Box,
    *,
    marks: Sequence[float],
    others: Sequence[Box] = (),
) -> list[Box]:
    """Place a label at each point.

    Each is put, in turn and a few times over, where it covers least of the others, of the points and of what else there
    is, and lies nearest to its point.

    Args:
        points: (x, y).
        sizes: width and height of each label.
        within: where labels may lie.
        marks: width of the mark of each point.
        others: what else labels should not cover.
    """
    taken = [Box(x - m / 2, y - m / 2, x + m / 2, y + m / 2) for (x, y), m in zip(points, marks, strict=True)]
    candidates = [_candidates(*own) for own in zip(points, sizes, marks, strict=True)]
    placed = [own[0] for own in candidates]
    for _ in range(PASSES):
        before = list(placed)
        for number, own in enumerate(candidates):
            labels = [box for other, box in enumerate(placed) if other != number]
            costs = [
                (
                    10 * sum(box.overlap(label) for label in labels)
                    + 10 * (box.area - box.overlap(within))
                    + 5 * sum(box.overlap(mark) for mark in taken)
                    + 3 * sum(box.overlap(one) for one in others)
                )
                / box.area
                + 0.01 * place
                for place, box in enumerate(own)
            ]
            placed[number] = own[costs.index(min(costs))]
        if placed == before:
            break
    return placed


def _candidates(point: tuple[float, float], size: tuple[float, float], mark: float) -> list[Box]:
    """Give the places of a label, the nearest first; its edge, not its middle, has the distance from the point."""
    (x, y), (width, height) = point, size
    found = []
    for reach in REACHES:
        for angle in map(math.radians, DEGREES):
            across, along = math.cos(angle), math.sin(angle)
            distance = mark / 2 + reach * GAP * height
            middle_x = x + across * distance + width / 2 * _side(across)
            middle_y = y + along * distance + height / 2 * _side(along)
            found.append(Box(middle_x - width / 2, middle_y - height / 2, middle_x + width / 2, middle_y + height / 2))
    return found


def _side(share: float) -> float:
    """On which side of the point the label lies: wholly where the direction is clear."""
    return max(-1.0, min(1.0, 2 * share))
