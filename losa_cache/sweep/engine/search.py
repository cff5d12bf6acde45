"""The choice of the next trial, and of trials to stop early: a pure function of the trials so far, by Optuna, in
memory.
"""

from collections.abc import Sequence
from typing import Any

from losa_cache.extras import extra
from losa_cache.sweep.engine.progress import LOST, Trial
from losa_cache.sweep.engine.record import COMPLETE, FAILED, PRUNED, RUNNING, key
from losa_cache.sweep.engine.space import Choices, Range, Space, grid

with extra("optuna", "losa-cache sweep needs Optuna", "sweep"):
    import optuna

__all__ = ["NAME", "STATES", "Search", "distributions", "optuna"]
NAME = "losa-cache"  # hyperband puts trials in brackets by a hash of it
LARGEST_SEED = 2**32
STATES = {
    COMPLETE: optuna.trial.TrialState.COMPLETE,
    PRUNED: optuna.trial.TrialState.PRUNED,
    FAILED: optuna.trial.TrialState.FAIL,
    LOST: optuna.trial.TrialState.FAIL,
    RUNNING: optuna.trial.TrialState.RUNNING,
}
"""Optuna's states by ours."""


class Search:
    """The decisions of one sweep. After the same trials it decides the same, whenever it was created.

    Args:
        space: the search space.
        sampler, pruner: names, as in ``SweepConfig``.
        trials: number of trials.
        epochs: largest number of epochs of a trial.
        seed: seed of the sampler.
        known: trials begun so far, by number.
        higher: whether higher values are better.
    """

    def __init__(
        self,
        space: Space,
        *,
        sampler: str,
        pruner: str,
        trials: int,
        epochs: int,
        seed: int,
        known: Sequence[Trial],
        higher: bool,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = distributions(space)
        self._sampler, self._seed = sampler, seed
        self._study = optuna.create_study(
            study_name=NAME, direction="maximize" if higher else "minimize", pruner=_pruner(pruner, epochs)
        )
        self._open: dict[int, optuna.trial.Trial] = {}
        counted = [trial for trial in known if trial.state != LOST]
        self._left = trials - len(counted)
        begun = {key(trial.options) for trial in counted}
        self._combinations = [own for own in grid(space) if key(own) not in begun] if sampler == "grid" else []
        for trial in known:
            self._tell(trial)

    def next(self) -> tuple[int, dict[str, Any]] | None:
        """Give the next trial's number and options; ``None`` after the last."""
        if self._left < 1:
            return None
        self._left -= 1
        if self._sampler == "grid":
            options = self._combinations.pop(0)
            return self._begin(options), options
        seed = (self._seed * 1_000_003 + len(self._study.get_trials(deepcopy=False))) % LARGEST_SEED
        self._study.sampler = (  # anew for each trial, so that the draw depends on its number and the trials so far
            optuna.samplers.TPESampler(seed=seed) if self._sampler == "tpe" else optuna.samplers.RandomSampler(seed)
        )
        trial = self._study.ask(self._distributions)
        self._open[trial.number] = trial
        return trial.number, dict(trial.params)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Take a trial's value after an epoch, and say whether it should stop."""
        trial = self._open[number]
        trial.report(value, epoch)
        return trial.should_prune()

    def end(self, number: int, state: str, values: Sequence[float]) -> None:
        """Take a trial's end."""
        value = values[-1] if state == COMPLETE else None
        self._study.tell(self._open.pop(number), value, state=None if state == COMPLETE else STATES[state])

    def _begin(self, options: dict[str, Any]) -> int:
        known = {name: self._distributions[name] for name in options}
        self._study.add_trial(optuna.trial.create_trial(state=STATES[RUNNING], params=options, distributions=known))
        last = self._study.get_trials(deepcopy=False)[-1]
        self._open[last.number] = optuna.trial.Trial(self._study, last._trial_id)  # Optuna names no other way
        return last.number

    def _tell(self, trial: Trial) -> None:
        """Report everything about a trial again."""
        number = self._begin(trial.options)
        for epoch, value in enumerate(trial.values, start=1):
            self.report(number, epoch, value)
        if trial.state != RUNNING:
            self.end(number, trial.state, trial.values)


def distributions(space: Space) -> "dict[str, optuna.distributions.BaseDistribution]":
    """Convert a space to Optuna's distributions."""
    return {name: _distribution(own) for name, own in space.items()}


def _distribution(own: Choices | Range) -> "optuna.distributions.BaseDistribution":
    if isinstance(own, Choices):
        return optuna.distributions.CategoricalDistribution(own.values)
    if own.integer:
        return optuna.distributions.IntDistribution(int(own.low), int(own.high), log=own.log)
    return optuna.distributions.FloatDistribution(own.low, own.high, log=own.log)


def _pruner(name: str, epochs: int) -> "optuna.pruners.BasePruner":
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 16), reduction_factor=4)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, epochs // 16), max_resource=epochs)
    if name == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=epochs // 5)
    return optuna.pruners.NopPruner()
