"""The result of a trial on each held-out image, for comparisons image by image."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from losa_cache.errors import UserError
from losa_cache.files import write_whole
from losa_cache.outside import UnreadableError, read_file
from losa_cache.train.batch import Batch

FILE = "held_out.npy"
TEMPERATURES = [2 ** (step / 4) for step in range(-12, 13)]


@dataclass(frozen=True, eq=False)
class HeldOutResults:
    """A trial on the held-out images, in their order.

    Attributes:
        hits: 1 where the first guess is right, else 0, float32 ``(n,)``.
        losses: cross entropy in nats, float32 ``(n,)``, at the temperature that is best for all of them (Guo et al.,
            "On Calibration of Modern Neural Networks", ICML 2017). Otherwise label smoothing, dropout and small rates,
            which make a classifier less sure, would win or lose by that alone.
    """

    hits: NDArray[np.float32]
    losses: NDArray[np.float32]


class ResultCollector:
    """Takes what K trials say about batches, as ``evaluate_each`` gives it to ``keep``."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def __call__(self, log_probabilities: Tensor, batch: Batch) -> None:
        """Take the log-probabilities of a batch, ``(K, batch, classes)``."""
        right = batch.labels.expand(len(log_probabilities), -1)[..., None]
        found = [(log_probabilities.argmax(2) == batch.labels).float()]
        for temperature in TEMPERATURES:
            scaled = F.log_softmax(log_probabilities / temperature, -1)
            found.append(-scaled.gather(2, right).squeeze(2))
        self._parts.append(torch.stack(found, 1).cpu())

    def results(self, whose: Sequence[NDArray[np.bool_]] | None = None) -> list[HeldOutResults]:
        """Give what each trial came to, on all images or on those that are its own."""
        found = torch.cat(self._parts, 2)
        each = (
            found
            if whose is None
            else [own[:, torch.from_numpy(which)] for own, which in zip(found, whose, strict=True)]
        )
        return [_at_best(own) for own in each]


def _at_best(own: Tensor) -> HeldOutResults:
    """Choose a temperature for a trial; hits, and losses at each temperature: ``(1 + temperatures, n)``."""
    best = int(own[1:].double().mean(1).argmin())
    return HeldOutResults(own[0].numpy(), own[1 + best].numpy())


def save_held_out_results(folder: Path, results: HeldOutResults) -> None:
    """Write it to a trial's directory."""
    buffer = io.BytesIO()
    np.save(buffer, np.stack([results.hits, results.losses]), allow_pickle=False)
    write_whole(folder / FILE, buffer.getvalue())


def load_held_out_results(folders: Mapping[int, Path], images: int) -> dict[int, HeldOutResults]:
    """Read it back for each trial that has it: those of earlier versions have not.

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
            if content.dtype != np.float32 or content.shape != (2, images):
                raise ValueError("it is of other images")
        except (UnreadableError, ValueError, EOFError) as error:
            raise UserError(
                f"{str(path)!r} was changed: {str(error)!r}. Bring it back from a copy, or delete it; the sweep then "
                "chooses without comparing images."
            ) from error
        found[number] = HeldOutResults(*content)
    return found
