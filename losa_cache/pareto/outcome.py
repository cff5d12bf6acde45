"""What a run directory, or a test of it, says of itself. Nothing is asked of the process that trained."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, fit, read_json
from losa_cache.pareto.record import Accuracy, Training
from losa_cache.train.run import Run

EVALUATION = "eval.json"


class _Epoch(Struct):
    """What is read of an epoch's metrics."""

    train_seconds: Annotated[float, Meta(gt=0)]
    train_images_per_second: float
    train_peak_gb: float
    parameters: dict[str, int]
    inference_macs: int | None = None
    adapter_macs: int | None = None
    train_cpu_joules: float | None = None
    train_gpu_joules: float | None = None
    val_top1: float | None = None
    val_loss: float | None = None

    @property
    def joules(self) -> float | None:
        """Energy of all meters that could be read."""
        known = [joules for joules in (self.train_cpu_joules, self.train_gpu_joules) if joules is not None]
        return math.fsum(known) if known else None


class _Test(Struct):
    """What is read of a test."""

    top1: float
    samples: int
    loss: float | None


def trained(run: Path) -> Training:
    """Give the figures of a finished run.

    Raises:
        UserError: if its files cannot be read.
    """
    directory = Run(run)
    fields = directory.config()[1]["fields"]
    try:
        epochs = fit(list(directory.metrics()), list[_Epoch])
        if not epochs:
            raise UnreadableError("it has no epochs")
        return fit(_figures(epochs, fields), Training)
    except UnreadableError as error:
        raise UserError(
            f"the metrics of run {str(run)!r} cannot be read: {error}. Remove it, and begin again."
        ) from error


def _figures(epochs: list[_Epoch], fields: dict[str, Any]) -> dict[str, Any]:
    """Give the fields of a :class:`Training`."""
    seconds = math.fsum(epoch.train_seconds for epoch in epochs)
    images = math.fsum(epoch.train_seconds * epoch.train_images_per_second for epoch in epochs)
    joules = [epoch.joules for epoch in epochs if epoch.joules is not None]
    last = epochs[-1]
    finite = last.val_loss is not None and math.isfinite(last.val_loss)
    return {
        "images": fields["dataset"]["fingerprint"],
        "epoch_seconds": seconds,
        "images_per_second": images / seconds,
        "peak_gb": max(epoch.train_peak_gb for epoch in epochs),
        "joules": math.fsum(joules) if len(joules) == len(epochs) else None,
        "parameters": last.parameters,
        "macs": last.inference_macs or _with_backbone(last.adapter_macs, fields),
        "val_top1": last.val_top1,
        "val_loss": last.val_loss if finite else None,
    }


def tested(run: Path) -> Accuracy:
    """Give the figures of a run's last test.

    Raises:
        UserError: if they cannot be read, or the outputs are not finite.
    """
    try:
        found = read_json(run / EVALUATION, _Test)
        figures = fit({"top1": found.top1, "samples": found.samples}, Accuracy)
    except UnreadableError as error:
        raise UserError(f"the test of run {str(run)!r} cannot be read: {error}.") from error
    if found.loss is None or not math.isfinite(found.loss):
        raise UserError("its loss on the test split is not finite: the training diverged, and its top-1 means nothing.")
    return figures


def _with_backbone(macs: int | None, fields: dict[str, Any]) -> int | None:
    """Add the backbone's multiply-accumulates to those of an adapter; ``None`` if either is not known."""
    backbone = _of_backbone(json.dumps({name: fields[name] for name in ("backbone", "input")}))
    return None if macs is None or backbone is None else macs + backbone


@cache
def _of_backbone(fields: str) -> int | None:
    from losa_cache.train.costs import backbone_macs_of

    return backbone_macs_of(json.loads(fields))
