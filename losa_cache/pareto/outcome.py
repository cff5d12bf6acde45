"""What a run directory, or a test of it, says of itself. Nothing is asked of the process that trained."""

import math
from pathlib import Path
from typing import Any

from msgspec import Struct

from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, fit, read_json
from losa_cache.train.run import Run

EVALUATION = "eval.json"


class _Epoch(Struct):
    """What is read of an epoch's metrics."""

    train_seconds: float
    train_images_per_second: float
    train_peak_gb: float
    parameters: dict[str, int]
    inference_macs: int | None = None
    train_joules: float | None = None
    val_top1: float | None = None
    val_loss: float | None = None


class _Test(Struct):
    """What is read of a test."""

    top1: float
    samples: int


def trained(run: Path) -> dict[str, Any]:
    """Give the figures of a finished run, for the record.

    Raises:
        UserError: if its metrics cannot be read.
    """
    try:
        epochs = fit(list(Run(run).metrics()), list[_Epoch])
        if not epochs:
            raise UnreadableError("it has no epochs")
    except UnreadableError as error:
        raise UserError(
            f"the metrics of run {str(run)!r} cannot be read: {error}. Remove it, and begin again."
        ) from error
    seconds = math.fsum(epoch.train_seconds for epoch in epochs)
    images = math.fsum(epoch.train_seconds * epoch.train_images_per_second for epoch in epochs)
    joules = [epoch.train_joules for epoch in epochs if epoch.train_joules is not None]
    last = epochs[-1]
    return {
        "train_seconds": seconds,
        "images_per_second": images / seconds,
        "peak_gb": max(epoch.train_peak_gb for epoch in epochs),
        "joules": math.fsum(joules) if len(joules) == len(epochs) else None,
        "parameters": last.parameters,
        "macs": last.inference_macs,
        "val_top1": last.val_top1,
        "val_loss": last.val_loss,
    }


def tested(run: Path) -> dict[str, Any]:
    """Give the figures of a run's last test, for the record.

    Raises:
        UserError: if they cannot be read.
    """
    try:
        found = read_json(run / EVALUATION, _Test)
    except UnreadableError as error:
        raise UserError(f"the test of run {str(run)!r} cannot be read: {error}.") from error
    return {"top1": found.top1, "samples": found.samples}
