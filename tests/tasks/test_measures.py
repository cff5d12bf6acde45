"""Figures of predictions against scikit-learn and torchmetrics; draws of the bootstrap against repeated samples."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from losa_cache.tasks.measures.auroc import auroc, two_class_auroc
from losa_cache.tasks.measures.average_precision import (
    average_precision,
    mean_average_precision,
    micro_average_precision,
)
from losa_cache.tasks.measures.bootstrap import draws, interval
from losa_cache.tasks.measures.calibration import calibration_error
from losa_cache.tasks.measures.class_counts import ClassCounts, balanced_accuracy, confusion, macro_f1
from losa_cache.tasks.measures.label_f1 import best_thresholds, label_f1, macro_label_f1
from losa_cache.tasks.measures.regression import ColumnErrors, mean_absolute_error, r2, root_mean_squared_error
from losa_cache.tasks.measures.spearman import column_spearman, spearman

pytestmark = pytest.mark.filterwarnings("ignore:y_pred contains classes:UserWarning")
K, N, C = 3, 60, 4
NAN = float("nan")


@pytest.fixture
def random():
    return torch.Generator().manual_seed(7)


def classes(random, count=C):
    """Log-probabilities in steps, so that many are equal, and labels without the last class."""
    logits = (2 * torch.randn(K, N, count, generator=random)).round()
    return logits.log_softmax(-1), torch.randint(max(2, count - 1), (N,), generator=random)


def labels_of(random):
    """Probabilities with ties, and labels of which some are unknown and the last is never there."""
    targets = torch.randint(-1, 2, (N, C), generator=random).to(torch.int8)
    targets[:, -1] = targets[:, -1].clamp_max(0)
    return (torch.rand(K, N, C, generator=random) * 12).round() / 12, targets


def numbers(random):
    targets = (3 * torch.randn(N, 2, generator=random)).round() + 1000
    predictions = targets + torch.randn(K, N, 2, generator=random).round()
    return predictions.double(), targets.double()


def test_classes(random):
    predictions, labels = classes(random)
    counts = ClassCounts.of(predictions.argmax(-1), labels, C)
    for trial, decided in enumerate(predictions.argmax(-1)):
        precision, recall, f1, support = sk.precision_recall_fscore_support(
            labels, decided, labels=range(C), zero_division=NAN
        )
        theirs = (sk.balanced_accuracy_score(labels, decided), sk.f1_score(labels, decided, average="macro"))
        ours = (balanced_accuracy(predictions, labels)[trial], macro_f1(predictions, labels)[trial])
        assert [float(value) for value in ours] == pytest.approx(theirs)
        for name, expected in {"precision": precision, "recall": recall, "support": support}.items():
            np.testing.assert_allclose(getattr(counts, name)[trial], expected)
        present = (support + torch.bincount(decided, minlength=C).numpy()) > 0
        np.testing.assert_allclose(counts.f1[trial][present], f1[present])
        np.testing.assert_array_equal(
            confusion(decided, labels, C), sk.confusion_matrix(labels, decided, labels=range(C))
        )


def test_areas(random):
    predictions, labels = classes(random, 2)
    scores = (predictions[..., 1] - predictions[..., 0]).numpy()
    np.testing.assert_allclose(two_class_auroc(predictions, labels), [sk.roc_auc_score(labels, own) for own in scores])
    assert math.isnan(auroc(torch.rand(1, 4), torch.ones(4, dtype=torch.bool)))
    assert two_class_auroc(*classes(random, 3)).isnan().all()


def test_average_precision(random):
    scores, targets = labels_of(random)
    ours = average_precision(scores, targets)
    for trial in range(K):
        for label in range(C - 1):
            known = targets[:, label] >= 0
            theirs = sk.average_precision_score(targets[known, label], scores[trial, known, label])
            assert float(ours[trial, label]) == pytest.approx(theirs)
        known = targets >= 0
        micro = sk.average_precision_score(targets[known], scores[trial][known])
        assert float(micro_average_precision(scores, targets)[trial]) == pytest.approx(micro)
    assert ours[:, -1].isnan().all()
    np.testing.assert_allclose(mean_average_precision(scores, targets), ours[:, :-1].mean(1))


def test_thresholds(random):
    scores, targets = labels_of(random)
    chosen = best_thresholds(scores[0], targets)
    at_chosen = label_f1(scores, targets, thresholds=chosen)[0]
    for label in range(C - 1):
        known = targets[:, label] >= 0
        truth, own = targets[known, label], scores[0, known, label]
        precision, recall, _ = sk.precision_recall_curve(truth, own)
        best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-9))
        assert float(at_chosen[label]) == pytest.approx(best)
        assert float(label_f1(scores, targets)[0, label]) == pytest.approx(sk.f1_score(truth, own >= 0.5))
    assert float(chosen[-1]) == 0.5
    assert label_f1(scores, targets, thresholds=2.0)[0, -1].isnan()
    np.testing.assert_allclose(macro_label_f1(scores, targets), label_f1(scores, targets).nanmean(1))


def test_numbers(random):
    from scipy.stats import spearmanr

    predictions, targets = numbers(random)
    each = ColumnErrors.of(predictions, targets)
    for trial, own in enumerate(predictions):
        theirs = [
            function(targets, own, multioutput="raw_values")
            for function in (sk.r2_score, sk.mean_absolute_error, sk.root_mean_squared_error)
        ]
        np.testing.assert_allclose(torch.stack([each.r2[trial], each.mae[trial], each.rmse[trial]]), theirs)
        means = [
            float(function(predictions, targets)[trial])
            for function in (r2, mean_absolute_error, root_mean_squared_error)
        ]
        assert means == pytest.approx(np.mean(theirs, 1).tolist())
        ranks = [spearmanr(targets[:, column], own[:, column]).statistic for column in range(2)]
        np.testing.assert_allclose(column_spearman(predictions, targets)[trial], ranks)
        assert float(spearman(predictions, targets)[trial]) == pytest.approx(np.mean(ranks))
    constant = torch.full((N, 2), 0.1)
    assert r2(predictions, constant).isnan().all() and spearman(predictions, constant).isnan().all()


def test_calibration(random):
    predictions, labels = classes(random)
    likeliest = predictions[0].double().exp().max(1)
    expected = 0.0
    for low in range(15):
        inside = (likeliest.values > low / 15) & (likeliest.values <= (low + 1) / 15)
        if inside.any():
            right = (likeliest.indices == labels)[inside].double()
            expected += float(inside.double().mean() * (right.mean() - likeliest.values[inside].mean()).abs())
    assert float(calibration_error(predictions, labels)[0]) == pytest.approx(expected)


@pytest.mark.slow  # importing torchmetrics takes 4 seconds
def test_torchmetrics_gives_the_same(random):
    from torchmetrics.functional import classification as tm

    predictions, labels = classes(random)
    scores, targets = labels_of(random)
    for trial in range(K):
        theirs = tm.multiclass_calibration_error(predictions[trial].double().exp(), labels, C, n_bins=15)
        assert float(calibration_error(predictions, labels)[trial]) == pytest.approx(float(theirs), abs=1e-6)
        asked = {"num_labels": C, "ignore_index": -1}
        macro = tm.multilabel_average_precision(
            scores[trial][:, :-1], targets[:, :-1].long(), num_labels=C - 1, ignore_index=-1
        )
        assert float(mean_average_precision(scores, targets)[trial]) == pytest.approx(float(macro), abs=1e-6)
        f1 = tm.multilabel_f1_score(scores[trial], targets.long(), average=None, threshold=0.4999, **asked)
        np.testing.assert_allclose(label_f1(scores, targets)[trial].nan_to_num(0), f1, atol=1e-6)


@pytest.mark.parametrize("of", [
    (balanced_accuracy, classes), (macro_f1, classes), (calibration_error, classes),
    (two_class_auroc, lambda random: classes(random, 2)), (average_precision, labels_of),
    (mean_average_precision, labels_of), (micro_average_precision, labels_of), (macro_label_f1, labels_of),
    (r2, numbers), (mean_absolute_error, numbers), (root_mean_squared_error, numbers), (column_spearman, numbers),
], ids=lambda of: of[0].__name__)  # fmt: skip
def test_a_weighting_is_repetition_and_a_diverged_trial_has_no_figure(of, random):
    figure, made = of
    predictions, targets = made(random)
    weights = torch.cat(list(draws(N, count=4, seed=1)))
    together = figure(predictions[:1], targets, weights)
    for own, weighting in zip(together, weights, strict=True):
        drawn = torch.arange(N).repeat_interleave(weighting.long())
        torch.testing.assert_close(own, figure(predictions[:1, drawn], targets[drawn])[0], equal_nan=True)
    each = figure(predictions, targets, weights[:1])
    torch.testing.assert_close(each[0], together[0], equal_nan=True)
    assert each.shape[0] == K
    if figure not in (balanced_accuracy, macro_f1):
        predictions[1] = NAN
        diverged = figure(predictions, targets)
        assert diverged[1].isnan().all() and not diverged[0].isnan().all()


def test_intervals():
    values = torch.linspace(0, 1, 400, dtype=torch.float64)
    low, high = interval(lambda weights: weights @ values / 400, 400)
    half = 1.96 * float(values.std()) / 20  # of the normal distribution
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.1 * half)
    groups = np.arange(400) // 100  # four groups: the mean varies far more from draw to draw
    wide = interval(lambda weights: weights @ values / weights.sum(1), 400, groups=groups)
    assert wide[1] - wide[0] > 3 * (high - low)
    assert interval(lambda weights: weights.sum(1) * NAN, 4) is None
    whole = torch.cat(list(draws(7, count=5, at_once=5)))
    assert torch.equal(whole, torch.cat(list(draws(7, count=5, at_once=2))))
    assert (whole.sum(1) == 7).all()
