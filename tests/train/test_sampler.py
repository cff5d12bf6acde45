"""What is read, decided without a disk."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from losa_cache.errors import UserError
from losa_cache.train.loop import lr_factor
from losa_cache.train.sampler import epoch_order, hold_out

IDS = [f"{i:04d}.jpg" for i in range(200)]


@given(st.integers(0, 10), st.integers(0, 10))
def test_an_epoch_is_a_permutation_fixed_by_seed_and_epoch(seed, epoch):
    rows = np.arange(50) * 2
    order = epoch_order(rows, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == rows.tolist()
    assert np.array_equal(order, epoch_order(rows, seed=seed, epoch=epoch))
    assert not np.array_equal(order, epoch_order(rows, seed=seed, epoch=epoch + 1))


@given(st.integers(0, 1000))
def test_the_same_samples_are_held_out_whatever_their_order(seed):
    shuffled = np.random.default_rng(seed).permutation(200)
    ids = [IDS[i] for i in shuffled]
    train, held = hold_out(np.arange(200), ids, 0.25)
    assert len(held) == 50
    assert sorted([*train, *held]) == list(range(200))
    first = {IDS[row] for row in hold_out(np.arange(200), IDS, 0.25)[1]}
    assert {ids[row] for row in held} == first


def test_nothing_is_held_out_at_0_and_skipped_rows_never_come_back():
    rows = np.array([3, 5, 9])
    train, held = hold_out(rows, IDS, 0.0)
    assert (train.tolist(), len(held)) == ([3, 5, 9], 0)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 0.001, 0.999])
def test_fractions_that_leave_a_side_empty_are_refused(fraction):
    with pytest.raises(UserError, match="val-fraction"):
        hold_out(np.arange(100), IDS, fraction)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    factors = [lr_factor(step, total=100, warmup=10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[-1] < 0.001
