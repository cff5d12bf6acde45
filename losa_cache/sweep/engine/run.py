"""``sweep`` and ``resume_sweep``: one cache, many trials, one choice."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import Any

import torch

from losa_cache.cache.store import ActivationCache, latest_training_cache, open_cache
from losa_cache.errors import UserError
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.held_out_results import load_held_out_results
from losa_cache.sweep.engine.on_cluster import Cluster
from losa_cache.sweep.engine.record import COMPLETE, SweepRecord
from losa_cache.sweep.engine.results import choose, list_trials, load_record, record_of, save_record
from losa_cache.sweep.engine.space import Choices, Range, choices, parse
from losa_cache.sweep.engine.sweep import Report, Sweep, create_sweep, telling_where
from losa_cache.sweep.engine.trial import trial_path
from losa_cache.sweep.report.drawing import require_matplotlib
from losa_cache.sweep.report.report import write_report
from losa_cache.tasks import get_task
from losa_cache.train.config import TrainConfig
from losa_cache.train.placement import Placement
from losa_cache.train.run import next_run_path


@dataclass(frozen=True)
class SweepResult:
    """The result of a finished sweep.

    Attributes:
        folder: folder with the study, the report, the record, and a run directory for each trial.
        record: every trial, the choice, and its test.
    """

    folder: Path
    record: SweepRecord


def sweep(
    cache: str | Path | ActivationCache | None = None,
    *,
    space: dict[str, Any],
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    residency: str = "auto",
    scheduler: str | None = None,
    report: Report = lambda standing: None,
    storage: str | None = None,
    **options: Any,
) -> SweepResult:
    """Train many trials from one cache, choose the best by validation, test it once, and report.

    Args:
        cache: an opened cache, or its path; by default the most recent complete cache that is not of a held-out split.
        space: for each searched field of :class:`TrainConfig` a list of values, or text as on the command line:
            ``"1e-4..1e-2"``.
        config: every other option of a trial.
        out: the sweep's folder; by default ``runs/<data set>-sweep-<n>``.
        device: by default the GPU if there is one.
        residency: as in ``losa_cache.train``.
        scheduler: address of a dask.distributed scheduler, ``tcp://HOST:PORT``: its workers train, each with this
            device and residency. They see the caches and the sweep's folder under the same paths.
        report: is called with the progress after every epoch of trials that train together.
        storage: URL of the study's database; by default SQLite in the sweep's folder. A password in it is not stored.
        options: other fields of :class:`losa_cache.sweep.engine.config.SweepConfig`.

    Raises:
        UserError: for options, a cache or a folder that cannot work.
    """
    require_matplotlib()  # before the trials, not after them
    if cache is None:
        cache = latest_training_cache(all_tokens="side" in space or (config or TrainConfig()).reads_all_tokens)
    opened = cache if isinstance(cache, ActivationCache) else open_cache(cache)
    searched = {name: _searched(name, values) for name, values in space.items()}
    base = config or TrainConfig()
    if options.get("val_cache") is not None:  # nothing else is held out
        base = replace(base, val_fraction=0.0, val_ids=None)
    name = f"{opened.manifest.fields['dataset']['name']}-sweep".replace("/", "_")
    folder = Path(out) if out is not None else next_run_path(Path("runs"), name)
    path = str(opened.path.resolve())
    placement, cluster = _placed(device, residency, scheduler)
    create_sweep(folder, SweepConfig(cache=path, space=searched, base=base, storage=storage, **options))
    try:
        return continue_sweep(folder, placement, cluster=cluster, report=report, storage=storage)
    except UserError:
        if not (folder / "trials").exists():  # nothing was trained: the name is free for the mended command
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume_sweep(
    folder: str | Path,
    *,
    device: str | None = None,
    residency: str = "auto",
    scheduler: str | None = None,
    report: Report = lambda standing: None,
    storage: str | None = None,
    probe: Path | None = None,
) -> SweepResult:
    """Continue a sweep from where it was stopped or killed; arguments as in :func:`sweep`.

    Args:
        storage: the same URL again, if it has a password that the database's own means (``PGPASSWORD``) do not give.
        probe: file that stores the baseline probe, for sweeps that share it; by default one in the folder.

    Raises:
        UserError: if it is no sweep's folder, or its cache is gone.
    """
    placement, cluster = _placed(device, residency, scheduler)
    return continue_sweep(Path(folder), placement, cluster=cluster, report=report, storage=storage, probe=probe)


def _placed(device: str | None, residency: str, scheduler: str | None) -> tuple[Placement, Cluster | None]:
    """Say where this process computes, and what does in its place; then it reads from the disk what little it needs."""
    if scheduler is None:
        return Placement.choose(device, residency), None
    return Placement(torch.device("cpu"), "disk"), Cluster(scheduler, device, residency)


def continue_sweep(
    folder: Path,
    placement: Placement,
    *,
    cluster: Cluster | None = None,
    report: Report = lambda standing: None,
    storage: str | None = None,
    probe: Path | None = None,
) -> SweepResult:
    """Do as :func:`resume_sweep` does, on a device that was chosen already."""
    SweepConfig.load(folder)  # a folder that is no sweep is called that, not damaged
    if (record := load_record(folder)) is not None:
        write_report(record, folder)
        return SweepResult(folder, record)
    running = Sweep(folder, placement=placement, report=report, storage=storage, probe=probe, cluster=cluster)
    with running._owned():
        running.run()
        return SweepResult(folder, _concluded(running))


def _concluded(running: Sweep) -> SweepRecord:
    """Choose, test, record and report."""
    folder, progress = running.folder, running.progress
    trials = list_trials(folder, running.config, progress.trials, running.cache)
    samples = running.chosen()
    images = len(samples.held_out)
    complete = [trial.number for trial in trials if trial.state == COMPLETE]
    judged = load_held_out_results({number: trial_path(folder, number) for number in complete}, images)
    choice = choose(trials, running.config.base.learns.selection, images, judged)
    if choice is None:
        raise UserError(f"no trial of {str(folder)!r} finished: lower the learning rates, or leave out --pruner.")
    best = next(trial for trial in trials if trial.number == choice.chosen)
    test = running.trainers.test(best)
    record = record_of(
        running.config,
        running.cache,
        samples,
        trials,
        choice=choice,
        test=test,
        to_beat=running.to_beat,
        started=progress.started,
        finished=time(),
    )
    with telling_where(folder):
        save_record(folder, record, progress)
    write_report(record, folder)
    return record


def _searched(name: str, values: Any) -> Choices | Range:
    if isinstance(values, Choices | Range):
        return values
    return parse(name, values) if isinstance(values, str) else choices(name, list(values))


def summary(result: SweepResult) -> dict[str, Any]:
    """Summarise a sweep: the choice, its validation, its test, and the command that trains it alone."""
    record = result.record
    best = record.chosen_trial
    assert best is not None, "a finished sweep has chosen"
    task, test = get_task(record.task).choosing(record.chosen_by), record.test
    names = sorted((metric.name for metric in task.metrics), key=lambda name: name == "loss")
    tested = {} if test is None else {f"test_{name}": test[name] for name in names}
    return {
        "sweep": str(result.folder),
        "report": str(result.folder / "report.html"),
        "trials": len(record.trials),
        "chosen": best.number,
        **best.options,
        task.selection.held_out: best.value,
        "val_loss": best.loss,
        **tested,
        **_probed(record),
        **({} if record.choice is None else {"sure": record.choice["sure"]}),
        "command": best.command,
    }


def _probed(record: SweepRecord) -> dict[str, float]:
    metric = record.metric
    known = [] if record.to_beat is None else record.to_beat.judged_by(metric)
    return {f"probe_{line.reads.replace(' ', '_')}_{metric.held_out}": value for line, value in known}
