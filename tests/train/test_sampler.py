"""What is read, decided without a disk."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import WeightedRandomSampler

from losa_cache.errors import UserError
from losa_cache.train import sampler
from losa_cache.train.batch import Request
from losa_cache.train.loop import lr_factor
from losa_cache.train.sampler import (
    Weights,
    balanced_weights,
    count_repeats,
    epoch_order,
    epoch_requests,
    first_by_hash,
    hold_out,
    hold_out_ids,
    rows_of,
    view_starts,
    weights_by_id,
)

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


@given(
    st.lists(st.text(max_size=70), min_size=2, max_size=60),
    st.integers(1, 58),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_the_choice_is_the_first_of_a_sort_by_sha256_as_in_runs_of_all_versions(ids, count, random, skip):
    ids = [*ids, ids[0], "caf\udce9"]  # twice the same id; a file name that is not UTF-8
    samples = np.arange(len(ids))[int(skip) :]
    random.shuffle(ids)

    def digest(sample):
        return hashlib.sha256(ids[sample].encode("utf-8", "surrogateescape")).digest()

    expected = sorted(sorted(samples.tolist(), key=digest)[:count])
    assert first_by_hash(samples, ids, count).tolist() == expected
    fraction = count / len(samples)
    if count < len(samples) and round(fraction * len(samples)) == count:
        train, held = hold_out(samples, ids, fraction)
        assert held.tolist() == expected
        assert train.tolist() == sorted(set(samples.tolist()) - set(expected))


def test_ids_whose_digests_begin_alike_are_ordered_by_the_rest(monkeypatch):
    """No two texts are known whose sha256 agree in their first 8 bytes: a shorter hash stands for it."""

    class Short:
        def __init__(self, text: bytes) -> None:
            self.text = text

        def digest(self) -> bytes:
            return b"same for" + hashlib.blake2b(self.text, digest_size=24).digest()

    monkeypatch.setattr(sampler.hashlib, "sha256", Short)
    expected = sorted(sorted(range(200), key=lambda at: Short(IDS[at].encode()).digest())[:30])
    assert first_by_hash(np.arange(200), IDS, 30).tolist() == expected


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


LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(lambda labels: np.array(labels) * 7)
VALUES = st.lists(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0, 700.0]), min_size=1, max_size=60).filter(any)


def draws(count, weights, *, seed=0, epochs=1):
    """How often each of so many samples comes, epoch by epoch."""
    orders = [epoch_order(np.arange(count), seed=seed, epoch=epoch, weights=weights) for epoch in range(epochs)]
    assert all(len(order) == count for order in orders)
    return np.stack([np.bincount(order, minlength=count) for order in orders])


def test_the_shuffled_order_is_that_of_the_runs_before_there_were_weights():
    assert epoch_order(np.arange(8) * 3, seed=5, epoch=2).tolist() == [0, 12, 15, 21, 9, 3, 6, 18]


@given(LABELS, st.integers(0, 9), st.integers(0, 9))
def test_a_balanced_epoch_holds_every_class_equally_often_and_repeats_nothing_in_vain(labels, seed, epoch):
    weights, count = balanced_weights(labels), len(labels)
    order = epoch_order(np.arange(count), seed=seed, epoch=epoch, weights=weights)
    classes, sizes = np.unique(labels, return_counts=True)
    for label, size in zip(classes, sizes, strict=True):
        assert abs((labels[order] == label).sum() - count / len(classes)) < 1 + 1e-9
        times = np.bincount(order, minlength=count)[labels == label]
        assert (abs(times - count / len(classes) / size) < 1 + 1e-9).all()
        assert times.max() - times.min() <= 1
    assert np.array_equal(order, epoch_order(np.arange(count), seed=seed, epoch=epoch, weights=weights))


@given(VALUES, st.integers(0, 9), st.integers(0, 9))
def test_a_weighted_epoch_gives_every_sample_its_share_rounded_down_or_up(values, seed, epoch):
    values = np.array(values)
    ids = [str(at) for at in range(len(values))]
    labels = np.arange(len(values)) % 3
    weights = weights_by_id(np.arange(len(values)), ids, labels, dict(zip(ids, values.tolist(), strict=True)))
    times = draws(len(values), weights, seed=seed)[0]
    assert (abs(times - len(values) * values / values.sum()) < 1 + 1e-9).all()
    assert (times[values == 0] == 0).all()


def test_samples_come_as_often_as_from_torchs_weighted_sampler():
    """The field's reference draws each time anew; over many epochs the frequencies are the same."""
    rng = np.random.default_rng(3)
    values, labels, epochs = rng.random(40) ** 3, rng.integers(0, 4, 40), 500
    ours = draws(40, Weights(values, labels), seed=1, epochs=epochs).mean(axis=0)
    sampler = WeightedRandomSampler(values.tolist(), 40 * epochs, generator=torch.Generator().manual_seed(1))
    theirs = np.bincount(np.array(list(sampler)), minlength=40) / epochs
    share = values / values.sum()
    bound = 5 * np.sqrt(40 * share * (1 - share) / epochs)  # five standard errors of a binomial count
    assert (abs(theirs - 40 * share) < bound).all()
    assert (abs(ours - 40 * share) < bound).all()


