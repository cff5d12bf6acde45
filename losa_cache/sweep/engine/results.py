"""The choice among trained trials, its single test, and the record of everything."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.errors import UserError
from losa_cache.files import write_whole
from losa_cache.machine.device import machine
from losa_cache.outside import UnreadableError, parse_json, read_file
from losa_cache.sidenet.adapter_folder import has_adapter
from losa_cache.sweep.engine.choice import Choice, Setting
from losa_cache.sweep.engine.choice import choose as decide
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.held_out_results import HeldOutResults
from losa_cache.sweep.engine.progress import LOST, Progress, Trial, load_progress
from losa_cache.sweep.engine.record import Group, SweepRecord, ToBeat, TrialRecord, seed_groups
from losa_cache.sweep.engine.trial import describe, require_epochs, trial_path
from losa_cache.tasks import Metric
from losa_cache.text import shown
from losa_cache.train.costs import adapter_macs
from losa_cache.train.evaluate_run import evaluate_run
from losa_cache.train.held_out_caches import known_test_cache
from losa_cache.train.learned import targets_of
from losa_cache.train.placement import Placement
from losa_cache.train.saved import new_adapter
from losa_cache.train.selection import Selection
from losa_cache.train.train import resume, train
from losa_cache.train.training_data import frozen_tail, used_points

RECORD, RETRAINED = "record.json", "retrained"


def choose(
    trials: Sequence[TrialRecord],
    metric: Metric,
    images: int | None = None,
    judged: Mapping[int, HeldOutResults] | None = None,
) -> Choice | None:
    """Choose options by :mod:`losa_cache.sweep.engine.choice`, and among their trials the lowest seed, not the best
    one.

    Args:
        trials: of the sweep.
        metric: that their values are of.
        images: held out; ``None``: not known.
        judged: what each of these came to, by trial.

    Returns:
        the choice, in which options are named by the trial of their lowest seed; ``None`` without a complete trial.
    """
    found = {} if judged is None else judged
    return decide([_setting(group, found, metric) for group in seed_groups(trials)], images, metric)


def _setting(group: Group, judged: Mapping[int, HeldOutResults], metric: Metric) -> Setting:
    """Join the trials of all seeds."""
    trials = group.by_seed
    each = [judged[trial.number] for trial in trials if trial.number in judged]
    losses = [float(results.losses.mean(dtype=np.float64)) for results in each]
    if not (whole := len(each) == len(trials)):  # as an earlier version left them
        losses = [trial.loss for trial in trials if trial.loss is not None]
    name = min(group.trials, key=lambda trial: (trial.options.get("seed", 0), trial.number)).number
    return Setting(
        name,
        group.mean,
        math.fsum(losses) / len(losses) if len(losses) == len(trials) else None,
        group.parameters,
        np.mean([results.terms[0] for results in each], axis=0) if whole and metric.is_mean else None,
        np.mean([results.losses for results in each], axis=0) if whole else None,
    )


def list_trials(
    folder: Path, config: SweepConfig, trials: Sequence[Trial], cache: ActivationCache
) -> list[TrialRecord]:
    """Read every trial's end and curve.

    Raises:
        UserError: for a trial whose directory lacks what it trained, or was altered.
    """
    records, tail = [], frozen_tail(cache)
    names, counted = targets_of(cache, config.base).names, dict[Any, int]()
    for number, trial in enumerate(trials):
        if trial.state == LOST:
            continue
        options = replace(config.base, **trial.options)
        adapter = new_adapter(cache.manifest, tail, options, names)
        curve = require_epochs(folder, number, trial.epochs, trial.files)
        parameters = adapter.parameter_counts()["side"]
        points = used_points(cache.manifest.fields["tap"], cache.manifest.layers, options, holds=cache.manifest.holds)
        shape = options.side, len(points), *(own.shape for own in adapter.parameters())
        if shape not in counted:  # trials differ in little else than rates and seeds
            counted[shape] = adapter_macs(adapter, len(points))
        command = describe(options, config.cache)
        kept = (number, trial.state, trial.options, parameters, curve, command)
        records.append(TrialRecord(*kept, options.task, options.metric, counted[shape]))
    return records


def tested_on(folder: Path, config: SweepConfig, trial: TrialRecord) -> ActivationCache | None:
    """Give the cache that the chosen trial is tested on; ``None``: there is none."""
    if config.test_cache:
        return open_cache(config.test_cache)
    return known_test_cache(trial_path(folder, trial.number), but=config.val_cache)


def evaluate_chosen(
    folder: Path, config: SweepConfig, trial: TrialRecord, placement: Placement, cache: ActivationCache | None
) -> dict[str, Any] | None:
    """Train the chosen trial again if that is requested, and test it, once; ``None`` without a test cache."""
    run = trial_path(folder, trial.number)
    if config.retrain:
        run = _retrained(folder, config, trial, placement)
    if cache is None:
        return None
    return evaluate_run(run, cache=cache.path, device=str(placement.device)) | {"retrained": config.retrain}


def _retrained(folder: Path, config: SweepConfig, trial: TrialRecord, placement: Placement) -> Path:
    path = folder / RETRAINED
    where: dict[str, Any] = {"device": str(placement.device), "residency": placement.residency}
    if not has_adapter(path):
        options = replace(config.base, **trial.options)
        whole = replace(options, val_fraction=0.0, val_ids=None)
        if (path / "checkpoint.pt").exists():
            resume(path, **where)
        else:
            shutil.rmtree(path, ignore_errors=True)  # of a kill before its first epoch ended
            train(config.cache, config=whole, out=path, **where)
    return path


def record_of(
    config: SweepConfig,
    cache: ActivationCache,
    samples: Selection,
    trials: list[TrialRecord],
    *,
    choice: Choice,
    test: dict[str, Any] | None,
    to_beat: ToBeat,
    started: float,
    finished: float,
) -> SweepRecord:
    """Build the record."""
    manifest, base = cache.manifest, config.base
    metric = base.learns.selection
    held = len(samples.held_out)
    if config.val_cache is not None:
        validated = f"all {held} samples of {config.val_cache}"
    elif base.val_ids is not None:
        validated = f"{held} samples of the training cache, held out by their ids (--val-ids {base.val_ids})"
    else:
        whose = "ids" if base.group_by is None else "groups"
        by = f"a hash of their {whose} (--val-fraction {base.val_fraction})"
        validated = f"{held} samples of the training cache, held out by {by}"
    protocol = (
        f"Trials were trained on {len(samples.train)} samples and judged by their {metric.title} after the last epoch "
        f"on {validated}. The options with the best mean over seeds were chosen, and of them the lowest seed; of "
        "options within one standard error of the best, those with the lowest held-out loss."
    )
    if test is None:
        protocol += " No test set was read."
    else:
        again = " was trained again on training and validation samples, and" if test["retrained"] else ""
        protocol += f" The chosen trial alone{again} was tested, once, on {test['samples']} samples ({test['split']})."
    dataset = manifest.fields["dataset"]["name"]
    return SweepRecord(
        title=f"{dataset}: {manifest.fields['backbone']['name']}",
        cache=config.cache,
        identity=manifest.identity,
        dataset=dataset,
        training_samples=len(samples.train),
        validation_samples=held,
        validated_on=validated,
        protocol=protocol,
        machine=machine(),
        started=started,
        finished=finished,
        trials=trials,
        chosen=choice.chosen,
        test=test,
        choice=choice.to_json(metric),
        to_beat=to_beat,
        task=base.task,
        chosen_by=base.metric,
    )


def save_record(folder: Path, record: SweepRecord, progress: Progress) -> None:
    """Write the record to a sweep's folder: from then on the sweep is over."""
    content = json.dumps(record.to_json(), indent=2).encode()
    write_whole(folder / RECORD, content)
    progress.record = google_crc32c.value(content)
    progress.save(folder)


def load_record(folder: Path) -> SweepRecord | None:
    """Read it back, if the sweep is over.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / RECORD
    progress = load_progress(folder, {})
    if not path.exists() or (progress is not None and progress.record is None):
        return None
    try:
        content = read_file(path)
        if progress is not None and google_crc32c.value(content) != progress.record:
            raise UnreadableError("it was altered")
        return SweepRecord.from_json(parse_json(content, dict[str, Any]))
    except (UnreadableError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read: {shown(str(error))}. Delete it, and --resume writes it again."
        ) from error
