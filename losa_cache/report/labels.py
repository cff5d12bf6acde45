"""What is shown of several labels an image: a line a label, and how far probabilities can be trusted."""

from collections.abc import Sequence

import torch
from torch import Tensor

from losa_cache.report.calibration_chart import CalibrationChart
from losa_cache.report.details import Details, Table, defined
from losa_cache.tasks.measures.average_precision import average_precision
from losa_cache.tasks.measures.calibration import Bins
from losa_cache.tasks.measures.label_f1 import label_f1

HEAD = ("label", "positive", "known", "average precision", "threshold", "precision", "recall", "f1", "f1 at 0.5")


def label_details(
    probabilities: Tensor, targets: Tensor, names: Sequence[str], thresholds: Sequence[float] | None
) -> Details:
    """Show labels.

    Args:
        probabilities: ``(N, C)``.
        targets: 1, 0, or -1 where it is not known, ``(N, C)``.
        names: of the labels.
        thresholds: of each label, as held-out samples chose them; ``None``: one half.
    """
    chosen = torch.tensor([0.5] * len(names) if thresholds is None else thresholds, dtype=torch.float64)
    known, positive, predicted = targets >= 0, targets == 1, probabilities >= chosen
    right = (predicted & positive).sum(0).double()
    columns = {
        "positive": positive.sum(0),
        "known": known.sum(0),
        "average precision": average_precision(probabilities[None], targets)[0],
        "threshold": chosen,
        "precision": right / (predicted & known).sum(0),
        "recall": right / positive.sum(0),
        "f1": label_f1(probabilities[None], targets, thresholds=chosen)[0],
        "f1 at 0.5": label_f1(probabilities[None], targets)[0],
    }
    cells = zip(*(own.tolist() for own in columns.values()), strict=True)
    rows = [[name, *(defined(own) if isinstance(own, float) else own for own in line)]
            for name, line in zip(names, cells, strict=True)]  # fmt: skip
    calibration = Bins.of(probabilities[known][None], positive[known][None])
    caption = (
        "Of each label: samples that have it, samples of which it is known, and figures at its threshold, which "
        f"{'is one half' if thresholds is None else 'samples held out of training chose'}."
    )
    return Details(
        tables=[Table("labels", caption, HEAD, rows)],
        charts=[CalibrationChart.of(calibration, "probability of a label", "share of samples that have it")],
    )
