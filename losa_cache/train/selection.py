"""Which samples a run trains on, how often each, and which it holds out: the options, with their files read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.targets.class_weights import BALANCED as CLASSES_BALANCED
from losa_cache.targets.target_set import CLASS, TargetSet
from losa_cache.tasks import get_task
from losa_cache.train.config import BALANCED, SHUFFLE, TrainConfig
from losa_cache.train.sample_files import parse_ids, parse_weights, read_sample_file, require_sample_files
from losa_cache.train.sampler import (
    Weights,
    balanced_weights,
    first_by_hash,
    hold_out,
    hold_out_ids,
    weights_by_id,
)


@dataclass(frozen=True)
class Selection:
    """Samples of a run.

    Attributes:
        train, held_out: their numbers, ascending.
        weights: of the training samples; ``None``: each comes once an epoch.
        files: content of the files that options name, by option.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    weights: Weights | None
    files: dict[str, bytes]


def select(
    samples: NDArray[np.int64], ids: Sequence[str], targets: TargetSet, config: TrainConfig, *, fold: int = 0
) -> Selection:
    """Hold samples out, limit and weigh the rest.

    Args:
        samples: numbers of those that are there.
        ids, targets: of all samples.
        config: the options.
        fold: which part ``val_fraction`` holds out, as of :func:`losa_cache.train.sampler.hold_out`.

    Raises:
        UserError: for files that cannot be read or do not fit the samples, and where a side is left empty.
    """
    if config.sampling == BALANCED and not get_task(config.task).balances:
        raise UserError(
            f"sampling is {BALANCED!r}, but the task {config.task!r} has no classes to balance: choose {SHUFFLE}, or a "
            "CSV file of weights."
        )
    require_sample_files(config)
    if not len(samples):
        raise UserError("there are no samples to train or evaluate on.")
    files: dict[str, bytes] = {}
    if config.val_ids is None:
        train, held_out = hold_out(samples, ids, config.val_fraction, fold)
    else:
        files["val_ids"] = read_sample_file(config.val_ids, "val-ids")
        train, held_out = hold_out_ids(samples, ids, parse_ids(files["val_ids"], config.val_ids))
    if config.limit is not None:
        train = first_by_hash(train, ids, config.limit)
    if config.class_weights not in (None, CLASSES_BALANCED):
        files["class_weights"] = read_sample_file(config.class_weights, "class-weights")
    if config.sampling == SHUFFLE:
        return Selection(train, held_out, None, files)
    classes = targets.values if targets.kind == CLASS else np.zeros(len(targets.values), np.int64)
    if config.sampling == BALANCED:
        return Selection(train, held_out, balanced_weights(classes[train]), files)
    files["sampling"] = read_sample_file(config.sampling, "sampling")
    given = parse_weights(files["sampling"], config.sampling)
    return Selection(train, held_out, weights_by_id(train, ids, classes[train], given), files)
