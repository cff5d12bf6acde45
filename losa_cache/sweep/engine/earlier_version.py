"""Sweeps that an earlier version began: only their study says what has been done."""

from pathlib import Path
from typing import Any

import torch

from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.progress import LOST, Group, Progress, Trial
from losa_cache.sweep.engine.record import COMPLETE, FAILED, PRUNED, RUNNING, key
from losa_cache.sweep.engine.search import NAME, optuna
from losa_cache.sweep.engine.storage import open_storage, telling
from losa_cache.sweep.engine.trial import load_group

STATES = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED, "RUNNING": RUNNING, "WAITING": LOST}


def earlier_progress(folder: Path, config: SweepConfig, url: str | None) -> Progress:
    """Read the study and the checkpoints of a folder.

    Finished trials count, and those with a checkpoint. The others are lost, and their options are drawn again. If a
    combination of a grid was trained twice, it counts once.

    Raises:
        UserError: if the database or a checkpoint cannot be read.
    """
    progress = Progress(config=None)
    storage = open_storage(folder, url)
    with telling(url):
        study = next((own._study_id for own in storage.get_all_studies() if own.study_name == NAME), None)
        found = [] if study is None else storage.get_all_trials(study)
    storage.engine.dispose()
    saved: dict[str, dict[str, Any]] = {
        path.name: load_group(path, torch.device("cpu")) for path in sorted((folder / "cohorts").glob("*.pt"))
    }
    epochs = {number: state["epoch"] for state in saved.values() for number in state["numbers"]}
    for own in found:
        progress.trials.append(_trial(own, config, epochs.get(own.number)))
    if config.sampler == "grid":
        _lose_twins(progress.trials)
    for file, state in saved.items():
        left = [n for n in state["numbers"] if n < len(found) and progress.trials[n].state == RUNNING]
        if left:
            progress.groups.append(Group(file, left))
    progress.turn = len(progress.groups)
    return progress


def _trial(own: "optuna.trial.FrozenTrial", config: SweepConfig, epoch: int | None) -> Trial:
    options = {name: own.params[name] for name in config.space if name in own.params}
    state = LOST if LOST in own.user_attrs or len(options) < len(config.space) else STATES[own.state.name]
    if state == RUNNING and epoch is None:
        state = LOST
    values = [own.intermediate_values[step] for step in sorted(own.intermediate_values)]
    return Trial(options, state, values[:epoch] if state == RUNNING else [] if state == LOST else values)


def _lose_twins(trials: list[Trial]) -> None:
    """Keep, among trials with the same options, the one that is furthest."""
    best: dict[str, Trial] = {}
    for trial in trials:
        if trial.state == LOST:
            continue
        other = best.setdefault(key(trial.options), trial)
        if other is not trial:
            loser, winner = (trial, other) if other.state != RUNNING or trial.state == RUNNING else (other, trial)
            loser.state, best[key(trial.options)] = LOST, winner
