"""The training data of a sweep's trials: a source for each choice of block outputs, and one split for all trials."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from losa_cache.cache.identity import differences
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.errors import UserError
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.probes import lines_to_beat
from losa_cache.sweep.engine.record import ToBeat
from losa_cache.tasks.base import LOGISTIC
from losa_cache.train.compatible import SIDES, apart, missing_targets
from losa_cache.train.config import SHUFFLE, WEIGHT, TrainConfig
from losa_cache.train.learned import target_set_of, targets_of
from losa_cache.train.placement import Placement
from losa_cache.train.selection import Selection
from losa_cache.train.training_data import TrainingData, from_cache, selected

TARGETS = {
    "targets_of_cache": "target set",
    "targets_of_val_cache": "target set of the val cache",
    "groups": "target set of groups",
    "weights": "target set of weights",
}
"""What :meth:`SweepData.identities` gives beside the caches, in words."""


class SweepData:
    """Training data that are opened on first use and closed together.

    Args:
        cache: to train from.
        config: of the sweep.
        placement: where trials compute, and where what they read is kept.
        trials: each of which reads everything once an epoch.

    Raises:
        UserError: for a validation cache that does not fit, a test cache without what is learned, or if nothing is held
            out.
    """

    def __init__(self, cache: ActivationCache, config: SweepConfig, placement: Placement, *, trials: int) -> None:
        self._cache, self._placement = cache, placement
        self._base = config.base
        self._passes = trials * config.base.epochs
        self._trials = min(trials, config.concurrent or trials)
        self._val = None if config.val_cache is None else open_cache(config.val_cache)
        if self._val is not None:
            ours, theirs = ({"tokens": own.manifest.holds} for own in (cache, self._val))
            if wrong := apart(cache.manifest.fields, self._val.manifest.fields) + differences(ours, theirs, SIDES):
                raise UserError(f"val-cache {str(self._val.path)!r} does not fit the cache: {'; '.join(wrong)}.")
            targets_of(self._val, self._base, self._names)  # of other classes it is refused here
            self._require_groups_apart(self._val)
        elif not config.base.val_fraction and config.base.val_ids is None:
            raise UserError("nothing is held out to choose a trial by: set --val-fraction, --val-ids or --val-cache.")
        if config.test_cache is not None:  # it is read when everything is trained
            learned = {"task": config.base.task, "targets": {"name": target_set_of(cache, config.base)}}
            if lacking := missing_targets(learned, open_cache(config.test_cache)):
                raise UserError(f"test-cache {config.test_cache!r} tests no trial: {lacking}.")
        self._open: dict[str, TrainingData] = {}

    def _require_groups_apart(self, val: ActivationCache) -> None:
        """Refuse groups of which samples are in both caches: those of the validation cache would not be new."""
        if self._base.group_by is None:
            return
        grouped = replace(_whole(self._base), group_by=self._base.group_by)
        ours, theirs = (_groups(selected(cache, grouped)) for cache in (self._cache, val))
        if shared := sorted(ours & theirs):
            raise UserError(
                f"the cache and the val-cache {str(val.path)!r} both have samples of {len(shared)} groups, the first "
                f"{shared[0]!r}: validate on a cache of other groups, or leave out --group-by."
            )

    def identities(self) -> dict[str, str]:
        """Give the identity of each cache, by option, and the fingerprints of the target sets that are learned."""
        caches = {"cache": self._cache} | ({} if self._val is None else {"val_cache": self._val})
        found = {option: cache.manifest.identity for option, cache in caches.items()}
        for option, cache in caches.items():
            found[f"targets_of_{option}"] = targets_of(cache, self._base).fingerprint
        named = {"groups": self._base.group_by, "weights": WEIGHT if self._base.sampling == WEIGHT else None}
        for what, name in named.items():
            if name is not None and name in self._cache.target_kinds:
                found[what] = self._cache.target_set(name).fingerprint
        return found

    def of(self, config: TrainConfig) -> TrainingData:
        """Give the training data of a trial."""
        seed = config.seed if self._cache.manifest.views > 1 else 0
        key = repr((config.side, config.layers, config.start, config.reads_all, seed))
        if key not in self._open:
            self._open[key] = self._opened(config)
        return self._open[key]

    def chosen(self) -> Selection:
        """Give the training samples and the held-out samples of the trials."""
        own = selected(self._cache, self._base)
        return own if self._val is None else replace(own, held_out=selected(self._val, _whole(self._base)).train)

    @property
    def holds_out_its_own(self) -> bool:
        """Whether trials are validated on samples of the training cache."""
        return self._val is None

    def to_beat(self, path: Path) -> ToBeat:
        """Give the probe that trials have to beat, on the same samples; it is kept in a file (``path``)."""
        task, chosen = self._base.learns, self.chosen()
        if task.probes != LOGISTIC:
            return ToBeat([], f"There is no probe to beat: none learns the task {task.name!r}.")
        judges = self._cache if self._val is None else self._val
        parts, device = ((self._cache, chosen.train), (judges, chosen.held_out)), self._placement.device
        groups = None if chosen.groups is None else chosen.groups.values[chosen.train]
        return lines_to_beat(path, *parts, device, config=self._base, groups=groups)

    def require_choosable(self) -> None:
        """Refuse a held-out part on which no trial can be chosen.

        Raises:
            UserError: for too few samples, or samples of one class.
        """
        cache = self._cache if self._val is None else self._val
        targets = targets_of(cache, self._base, self._names)
        held_out = targets.values[self.chosen().held_out]
        remedy = "hold out more with --val-fraction, --val-ids or --val-cache"
        self._base.learns.require_choosable(held_out, targets.names, remedy)

    def close(self) -> None:
        """Close all sources."""
        for data in self._open.values():
            data.close()
        self._open.clear()

    @property
    def _names(self) -> Sequence[str]:
        """The names of what trials learn, by which a validation cache is matched."""
        return targets_of(self._cache, self._base).names

    def _opened(self, config: TrainConfig) -> TrainingData:
        options: dict[str, Any] = {"passes": self._passes, "trials": self._trials}
        own = from_cache(self._cache, config, self._placement, **options)
        if self._val is None:
            return own
        other = from_cache(self._val, _whole(config), self._placement, names=own.targets.names, **options)
        return replace(own, chosen=replace(own.chosen, held_out=other.chosen.train), plain=other.source)


def _groups(chosen: Selection) -> set[str]:
    """Name the groups of all samples that are trained on."""
    assert chosen.groups is not None
    return {chosen.groups.names[number] for number in np.unique(chosen.groups.values[chosen.train])}


def _whole(config: TrainConfig) -> TrainConfig:
    """Take all samples of a validation cache."""
    return replace(config, sampling=SHUFFLE, limit=None, val_fraction=0.0, val_ids=None, group_by=None)
