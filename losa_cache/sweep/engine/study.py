"""A copy of a sweep's trials in Optuna's storage, for its dashboards. The copy decides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from losa_cache.errors import UserError
from losa_cache.sweep.engine.progress import LOST, Progress, Trial
from losa_cache.sweep.engine.record import COMPLETE, PRUNED, RUNNING
from losa_cache.sweep.engine.search import NAME, STATES, distributions, optuna
from losa_cache.sweep.engine.space import Space
from losa_cache.sweep.engine.storage import open_storage, telling

OWNER = "sweep"  # attribute of a study: the name that no other sweep has


@dataclass
class _Shown:
    """What the storage has of a trial."""

    id: int
    state: str
    epochs: int


class StudyCopy:
    """A study in Optuna's storage that shows a sweep's trials. It is brought up to date, whatever a kill left of it.

    Args:
        folder: of the sweep.
        url: of the database, with its password; ``None``: SQLite in the folder.
        space: what is searched.
        progress: of the sweep.
        higher: whether higher values are better.

    Raises:
        UserError: if the storage cannot be used, or shows what has not happened.
    """

    def __init__(self, folder: Path, url: str | None, space: Space, progress: Progress, *, higher: bool) -> None:
        self._url, self._distributions, self._higher = url, distributions(space), higher
        self._storage = open_storage(folder, url)
        with telling(url):
            self._study = self._found(folder, progress)
            there = self._storage.get_all_trials(self._study, deepcopy=False)
        self._shown = [_Shown(own._trial_id, own.state.name, len(own.intermediate_values)) for own in there]
        if not _fits(there, progress.trials):
            raise UserError(
                f"the study {self._storage.get_study_name_from_id(self._study)!r} shows trials that the sweep "
                f"{str(folder)!r} has not: it was changed, or the folder is an older copy. Delete the study, and "
                "--resume writes it again."
            )
        self.update(progress.trials)

    def update(self, trials: Sequence[Trial]) -> None:
        """Show trials as they are now.

        Raises:
            UserError: if the storage cannot be written.
        """
        with telling(self._url):
            for number, trial in enumerate(trials):
                if number == len(self._shown):
                    self._add(trial)
                else:
                    self._bring_up(self._shown[number], trial)

    def close(self) -> None:
        """Close the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _found(self, folder: Path, progress: Progress) -> int:
        """Find the sweep's study, or make it."""
        studies = self._storage.get_all_studies()
        for candidate in studies:
            if candidate.user_attrs.get(OWNER) == progress.sweep:
                return candidate._study_id
        taken = {candidate.study_name: candidate for candidate in studies}
        name = NAME
        if (candidate := taken.get(NAME)) is not None:
            there = self._storage.get_all_trials(candidate._study_id, deepcopy=False)
            if OWNER not in candidate.user_attrs and _fits(there, progress.trials):  # of an earlier version, or a kill
                self._storage.set_study_user_attr(candidate._study_id, OWNER, progress.sweep)
                return candidate._study_id
            name = f"{NAME}/{folder.name}-{progress.sweep[:8]}"
        if (candidate := taken.get(name)) is not None:  # of a kill before it had its owner
            study: int = candidate._study_id
        else:
            directions = optuna.study.StudyDirection
            direction = directions.MAXIMIZE if self._higher else directions.MINIMIZE
            study = self._storage.create_new_study([direction], name)
        self._storage.set_study_user_attr(study, OWNER, progress.sweep)
        return study

    def _add(self, trial: Trial) -> None:
        template = optuna.trial.create_trial(
            state=STATES[trial.state],
            values=_values(trial),
            params=trial.options,
            distributions={name: self._distributions[name] for name in trial.options},
            intermediate_values=dict(enumerate(trial.values, start=1)),
            user_attrs={LOST: True} if trial.state == LOST else {},
        )
        made = self._storage.create_new_trial(self._study, template)
        self._shown.append(_Shown(made, STATES[trial.state].name, len(trial.values)))

    def _bring_up(self, shown: _Shown, trial: Trial) -> None:
        if shown.state not in ("RUNNING", "WAITING"):
            return
        for epoch in range(shown.epochs + 1, len(trial.values) + 1):
            self._storage.set_trial_intermediate_value(shown.id, epoch, trial.values[epoch - 1])
            shown.epochs = epoch
        if trial.state == RUNNING:
            return
        if trial.state == LOST:
            self._storage.set_trial_user_attr(shown.id, LOST, True)
        self._storage.set_trial_state_values(shown.id, STATES[trial.state], _values(trial))
        shown.state = STATES[trial.state].name


def _values(trial: Trial) -> list[float] | None:
    """Optuna's value of a trial that is over: its last."""
    return trial.values[-1:] or None if trial.state in (COMPLETE, PRUNED) else None


def _fits(there: "Sequence[optuna.trial.FrozenTrial]", trials: Sequence[Trial]) -> bool:
    """Whether a study shows no more than has happened."""
    if len(there) > len(trials):
        return False
    for shown, trial in zip(there, trials, strict=False):
        if trial.state == LOST:
            continue
        if shown.params != trial.options or (shown.state.is_finished() and shown.state != STATES[trial.state]):
            return False
    return True
