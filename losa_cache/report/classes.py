"""What is shown of predicted classes: a line a class, the confusion matrix, and how probabilities agree with it."""

from collections.abc import Sequence

from torch import Tensor

from losa_cache.report.calibration_chart import CalibrationChart
from losa_cache.report.confusion_chart import ConfusionChart
from losa_cache.report.details import Details, Table, defined
from losa_cache.tasks.measures.calibration import Bins
from losa_cache.tasks.measures.class_counts import ClassCounts, confusion

HEAD = ("class", "support", "precision", "recall", "f1")


def class_details(log_probabilities: Tensor, decided: Tensor, labels: Tensor, names: Sequence[str]) -> Details:
    """Show classes.

    Args:
        log_probabilities: of each class, ``(N, C)``.
        decided: the answers, int64 ``(N,)``.
        labels: int64 ``(N,)``.
        names: of the classes.
    """
    counts = ClassCounts.of(decided[None], labels, len(names))
    shares = zip(*(own[0].tolist() for own in (counts.precision, counts.recall, counts.f1)), strict=True)
    rows = [
        [name, int(support), *map(defined, own)]
        for name, support, own in zip(names, counts.support[0].tolist(), shares, strict=True)
    ]
    caption = "Of each class: its samples, the share of right ones among those predicted, and among its own; F1."
    stated = log_probabilities.gather(1, decided[:, None])[:, 0].double().exp()
    calibration = Bins.of(stated[None], (decided == labels)[None])
    return Details(
        tables=[Table("classes", caption, HEAD, rows)],
        charts=[
            ConfusionChart(confusion(decided, labels, len(names)).numpy(), names),
            CalibrationChart.of(calibration, "probability of the answer", "share of right answers"),
        ],
    )
