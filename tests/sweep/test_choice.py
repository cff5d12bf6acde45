"""The rule by which a setting is chosen, against a derivation by hand, and what is said of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from losa_cache.sweep.engine.choice import Setting, choose, difference_error, sure
from losa_cache.sweep.engine.held_out_results import ResultCollector
from losa_cache.tasks.classification import MACRO_F1, TASK, TOP1
from losa_cache.tasks.regression import R2
from losa_cache.train.batch import Batch


def setting(name, right, losses=None, *, of=None, parameters=10):
    """A setting that is right on the given images of so many."""
    hits = np.zeros(of or 45, np.float32)
    hits[list(right)] = 1
    each = None if losses is None else np.broadcast_to(np.float32(losses), hits.shape)
    return Setting(name, 100 * float(hits.mean()), losses and float(np.mean(losses)), parameters, hits, each)


def test_settings_that_are_right_on_all_images_are_told_apart_by_their_loss():
    """The sweep that picked rank 2 because it came first."""
    alike = [setting(n, range(45), loss, parameters=10 * n) for n, loss in enumerate([0.21, 0.08, 0.11, 0.03, 0.05])]
    choice = choose([*alike, setting(5, range(38), 0.001)], 45, TOP1)
    assert (choice.chosen, choice.level, choice.rival, choice.ahead) == (3, [3, 4, 1, 2, 0], 4, 0.0)
    assert choice.error == pytest.approx(100 / 47)
    assert choice.needed == math.ceil(45 * (100 / 47) ** 2)
    told = sure(choice, TOP1)
    assert told.startswith("5 of 6 settings are within one standard error of the best on 45 held-out images.")
    assert "so the lowest held-out loss decided, by 0.02" in told
    assert "At least 210 held-out images would be needed to resolve 1 point." in told


def test_a_difference_that_the_images_resolve_is_not_given_up_for_a_lower_loss():
    choice = choose([setting(0, range(80), 0.1, of=100), setting(1, range(90), 0.9, of=100)], 100, TOP1)
    assert (choice.chosen, choice.level, choice.ahead) == (1, [1], pytest.approx(10.0))
    assert "no other of the 2 settings is within one standard error" in sure(choice, TOP1)
    # the same accuracies, but unpaired as well as paired within an error: 75 and 78 of 100, right on other images
    level = choose([setting(0, range(75), 0.1, of=100), setting(1, range(22, 100), 0.9, of=100)], 100, TOP1)
    assert (level.chosen, level.ahead) == (0, pytest.approx(-3.0))
    assert "-3.0 points from the next one" in sure(level, TOP1)


def test_where_no_error_is_known_a_small_lead_is_one_and_equal_values_are_level():
    told = sure(choose([Setting(0, 0.8001, 0.5, 10), Setting(1, 0.8, 0.4, 10)], 50, R2), R2)
    assert told == (
        "On 50 held-out images no other of the 2 settings reaches the R² of the chosen one. "
        "The chosen one is less than 0.001 ahead of the next one in R²."
    )
    told = sure(choose([Setting(0, 0.8, 0.5, 10), Setting(1, 0.8, 0.4, 10)], 50, R2), R2)
    assert told.startswith("2 of 2 settings have the best R² on 50 held-out images. The chosen one is level with the")
    assert R2.show_difference(0.01) == "0.010" and MACRO_F1.show_difference(1.5) == "1.5 points"


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 40))
def test_the_error_of_a_difference_is_that_of_matched_proportions(only_first, only_second, both):
    n = only_first + only_second + both + 1
    first = setting(0, [*range(only_first), *range(only_first + only_second, n - 1)], of=n)
    second = setting(1, range(only_first, n - 1), of=n)
    error, paired = difference_error(first, second, n, TOP1)
    b, c, total = only_first + 0.5, only_second + 0.5, n + 2  # Agresti and Min's counts
    assert paired
    assert error == pytest.approx(100 * math.sqrt(b + c - (b - c) ** 2 / total) / total)


def test_where_images_are_not_at_hand_the_error_is_that_of_two_shares():
    first, second = Setting(0, 80.0, 0.5, 10), Setting(1, 79.0, 0.4, 10)
    error, paired = difference_error(first, second, 10_000, TOP1)
    assert not paired
    assert error == pytest.approx(100 * math.sqrt((0.8 * 0.2 + 0.79 * 0.21) / 10_000), rel=1e-3)
    assert [choose([first, second], images, TOP1).chosen for images in (10_000, 100, None)] == [0, 1, 0]


def test_how_sure_a_classifier_is_in_all_does_not_count():
    """Against the same logits in one batch, at half the temperature."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(1, 90, 4, generator=generator), torch.randint(4, (90,), generator=generator)
    logits[0, range(90), labels] += 1
    jury, whole = ResultCollector(TASK), ResultCollector(TASK)
    for part in (slice(0, 64), slice(64, 90)):
        both = torch.cat([logits, 2 * logits])[:, part]
        jury(both.log_softmax(-1), Batch([], labels[part], []))
    whole(logits.log_softmax(-1), Batch([], labels, []))
    (once, twice), (alone,) = jury.results(), whole.results()
    np.testing.assert_allclose(twice.losses, once.losses, rtol=1e-5)
    np.testing.assert_allclose(alone.losses, once.losses, rtol=1e-6)
    at_each = [F.cross_entropy(logits[0] / 2 ** (step / 100), labels).item() for step in range(-300, 301)]
    assert once.losses.mean() == pytest.approx(min(at_each), rel=0.01)
    assert once.losses.mean() < F.cross_entropy(logits[0], labels) < F.cross_entropy(2 * logits[0], labels)
    assert (once.terms[0] == (logits[0].argmax(1) == labels).numpy()).all()


def test_losses_that_are_no_numbers_come_last_and_equal_ones_leave_it_to_the_parameters():
    settings = [Setting(0, 80.0, float("nan"), 1), Setting(1, 80.0, 9.0, 30), Setting(2, 80.0, 9.0, 20)]
    choice = choose(settings, 50, TOP1)
    assert (choice.chosen, choice.level) == (2, [2, 1, 0])
    assert "the fewer parameters decided" in sure(choice, TOP1)
    assert choose([], 50, TOP1) is None
    assert sure(choose(settings[:1], 50, TOP1), TOP1) == "There was one setting, so nothing was chosen."
