"""Which samples a run trains on, how often each, and which it holds out: the options, with their files read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from losa_cache.errors import UserError
from losa_cache.targets.class_weights import BALANCED as CLASSES_BALANCED
from losa_cache.targets.target_set import CLASS, NUMBERS, TargetSet
from losa_cache.tasks import get_task
from losa_cache.train.config import BALANCED, SHUFFLE, WEIGHT, TrainConfig
from losa_cache.train.groups import (
    groups_by_id,
    hold_out_groups,
    require_apart,
    require_every_class,
    require_groups,
)
from losa_cache.train.sample_files import (
    parse_groups,
    parse_ids,
    parse_weights,
    read_sample_file,
    require_sample_files,
    written_weights,
)
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
        groups: of all samples, a target set of classes; ``None``: there are none.
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    weights: Weights | None
    files: dict[str, bytes]
    groups: TargetSet | None = None


def select(
    samples: NDArray[np.int64],
    ids: Sequence[str],
    targets: TargetSet,
    config: TrainConfig,
    *,
    groups: TargetSet | None = None,
    weights: TargetSet | None = None,
    fold: int | None = None,
) -> Selection:
    """Hold samples out, limit and weigh the rest.

    Args:
        samples: numbers of those that are there.
        ids, targets: of all samples.
        config: the options.
        groups: the target set that ``config.group_by`` names; ``None``: it names a file, or nothing.
        weights: the target set of that name; ``None``: there is none.
        fold: which of several parts ``val_fraction`` holds out, as of :func:`losa_cache.train.sampler.hold_out`;
            ``None``: the first is the only one.

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
    if config.group_by is not None:
        if groups is None:
            files["group_by"] = read_sample_file(config.group_by, "group-by")
            groups = groups_by_id(ids, parse_groups(files["group_by"], config.group_by))
        require_groups(samples, ids, groups, config.group_by)
    if config.val_ids is not None:
        files["val_ids"] = read_sample_file(config.val_ids, "val-ids")
    train, held_out = _parts(samples, ids, config, files, groups, fold or 0)
    if groups is not None and len(held_out):
        require_every_class(train, held_out, targets, several=fold is not None)
    if config.limit is not None:
        train = first_by_hash(train, ids, config.limit)
    if config.class_weights not in (None, CLASSES_BALANCED):
        files["class_weights"] = read_sample_file(config.class_weights, "class-weights")
    if config.sampling == SHUFFLE:
        return Selection(train, held_out, None, files, groups)
    classes = targets.values if targets.kind == CLASS else np.zeros(len(targets.values), np.int64)
    if config.sampling == BALANCED:
        return Selection(train, held_out, balanced_weights(classes[train]), files, groups)
    if config.sampling == WEIGHT:  # kept by the run like a file: it is resumed when the target set may have changed
        files["sampling"] = written_weights(ids, _require_one_weight(weights))
    else:
        files["sampling"] = read_sample_file(config.sampling, "sampling")
    given = parse_weights(files["sampling"], config.sampling)
    return Selection(train, held_out, weights_by_id(train, ids, classes[train], given), files, groups)


def _require_one_weight(weights: TargetSet | None) -> list[float]:
    """Give the weights of a target set.

    Raises:
        UserError: if there is none, or it is not a number of at least 0 for each sample.
    """
    if weights is None:
        raise UserError(
            f"sampling is {WEIGHT!r}, and there is no target set of that name: extract from a table with such a "
            f"column, add it with losa-cache targets --name {WEIGHT}, or name a CSV file of weights."
        )
    if weights.kind != NUMBERS or len(weights.names) > 1 or (weights.values < 0).any():
        raise UserError(
            f"sampling is {WEIGHT!r}, but the target set of that name is not a column of numbers of at least 0: "
            "replace it, or name a CSV file of weights."
        )
    found: list[float] = weights.values[:, 0].tolist()
    return found


def _parts(
    samples: NDArray[np.int64],
    ids: Sequence[str],
    config: TrainConfig,
    files: Mapping[str, bytes],
    groups: TargetSet | None,
    fold: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split samples into a training part and a held-out part (arguments as of :func:`select`)."""
    if config.val_ids is None:
        if groups is None:
            return hold_out(samples, ids, config.val_fraction, fold)
        return hold_out_groups(samples, groups, config.val_fraction, fold)
    train, held_out = hold_out_ids(samples, ids, parse_ids(files["val_ids"], config.val_ids))
    if groups is not None:
        require_apart(train, held_out, groups)
    return train, held_out
