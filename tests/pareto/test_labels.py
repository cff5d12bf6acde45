from itertools import combinations

import numpy as np
import pytest

from losa_cache.pareto.labels import Box, place_labels

WITHIN = Box(0, 0, 600, 400)


@pytest.mark.parametrize("seed", range(5))
def test_labels_cover_neither_each_other_nor_points_and_stay_inside(seed):
    drawn = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in zip(drawn.uniform(60, 540, 16), drawn.uniform(40, 360, 16), strict=True)]
    sizes = [(float(width), 14.0) for width in drawn.uniform(30, 90, 16)]
    placed = place_labels(points, sizes, WITHIN, marks=[8.0] * 16)
    assert all(one.overlap(other) == 0 for one, other in combinations(placed, 2))
    assert all(box.overlap(Box(x - 4, y - 4, x + 4, y + 4)) == 0 for box in placed for x, y in points)
    assert all(box.overlap(WITHIN) == pytest.approx(box.area) for box in placed)


def test_points_at_one_place_get_labels_apart():
    placed = place_labels([(300.0, 200.0)] * 8, [(60.0, 14.0)] * 8, WITHIN, marks=[8.0] * 8)
    assert all(one.overlap(other) == 0 for one, other in combinations(placed, 2))


def test_a_lone_label_lies_beside_its_point():
    (box,) = place_labels([(300.0, 200.0)], [(60.0, 10.0)], WITHIN, marks=[8.0])
    assert box == Box(306, 195, 366, 205)