def test_every_sample_of_a_large_class_has_its_turn():
    labels = np.array([0] * 90 + [1] * 10)
    times = draws(100, balanced_weights(labels), epochs=300)
    assert times[:, :90].max() == 1
    assert set(times[:, 90:].ravel()) == {5}
    seen = times[:, :90].sum(axis=0)  # 50 of the 90 an epoch
    assert (abs(seen - 300 * 5 / 9) < 5 * np.sqrt(300 * 5 / 9 * 4 / 9)).all()
    together = times[:, :90].T @ times[:, :90] / 300  # no two samples always come, or stay away, as a pair
    apart = together[~np.eye(90, dtype=bool)]
    assert 0.15 < apart.min() < 50 / 90 * 49 / 89 < apart.max() < 0.46


@given(st.integers(1, 60), st.integers(0, 9), st.integers(0, 9))
def test_equal_weights_give_every_sample_once(count, seed, epoch):
    weights = Weights(np.full(count, 1.0), np.arange(count) % 3)
    assert (draws(count, weights, seed=seed) == 1).all()
    assert (draws(count, balanced_weights(np.arange(count)), seed=seed) == 1).all()


def test_weighted_epochs_differ_and_come_in_random_order():
    weights = balanced_weights(np.array([0] * 90 + [1] * 10))
    orders = [epoch_order(np.arange(100), seed=0, epoch=epoch, weights=weights) for epoch in range(2)]
    assert not np.array_equal(*orders)
    halves = [(half >= 90).sum() for half in np.split(orders[0], 2)]
    assert min(halves) > 15  # of 50 draws of the small class: neither in a row, nor at an end


def test_weights_beyond_what_a_sum_can_hold_count_in_relation_to_each_other():
    ids, labels = ["a", "b", "c", "d"], np.zeros(4, dtype=np.int64)
    for size in (1.5e308, 5e-324):
        weights = weights_by_id(np.arange(4), ids, labels, dict.fromkeys(ids, size))
        assert draws(4, weights).tolist() == [[1, 1, 1, 1]]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_repeats_count_what_came_before(order):
    assert count_repeats(np.array(order)).tolist() == [order[:at].count(sample) for at, sample in enumerate(order)]


def test_requests_of_a_weighted_epoch_say_how_often_a_sample_came_before_in_any_batch():
    weights = balanced_weights(np.array([0] * 27 + [1] * 3))
    requests = epoch_requests(np.arange(30), batch_size=4, seed=0, epoch=2, weights=weights)
    assert [request.step for request in requests] == list(range(16, 24))
    order = np.concatenate([request.samples for request in requests])
    assert np.array_equal(np.concatenate([request.repeats for request in requests]), count_repeats(order))
    assert sorted(count_repeats(order)[order == 28]) == [0, 1, 2, 3, 4]


