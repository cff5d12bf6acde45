"""Choice of the images that a probe fits, holds out and tests; images on which no probe can be tuned are refused."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.machine.memory import available_memory
from losa_cache.machine.sizes import readable_bytes
from losa_cache.probe.features import probed_points, rows_of_point
from losa_cache.probe.folds import FOLDS, Folds, cross_validation, held_out_fold
from losa_cache.tasks import CLASSIFICATION, get_task
from losa_cache.tasks.base import ENOUGH, LEAST
from losa_cache.train.config import TrainConfig
from losa_cache.train.learned import targets_of
from losa_cache.train.sampler import first_by_hash
from losa_cache.train.training_data import selected

ROOM = 0.7
"""Share of the free memory that features and fits may take."""


@dataclass(frozen=True, eq=False)
class Images:
    """Numbers of samples.

    Attributes:
        train, held_out: of the training cache, as ``train`` with the same options has them.
        test: of the test cache; empty without one.
        folds: held-out positions in train and held_out, concatenated, while C and k are chosen.
        notes: sentences on what was left out.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    test: NDArray[np.int64]
    folds: Folds
    notes: list[str]

    @property
    def fitted(self) -> NDArray[np.int64]:
        """All training images."""
        return np.concatenate([self.train, self.held_out])


def choose_images(
    cache: ActivationCache, tested: ActivationCache | None, config: TrainConfig, device: torch.device
) -> Images:
    """Choose the images, as many as memory holds.

    If held-out images are named by their ids, or are groups, everything is chosen on them: they show other people or
    places, which folds would mix. If they are drawn as a share, they are used if there are enough of them; otherwise
    there are folds.

    Raises:
        UserError: if nothing can be tuned.
    """
    if config.val_ids is None and config.val_fraction == 0:
        raise UserError(
            "val-fraction is 0, so that nothing is held out to choose on: give a share above 0, or name images in a "
            "file with --val-ids."
        )
    targets = targets_of(cache, config)
    chosen = selected(cache, config, targets)
    train, held_out = chosen.train, chosen.held_out
    test = np.empty(0, np.int64) if tested is None else tested.samples
    labels, classes = targets.values, targets.names
    require_classes(labels[train], classes)
    cross = config.val_ids is None and config.group_by is None and len(held_out) < ENOUGH
    notes = []
    share = share_that_fits(cache, len(train) + len(held_out), len(test), FOLDS if cross else 1, device)
    if share < 1:
        train, held_out = (_part(cache, samples, share) for samples in (train, held_out))
        test = test if tested is None else _part(tested, test, share)
        notes.append(
            f"Memory holds the features of {100 * share:.1f} % of the images: so many were taken, by a hash of their "
            "ids."
        )
        require_classes(labels[train], classes)
    fitted = labels[np.concatenate([train, held_out])]
    if absent := [name for number, name in enumerate(classes) if number not in fitted]:
        names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        notes.append(
            f"{len(absent)} of {len(classes)} classes have no training image and are never predicted ({names})."
        )
    remedy = "hold out more with --val-fraction or --val-ids"
    get_task(CLASSIFICATION).require_choosable(fitted if cross else labels[held_out], classes, remedy)
    folds = cross_validation(fitted, seed=config.seed) if cross else held_out_fold(len(train), len(held_out))
    return Images(train, held_out, test, folds, notes)


def share_that_fits(cache: ActivationCache, fitted: int, tested: int, folds: int, device: torch.device) -> float:
    """Say which share of the images memory holds: their features, and the fits of all layers together.

    Args:
        cache: of the training images.
        fitted, tested: images.
        folds: that are fitted side by side.
        device: of the fits.

    Raises:
        UserError: if it holds too few of them to choose on.
    """
    features = len(probed_points(cache)) * rows_of_point(cache) * cache.manifest.width
    cpu = torch.device("cpu")
    for percent in range(100, 0, -1):
        n, others = fitted * percent // 100, tested * percent // 100
        if n < min(LEAST, fitted):
            break
        axes = min(n, features)
        kept = 4 * (n + others) * (features + cache.manifest.width)
        # float64: each fold's features, on their axes, and the axes; of one of them also what standardises it
        fits = 8 * (folds * (n * axes + axes * features + n * features // folds) + 2 * n * features + 2 * axes * axes)
        host, other = (kept + fits, 0) if device.type == "cpu" else (kept, fits)
        if host <= ROOM * available_memory(cpu) and other <= ROOM * available_memory(device):
            return percent / 100
    raise UserError(
        f"memory does not hold the {features:,} features of enough images ({readable_bytes(4 * features)} each, and "
        "several times that to fit them): give it more, or a cache of fewer --layers."
    )


def _part(cache: ActivationCache, samples: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    return first_by_hash(samples, cache.sample_ids, max(1, int(share * len(samples))))


def require_classes(labels: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Refuse training images of one class, or fewer of them than classes.

    Raises:
        UserError: saying which.
    """
    found = np.unique(labels)
    if len(found) == 1:
        raise UserError(
            f"all {len(labels)} training images are of class {classes[int(found[0])]!r}: a probe takes images of at "
            "least two classes."
        )
    if len(labels) < len(classes):
        raise UserError(
            f"there are {len(labels)} training images and {len(classes)} classes: a probe takes at least one image a "
            "class, so raise --limit or extract more."
        )
