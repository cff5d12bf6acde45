"""Erasing, mixup and cutmix against what their labels say, and generators left as they were."""

import random

import numpy as np
import pytest
import torch

from losa_cache.data.augment import BatchAugmentation, seeded
from losa_cache.errors import UserError

LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


def images(count=6, seed=0):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_mixup_is_the_convex_combination_that_its_labels_say():
    mixed, targets = BatchAugmentation(mixup=0.4, classes=3)(images(), LABELS, "key")
    share = targets[0, 0].item()  # sample 0 is of class 0, its partner, the last, of class 2
    assert 0 < share < 1
    assert targets[0, 2].item() == pytest.approx(1 - share)
    torch.testing.assert_close(mixed, share * images() + (1 - share) * images().flip(0))
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


def test_cutmix_takes_the_share_of_pixels_that_its_labels_say():
    mixed, targets = BatchAugmentation(cutmix=1.0, classes=3)(images(), LABELS, "key")
    own = (mixed == images()).all(1)
    partners = (mixed == images().flip(0)).all(1)
    assert (own | partners).all()
    assert own.float().mean().item() == pytest.approx(targets[0, 0].item())


def test_the_last_of_an_odd_batch_stays_as_it_is():
    mixed, targets = BatchAugmentation(mixup=0.4, classes=3)(images(5), LABELS[:5], "key")
    assert torch.equal(mixed[4], images(5)[4])
    assert targets[4].tolist() == [1, 0, 0]
    alone, target = BatchAugmentation(mixup=0.4, classes=3)(images(1), LABELS[:1], "key")
    assert torch.equal(alone, images(1))
    assert target.tolist() == [[1, 0, 0]]


def test_erasing_replaces_one_box_of_every_image():
    erased, labels = BatchAugmentation(reprob=1.0)(images(), LABELS, "key")
    assert labels is LABELS
    changed = (erased != images()).any(1)
    for mask in changed:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert 0.02 * 256 * 0.5 < mask.sum() == box < 256


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"reprob": 0.5}])
def test_the_key_decides_and_nothing_else_does(options):
    augment = BatchAugmentation(**options, classes=3)
    first, second, other = (augment(images(), LABELS, *key)[0] for key in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_nothing_asked_for_changes_nothing():
    same, labels = BatchAugmentation()(images(), LABELS, "key")
    assert torch.equal(same, images())
    assert labels is LABELS


def test_generators_are_left_as_they_were():
    draws = []
    for use in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if use:
            with seeded("key", device=torch.device("cpu")):
                inside = random.random(), np.random.rand(), torch.rand(()).item()
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert draws[0] == draws[1] != inside


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": -0.1}, "mixup is -0.1"),
        ({"cutmix": float("nan")}, "cutmix is nan"),
        ({"reprob": 1.5}, "reprob is 1.5"),
        ({"mixup": 0.2, "classes": 1}, "at least 2 classes; the data set has 1"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        BatchAugmentation(**options)