def test_each_draw_of_a_sample_shows_its_next_view():
    starts = view_starts(9, views=4, seed=0)
    drawn = Request(np.array([7, 2, 7, 7]), 3, repeats=np.array([0, 0, 1, 2]))
    turns = [rows_of(Request(np.array([7]), epoch), starts, views=4)[0] for epoch in (3, 4, 5)]
    rows = rows_of(drawn, starts, views=4)
    assert [rows[0], rows[2], rows[3]] == turns
    assert rows[1] == rows_of(Request(np.array([2]), 3), starts, views=4)[0]


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 1000))
def test_a_limit_keeps_the_same_samples_in_any_order_and_a_larger_one_keeps_them_too(small, more, seed):
    order = np.random.default_rng(seed).permutation(200)
    ids = [IDS[i] for i in order]
    train = hold_out(np.arange(200), ids, 0.25)[0]
    few, many = ({ids[s] for s in first_by_hash(train, ids, count)} for count in (small, small + more))
    assert (len(few), len(many)) == (min(small, 150), min(small + more, 150))
    assert few <= many
    first = hold_out(np.arange(200), IDS, 0.25)[0]
    assert few == {IDS[s] for s in first_by_hash(first, IDS, small)}


def test_a_limit_of_all_there_is_changes_nothing():
    samples = np.array([3, 5, 9])
    assert first_by_hash(samples, IDS, 3).tolist() == first_by_hash(samples, IDS, 99).tolist() == [3, 5, 9]


@given(st.sets(st.sampled_from(IDS), min_size=1, max_size=199), st.integers(0, 1000))
def test_the_ids_named_are_held_out_and_no_others(wanted, seed):
    ids = [IDS[i] for i in np.random.default_rng(seed).permutation(200)]
    train, held = hold_out_ids(np.arange(200), ids, sorted(wanted))
    assert {ids[sample] for sample in held} == wanted
    assert sorted([*train, *held]) == list(range(200))


def test_ids_of_skipped_samples_may_be_named():
    train, held = hold_out_ids(np.array([0, 1, 3]), IDS, ["0002.jpg", "0003.jpg"])
    assert (train.tolist(), held.tolist()) == ([0, 1], [3])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["0001.jpg", "x.jpg", "y.jpg"], r"val-ids names ids that are not there \(2, the first 'x.jpg'\)"),
        (["0002.jpg"], "val-ids holds out 0 of 3 samples"),
        (["0000.jpg", "0001.jpg", "0003.jpg"], "val-ids holds out 3 of 3 samples"),
    ],
)
def test_ids_that_are_not_there_or_leave_a_side_empty_are_refused(wanted, message):
    with pytest.raises(UserError, match=message):
        hold_out_ids(np.array([0, 1, 3]), IDS, wanted)


@pytest.mark.parametrize(
    ("given_weights", "message"),
    [
        (
            {"0001.jpg": 1.0, "0003.jpg": 1.0, "x.jpg": 1.0},
            r"gives weights to ids that are not there \(1, the first 'x.jpg'\)",
        ),
        ({"0000.jpg": 1.0, "0001.jpg": 1.0}, "gives no weight to 1 of the training samples, the first '0003.jpg'"),
        ({"0000.jpg": 1.0, "0001.jpg": 0.0, "0003.jpg": 0.0}, "weight 0 to all 2 training samples"),
    ],
)
def test_weights_that_do_not_fit_the_training_samples_are_refused(given_weights, message):
    with pytest.raises(UserError, match=message):
        weights_by_id(np.array([1, 3]), IDS, np.array([0, 1]), given_weights)
