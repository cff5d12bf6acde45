"""Which trial comes next, and which stops early: a study in Optuna's own storage, so that its dashboard shows it."""

from collections.abc import Sequence
from typing import Any

from losa_cache.errors import UserError
from losa_cache.extras import extra
from losa_cache.sweep.space import Choices, Range, Space, grid

with extra("optuna", "losa-cache sweep needs Optuna", "sweep"):
    import optuna

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "halving", "hyperband", "median")
NAME = "losa-cache"
LARGEST_SEED = 2**32


class Search:
    """A study of one sweep. Made anew or, where the storage has it, gone on with.

    Args:
        storage: URL of a database, as SQLAlchemy takes it.
        space: what is searched.
        sampler: one of :data:`SAMPLERS`.
        pruner: one of :data:`PRUNERS`.
        trials: how many; of a grid all.
        epochs: of a trial at most.
        seed: of the sampler.

    Raises:
        UserError: for names it does not know, and a storage that does not open.
    """

    def __init__(
        self, storage: str, space: Space, *, sampler: str, pruner: str, trials: int | None, epochs: int, seed: int
    ) -> None:
        for name, value, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
            if value not in known:
                raise UserError(f"unknown {name} {value!r}: choose one of {', '.join(known)}.")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._seed, self._sampler = seed, sampler
        self._space = {name: _distribution(own) for name, own in space.items()}
        try:
            self.study = optuna.create_study(
                storage=storage,
                study_name=NAME,
                direction="maximize",
                pruner=_pruner(pruner, epochs),
                load_if_exists=True,
            )
        except Exception as error:  # of SQLAlchemy and its drivers
            raise UserError(f"storage {storage!r} cannot be opened ({str(error).splitlines()[0]}).") from error
        if sampler == "grid":
            listed = grid(space)
            for options in listed if not self.study.get_trials(deepcopy=False) else []:
                self.study.enqueue_trial(options)
            self.trials = len(listed)
        else:
            if trials is None:
                raise UserError(f"--sampler {sampler} has no end of its own: say how many with --trials.")
            self.trials = trials
        self._open: dict[int, optuna.Trial] = {}

    def next(self) -> tuple[int, dict[str, Any]] | None:
        """Give the next trial's number and options; ``None`` after the last."""
        states = (optuna.trial.TrialState.WAITING, optuna.trial.TrialState.FAIL)
        started = [t for t in self.study.get_trials(deepcopy=False) if t.state not in states]
        if len(started) + self._failed() >= self.trials:
            return None
        seed = (self._seed * 1_000_003 + len(self.study.get_trials(deepcopy=False))) % LARGEST_SEED
        self.study.sampler = (  # anew for each trial: so a sweep that was killed draws what it would have drawn
            optuna.samplers.TPESampler(seed=seed) if self._sampler == "tpe" else optuna.samplers.RandomSampler(seed)
        )
        trial = self.study.ask(self._space)
        self._open[trial.number] = trial
        return trial.number, dict(trial.params)

    def count(self) -> int:
        """Count the trials that are over, but for those that were lost."""
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return len(self.study.get_trials(deepcopy=False, states=states)) + self._failed()

    def listed(self) -> list[tuple[int, str, dict[str, Any]]]:
        """Give number, state (``complete``, ``pruned``, ``failed``, ``running``) and options of every trial begun."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
        return [
            (trial.number, names[trial.state.name], dict(trial.params))
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.name in names and "lost" not in trial.user_attrs
        ]

    def running(self) -> dict[int, dict[str, Any]]:
        """Take over the trials that a killed sweep was at: options by number."""
        found = {}
        for frozen in self._all(optuna.trial.TrialState.RUNNING):
            self._open[frozen.number] = optuna.trial.Trial(self.study, frozen._trial_id)  # Optuna names no other way
            found[frozen.number] = dict(frozen.params)
        return found

    def lose(self, number: int) -> None:
        """Give a trial up of which nothing is left, and queue its options again."""
        trial = self._open.pop(number)
        trial.set_user_attr("lost", True)
        self.study.tell(number, state=optuna.trial.TrialState.FAIL)
        self.study.enqueue_trial(trial.params)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Take a trial's value after an epoch; whether it should stop."""
        trial = self._open[number]
        trial.report(value, epoch)
        return trial.should_prune()

    def complete(self, number: int, value: float) -> None:
        """Take a trial's last value."""
        self.study.tell(self._open.pop(number), value)

    def prune(self, number: int) -> None:
        """Note that a trial was stopped early."""
        self.study.tell(self._open.pop(number), state=optuna.trial.TrialState.PRUNED)

    def fail(self, number: int) -> None:
        """Note that a trial's loss stopped being a number."""
        self.study.tell(self._open.pop(number), state=optuna.trial.TrialState.FAIL)

    def _failed(self) -> int:
        return sum("lost" not in trial.user_attrs for trial in self._all(optuna.trial.TrialState.FAIL))

    def _all(self, state: "optuna.trial.TrialState") -> Sequence["optuna.trial.FrozenTrial"]:
        return self.study.get_trials(deepcopy=False, states=(state,))


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
