"""What is read, decided without a disk."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from losa_cache.errors import UserError
from losa_cache.train.batch import Request
from losa_cache.train.loop import lr_factor
from losa_cache.train.sampler import epoch_order, epoch_requests, hold_out, rows_of, view_starts

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


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(0, 5))
def test_requests_cut_an_epoch_and_number_its_steps(count, batch_size, seed, epoch):
    requests = epoch_requests(np.arange(count), batch_size=batch_size, seed=seed, epoch=epoch)
    joined = np.concatenate([request.samples for request in requests])
    assert np.array_equal(joined, epoch_order(np.arange(count), seed=seed, epoch=epoch))
    assert all(len(request.samples) == batch_size for request in requests[:-1])
    assert [request.step for request in requests] == list(range(epoch * len(requests), (epoch + 1) * len(requests)))
    assert {request.epoch for request in requests} == {epoch}


@given(st.integers(1, 9), st.integers(0, 100), st.integers(0, 50))
def test_a_sample_shows_every_view_once_in_as_many_epochs(views, seed, first):
    samples, starts = np.array([7, 0, 3, 19]), view_starts(20, views=views, seed=seed)
    rows = np.stack([rows_of(Request(samples, epoch), starts, views=views) for epoch in range(first, first + views)])
    assert (rows // views == samples).all()
    assert all(sorted(column) == list(range(views)) for column in (rows % views).T)


def test_the_view_of_a_sample_does_not_depend_on_its_company():
    starts = view_starts(20, views=8, seed=1)
    together = rows_of(Request(np.arange(20), 3), starts, views=8)
    assert rows_of(Request(np.array([11]), 3), starts, views=8) == together[11]
    assert len(set((together % 8).tolist())) > 2  # samples do not go round in step


def test_plain_requests_get_the_plain_view():
    assert rows_of(Request(np.array([0, 5])), view_starts(9, views=4, seed=0), views=4).tolist() == [0, 20]
