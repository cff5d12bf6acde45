"""What a trial came to on each held-out image: for comparisons image by image."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from losa_cache.errors import UserError
from losa_cache.files import write_whole
from losa_cache.outside import UnreadableError, read_file
from losa_cache.train.batch import Batch

FILE = "held_out.npy"


@dataclass(frozen=True, eq=False)
class Judged:
    """A trial on the held-out images, in their order.

    Attributes:
        hits: 1 where the first guess is right, else 0, float32 ``(n,)``.
        losses: cross entropy in nats, float32 ``(n,)``.
    """

    hits: NDArray[np.float32]
    losses: NDArray[np.float32]


class Jury:
    """Takes what K trials say about batches, as ``evaluate_each`` gives it to ``keep``."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def __call__(self, log_probabilities: Tensor, batch: Batch) -> None:
        """Take the log-probabilities of a batch, ``(K, batch, classes)``."""
        right = batch.labels.expand(len(log_probabilities), -1)[..., None]
        losses = -log_probabilities.gather(2, right).squeeze(2)
        hits = log_probabilities.argmax(2) == batch.labels
        self._parts.append(torch.stack([hits.float(), losses.float()], 1).cpu())

    def verdicts(self) -> list[Judged]:
        """Give what each trial came to on all of them."""
        return [Judged(hits, losses) for hits, losses in torch.cat(self._parts, 2).numpy()]


def save_judged(folder: Path, judged: Judged) -> None:
    """Write it to a trial's directory."""
    buffer = io.BytesIO()
    np.save(buffer, np.stack([judged.hits, judged.losses]), allow_pickle=False)
    write_whole(folder / FILE, buffer.getvalue())


def load_judged(folders: Mapping[int, Path], images: int) -> dict[int, Judged]:
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
        found[number] = Judged(*content)
    return found
