"""Choosing blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losa_cache.errors import UserError
from losa_cache.layers import choose_layers


@pytest.mark.parametrize(
    ("choice", "depth", "expected"),
    [
        ("all", 3, [1, 2, 3]),
        ("1", 12, [12]),
        ("4", 12, [3, 6, 9, 12]),
        (5, 12, [2, 4, 7, 9, 12]),
        ("3,6,12", 12, [3, 6, 12]),
        ("12,", 12, [12]),
        ([12, 1], 12, [1, 12]),
    ],
)
def test_choices(choice, depth, expected):
    assert choose_layers(choice, range(1, depth + 1)) == expected


@given(st.integers(1, 60).flatmap(lambda depth: st.tuples(st.just(depth), st.integers(1, depth))))
def test_k_layers_are_k_evenly_spaced_ones_with_the_last_among_them(pair):
    depth, k = pair
    chosen = choose_layers(k, range(1, depth + 1))
    gaps = [b - a for a, b in zip([0, *chosen], chosen, strict=False)]
    assert len(chosen) == k
    assert chosen[-1] == depth
    assert max(gaps) - min(gaps) <= 1


def test_a_subset_of_cached_layers():
    assert choose_layers("2", [3, 6, 9, 12]) == [6, 12]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("0", "0 layers cannot be chosen: there are 12"),
        (13, "13 layers"),
        ("some", "neither 'all'"),
        ("3,6", "lack the last block, 12"),
        ("5,13", "no layer 13"),
        ([], "none lack the last block"),
    ],
)
def test_bad_choices_are_one_sentence(choice, message):
    with pytest.raises(UserError, match=message):
        choose_layers(choice, range(1, 13))
