"""What is shown of predicted numbers: a line a column, and predictions against targets."""

from collections.abc import Sequence

from torch import Tensor

from losa_cache.report.details import Details, Table, defined
from losa_cache.report.scatter_chart import ScatterChart
from losa_cache.tasks.measures.regression import ColumnErrors
from losa_cache.tasks.measures.spearman import column_spearman

HEAD = ("column", "mean", "deviation", "R2", "MAE", "RMSE", "Spearman")


def column_details(predictions: Tensor, targets: Tensor, names: Sequence[str]) -> Details:
    """Show columns of numbers: predictions and targets are ``(N, C)``."""
    errors, ranks = ColumnErrors.of(predictions[None], targets), column_spearman(predictions[None], targets)
    exact = targets.double()
    each = (exact.mean(0), exact.std(0, correction=0), errors.r2[0], errors.mae[0], errors.rmse[0], ranks[0])
    cells = zip(*(own.tolist() for own in each), strict=True)
    rows = [[name, *map(defined, line)] for name, line in zip(names, cells, strict=True)]
    caption = "Of each column: mean and standard deviation of the targets, and figures of the predictions."
    return Details(
        tables=[Table("columns", caption, HEAD, rows)],
        charts=[ScatterChart(predictions.double().numpy(), exact.numpy(), names)],
    )
