"""The result of a trial on each held-out image, for comparisons image by image."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.errors import UserError
from losa_cache.files import write_whole
from losa_cache.outside import UnreadableError, read_file
from losa_cache.tasks import Task
from losa_cache.train.batch import Batch
from losa_cache.train.evaluate import NOTHING, Scored

FILE = "held_out.npy"


@dataclass(frozen=True, eq=False)
class HeldOutResults:
    """The results of a trial on the held-out images, in their order.

    Attributes:
        terms: terms of the selection metric (:attr:`losa_cache.tasks.Metric.terms`), float32 ``(S, n)``. For top-1
            there is one row: 1 if the first guess is right, else 0. A metric that is computed from all predictions at
            once has one row, too: the figure itself, for every image.
        losses: losses of the task, float32 ``(n,)``, at the calibration that is best for all images
            (:meth:`losa_cache.tasks.Task.calibrated`). For classification this is the cross entropy in nats at one
            temperature.
    """

    terms: NDArray[np.float32]
    losses: NDArray[np.float32]


class ResultCollector:
    """Collects the predictions of K trials; ``evaluate_each`` calls it as ``keep``.

    Args:
        task: that they learn.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._parts: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._whole: list[tuple[Tensor, Tensor]] = []

    def __call__(self, predictions: Tensor, batch: Batch, scored: Scored = NOTHING) -> None:
        """Take the predictions for a batch, ``(K, batch, ...)``, and the terms of metrics that are computed already."""
        score = self._task.selection.terms
        if score is not None:
            known = score in scored and not self._task.compares
            terms = scored[score] if known else self._task.selection_terms(predictions, batch.labels)
            self._parts.append(terms.float().mT.cpu())
        else:
            self._whole.append((predictions.cpu(), batch.labels.cpu()))
        self._losses.append(self._task.calibrated(predictions, batch.labels).float().cpu())

    def results(self, whose: Sequence[NDArray[np.bool_]] | None = None) -> list[HeldOutResults]:
        """Give the results of each trial, on all images or on those that it held out."""
        losses = torch.cat(self._losses, 2)
        trials, _, images = losses.shape
        masks = [torch.ones(images, dtype=torch.bool)] * trials if whose is None else [*map(torch.from_numpy, whose)]
        if self._parts:
            terms = [own[:, mask] for own, mask in zip(torch.cat(self._parts, 2), masks, strict=True)]
        else:
            terms = self._figures(masks)
        return [_at_best(own, each[:, mask]) for own, each, mask in zip(terms, losses, masks, strict=True)]

    def _figures(self, masks: Sequence[Tensor]) -> list[Tensor]:
        whole = self._task.selection.whole
        assert whole is not None
        predictions, targets = (
            torch.cat(parts, at) for parts, at in zip(zip(*self._whole, strict=True), (1, 0), strict=True)
        )
        figures = [whole(own[None, mask], targets[mask]) for own, mask in zip(predictions, masks, strict=True)]
        return [figure.float()[:, None].expand(1, int(mask.sum())) for figure, mask in zip(figures, masks, strict=True)]


def _at_best(terms: Tensor, losses: Tensor) -> HeldOutResults:
    """Choose a calibration for a trial: terms ``(S, n)``, and losses at each calibration, ``(C, n)``."""
    best = int(losses.double().mean(1).argmin())
    return HeldOutResults(terms.numpy(), losses[best].numpy())


def save_held_out_results(folder: Path, results: HeldOutResults) -> None:
    """Write it to a trial's directory."""
    buffer = io.BytesIO()
    np.save(buffer, np.stack([*results.terms, results.losses]), allow_pickle=False)
    write_whole(folder / FILE, buffer.getvalue())


def load_held_out_results(folders: Mapping[int, Path], images: int) -> dict[int, HeldOutResults]:
    """Read the results of each trial that has them; trials of earlier versions have none.

    Args:
        folders: by trial.
        images: held out.

    Raises:
        UserError: for a file that is something else.
    """
    found = {}
    for number, folder in folders.items():
        path = folder / FILE
        if not path.exists():
            continue
        try:
            content = np.load(io.BytesIO(read_file(path)), allow_pickle=False)
            if content.dtype != np.float32 or content.ndim != 2 or content.shape[1] != images or len(content) < 2:
                raise ValueError("it is of other images")
        except (UnreadableError, ValueError, EOFError) as error:
            raise UserError(
                f"{str(path)!r} was changed: {str(error)!r}. Bring it back from a copy, or delete it; the sweep then "
                "chooses without comparing images."
            ) from error
        found[number] = HeldOutResults(content[:-1], content[-1])
    return found
