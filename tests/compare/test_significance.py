"""Intervals and tests against definitions, enumeration and integration."""

import math
from itertools import product

import numpy as np
import pytest

from losa_cache.compare.significance import mcnemar, paired, t_interval, t_quantile, t_within, wilson


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30])
def test_students_t_is_the_integral_of_its_density(freedom):
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    for t in (0.5, 2.0, 6.0):
        x, weights = np.polynomial.legendre.leggauss(200)
        density = scale * (1 + (t * x) ** 2 / freedom) ** (-(freedom + 1) / 2)
        assert t_within(t, freedom) == pytest.approx(t * float(weights @ density), abs=1e-12)
    assert t_within(t_quantile(0.95, freedom), freedom) == pytest.approx(0.95, abs=1e-12)


def test_intervals_of_textbooks():
    assert t_quantile(0.95, 2) == pytest.approx(4.302653, abs=1e-6)
    found = t_interval([90.0, 92.0, 94.0])
    assert (found.value, found.high - found.value) == pytest.approx((92, 4.302653 * 2 / math.sqrt(3)), abs=1e-5)
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1


@pytest.mark.parametrize(("hits", "samples"), [(0, 20), (3, 20), (448, 500)])
def test_wilsons_bounds_are_the_shares_that_a_score_test_just_accepts(hits, samples):
    found = wilson(hits, samples)
    for bound in {found.low, found.high} - {found.value}:
        distance = abs(hits / samples - bound) / math.sqrt(bound * (1 - bound) / samples)
        assert distance == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 6), (2, 7), (7, 2), (5, 5), (1, 9)])
def test_mcnemar_counts_every_way_that_signs_can_fall(one, other):
    split = one + other
    ways = [sum(signs) for signs in product((0, 1), repeat=split)]
    extreme = sum(abs(2 * way - split) >= abs(one - other) for way in ways)
    assert mcnemar(one, other) == pytest.approx(extreme / len(ways), abs=1e-12)


def test_pairs_are_of_the_same_images():
    draw = np.random.default_rng(0)
    first, second = draw.random((1, 400)) < 0.8, draw.random((1, 400)) < 0.7
    found = paired(first, second)
    assert found.value == pytest.approx(first.mean() - second.mean())
    assert found.p == mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))
    several = draw.random((3, 400)) < 0.8
    found = paired(several, second)
    gaps = several.mean(0) - second[0]
    assert found.standard_error == pytest.approx(np.std(gaps, ddof=1) / 20)
    assert found.p == pytest.approx(math.erfc(abs(found.value / found.standard_error) / math.sqrt(2)), abs=2e-3)
    assert paired(several, several).p == 1


@pytest.mark.parametrize("seeds", [2, 3])
def test_images_that_all_differ_alike_are_worth_their_signs(seeds):
    first, second = np.ones((seeds, 4), bool), np.zeros((seeds, 4), bool)
    second[0] = True  # a third of the seeds, or half of them, are right on every image
    found = paired(first, second)
    assert found.value == pytest.approx(1 - 1 / seeds)
    assert found.p == pytest.approx(2 * 0.5**4)  # four signs of one kind
