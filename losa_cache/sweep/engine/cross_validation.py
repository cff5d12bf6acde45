"""Cross-validation of settings: each sample is evaluated by the trials that held it out."""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import numpy as np

from losa_cache.sweep.engine.choice import Setting
from losa_cache.sweep.engine.cohort import Cohort
from losa_cache.sweep.engine.concurrency import most_trials
from losa_cache.sweep.engine.folds import HeldOut, parts_of
from losa_cache.sweep.engine.grouping import together
from losa_cache.sweep.engine.held_out_results import HeldOutResults, ResultCollector
from losa_cache.train.config import TrainConfig
from losa_cache.train.diverged import DivergedError
from losa_cache.train.evaluate import evaluate_each
from losa_cache.train.loop import Progress, make_optimizer, make_step, train_epoch
from losa_cache.train.saved import new_adapter
from losa_cache.train.selection import Selection
from losa_cache.train.training_data import TrainingData

MOST_TRIALS = 64  # in one pass


def cross_validate(
    data: TrainingData,
    settings: Sequence[TrainConfig],
    splits: Sequence[Selection],
    progress: Progress,
) -> list[Setting]:
    """Train every setting on each split, and give its result on all held-out samples.

    Args:
        data: all samples, including the held-out ones.
        settings: options of each setting; all read the same block outputs.
        splits: the splits of the samples.
        progress: is called with the finished share.

    Returns:
        the settings, named by their positions. A value that is no number says that the setting failed.
    """
    return _Trials(data, settings, splits, progress).run()


class _Trials:
    """The trials of all settings and splits; arguments as in :func:`cross_validate`."""

    def __init__(
        self,
        data: TrainingData,
        settings: Sequence[TrainConfig],
        splits: Sequence[Selection],
        progress: Progress,
    ) -> None:
        self._data, self._settings, self._splits = data, settings, splits
        self._progress = progress
        self._trials = [(place, fold) for fold in range(len(splits)) for place in range(len(settings))]
        self._epochs_done, self._epochs = 0, sum(config.epochs for config in settings) * len(splits)

    def run(self) -> list[Setting]:
        """Train all trials, and give the result of each setting on all held-out samples."""
        first, image = self._settings[0], len(self._data.manifest.tokens["grid"]) == 2
        if not first.spec.stacks or not image:
            judged = [self._alone(*trial) for trial in self._trials]
        elif not first.spec.mixes_samples and len(self._splits) > 1:
            judged = self._stacked(self._trials, shared=True)
        else:
            count = len(self._settings)
            by_split = [self._trials[at : at + count] for at in range(0, len(self._trials), count)]
            judged = [own for trials in by_split for own in self._stacked(trials, shared=False)]
        return [self._setting(place, judged[place :: len(self._settings)]) for place in range(len(self._settings))]

    def _stacked(self, trials: Sequence[tuple[int, int]], *, shared: bool) -> list[HeldOutResults]:
        """Train as many trials together as fit in memory, of several splits or of one."""
        data, folds = self._data, [fold for _, fold in trials]
        held_out = [split.held_out for split in self._splits]
        chosen = self._splits[folds[0]]
        if shared:
            chosen = replace(data.chosen, held_out=np.sort(np.concatenate(held_out)))
        data = replace(data, chosen=chosen)
        configs = [self._settings[place] for place, _ in trials]
        largest = max(configs, key=lambda config: (config.chosen_rank, config.batch_size))
        most = min(MOST_TRIALS, most_trials(largest, data))
        parts = parts_of(held_out, 1 + max(int(chosen.train.max()), int(chosen.held_out.max())))
        found: dict[int, HeldOutResults] = {}
        for places in together(configs, most):
            held = HeldOut(parts, [folds[place] for place in places]) if shared else None
            own = [configs[place] for place in places]
            adapters = [
                new_adapter(data.manifest, data.tail, config, data.targets.names).to(data.device) for config in own
            ]
            cohort = Cohort(places, own, adapters, data, held)
            while not cohort.done:
                cohort.run_epoch(judge=cohort.epoch == own[0].epochs - 1)
                self._advance(len(own))
            found |= cohort.judged
        return [found[at] for at in range(len(trials))]

    def _alone(self, place: int, fold: int) -> HeldOutResults:
        """Train one after the other the trials that cannot be stacked."""
        config, chosen, data = self._settings[place], self._splits[fold], self._data
        autocast = data.autocast
        adapter = new_adapter(data.manifest, data.tail, config, data.targets.names).to(data.device)
        optimizer = make_optimizer(adapter, config)
        step = make_step(adapter, optimizer, config, autocast=autocast, task=data.task)
        for epoch in range(config.epochs):
            try:
                train_epoch(
                    adapter,
                    optimizer,
                    data.source,
                    chosen.train,
                    config,
                    epoch=epoch,
                    autocast=autocast,
                    weights=chosen.weights,
                    step=step,
                )
            except DivergedError:
                self._advance(config.epochs - epoch)
                shape = chosen.held_out.shape
                return HeldOutResults(np.zeros((0, *shape), np.float32), np.full(shape, np.nan, np.float32))
            self._advance(1)
        adapter.eval()
        collector = ResultCollector(data.task)
        evaluate_each(
            lambda blocks: adapter(blocks)[None],
            data.plain,
            chosen.held_out,
            task=data.task,
            batch_size=config.batch_size,
            autocast=autocast,
            clips=data.manifest.clips,
            keep=collector,
        )
        return collector.results()[0]

    def _advance(self, trials: int) -> None:
        self._epochs_done += trials
        self._progress(self._epochs_done / self._epochs)

    def _setting(self, place: int, judged: Sequence[HeldOutResults]) -> Setting:
        """Join the splits of a setting; a value that is no number says that it failed."""
        adapter = new_adapter(self._data.manifest, self._data.tail, self._settings[place], self._data.targets.names)
        parameters = adapter.parameter_counts()["side"]
        metric = self._data.task.selection
        losses = np.concatenate([own.losses for own in judged])
        loss = float(losses.mean(dtype=np.float64))
        if not isfinite(loss):
            return Setting(place, float("nan"), None, parameters)
        terms = np.concatenate([own.terms for own in judged], axis=1)
        value = metric.value(terms.mean(axis=1, dtype=np.float64).tolist())
        return Setting(place, value, loss, parameters, terms[0] if metric.is_mean else None, losses)
