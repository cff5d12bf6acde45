"""``vtab``: all tasks of VTAB-1k from their caches, selected on val200, trained on 1,000 images, tested once."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from losa_cache.data.sources.vtab import BOTH, TEST, TRAIN, VAL
from losa_cache.errors import UserError
from losa_cache.files import reason, write_json, write_whole
from losa_cache.folders import settled_path
from losa_cache.machine.device import machine
from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.probes import FILE as PROBE
from losa_cache.sweep.engine.probes import lines_to_beat
from losa_cache.sweep.engine.record import SweepRecord, ToBeat
from losa_cache.sweep.engine.results import load_record
from losa_cache.sweep.engine.run import continue_sweep
from losa_cache.sweep.engine.space import Choices, Space, grid
from losa_cache.sweep.engine.sweep import Report as SweepReport
from losa_cache.sweep.engine.sweep import Standing, create_sweep
from losa_cache.sweep.vtab.record import Result, VtabRecord, unlike_paper
from losa_cache.sweep.vtab.table import markdown
from losa_cache.sweep.vtab.tasks import ALIKE, TaskCaches, find_tasks, require_alike
from losa_cache.tasks import CLASSIFICATION
from losa_cache.train.config import PAPER, TrainConfig, of_recipe
from losa_cache.train.placement import Placement
from losa_cache.train.training_data import selected

RANKS = (4, 8, 16)
GRID: Space = {"lr": Choices((1e-3, 3e-3, 1e-2)), "weight_decay": Choices((1e-4, 1e-1))}
"""*Not from the paper.* The peers' recipe, which ``TrainConfig`` defaults to, is its first point. Larger rates, since a
side network starts as a linear probe, which wants 1e-2; a decay that is felt within 1,300 steps (at a rate of 1e-2 one
of 0.1 halves a weight, one of 1e-4 takes less than a thousandth). No more than six: one standard error on 200 images is
2 to 3 points, so a large grid chooses noise. All six train in one pass over the cache."""
RECORD, TABLE = "vtab.json", "vtab.md"

Report = Callable[[str, int, Standing], None]


def vtab(
    folder: str | Path,
    *,
    ranks: Sequence[int] = RANKS,
    out: str | Path = "runs/vtab",
    space: Space | None = None,
    config: TrainConfig | None = None,
    device: str | None = None,
    residency: str = "auto",
    report: Report = lambda task, rank, standing: None,
) -> VtabRecord:
    """Run the protocol on every task of which a folder holds the training and the test cache.

    For each task and rank a grid is trained on train800 and validated on val200. The best options are trained again on
    all training images, and that single adapter is tested. Test labels decide nothing. A second call continues:
    finished sweeps are read.

    Args:
        folder: caches are searched anywhere below it.
        ranks: ranks of the side network.
        out: a folder for a sweep for each task and rank (``<task>-r<rank>``), the probe of each task
            (``<task>-probe.json``), ``vtab.json`` and the table, ``vtab.md``.
        space: search space of each sweep; by default :data:`GRID`. If it contains ``seed``, the best mean over seeds is
            chosen.
        config: every other option of a trial, except the rank and the held-out samples.
        device: by default the GPU if there is one.
        residency: as in ``losa_cache.train``.
        report: is called with task, rank and progress after every epoch of trials that train together.

    Raises:
        UserError: if no task can be used, the caches have several backbones, or ``out`` was made with other options.
    """
    placement = Placement.choose(device, residency)
    space, base = GRID if space is None else space, config or TrainConfig(**of_recipe(PAPER))
    wanted = sorted(set(ranks))
    if not wanted or "rank" in space:
        raise UserError(
            f"ranks are {wanted} and the space has {', '.join(space)}: give at least one rank, and none in the space."
        )
    if base.task != CLASSIFICATION:
        raise UserError(f"task is {base.task!r}, but those of VTAB-1k are {CLASSIFICATION}: leave it out.")
    if base.limit is not None:
        raise UserError(f"limit is {base.limit}, but the protocol trains on all images: leave it out.")
    trials = len(grid(space))
    tasks, left_out = find_tasks(Path(folder))
    require_alike(tasks)
    if not tasks:
        reasons = "; ".join(map(str, left_out))
        raise UserError(
            f"no task of VTAB-1k below {str(folder)!r} has caches of {BOTH} and {TEST} that can be used"
            f"{f' ({reasons})' if reasons else ''}: make them with losa-cache extract --dataset vtab --resize exact."
        )
    place = settled_path(out)
    results, to_beat = [], {}
    for task in tasks:
        ids, probe = _claim(place, task), place / f"{task.name}-{PROBE}"
        for rank in wanted:
            sweep = _config(task, replace(base, rank=rank, val_ids=str(ids)), space)
            path = place / f"{task.name}-r{rank}"
            told = partial(report, task.name, rank)
            own = _finished(path, sweep, placement, report=told, probe=probe)
            results.append(_result(task.name, rank, own, path))
        to_beat[task.name] = _tested_probe(probe, task, replace(base, val_ids=str(ids)), placement)
    manifest = tasks[0].train.manifest
    record = VtabRecord(
        fields={name: manifest.fields[name] for name in ALIKE},
        ranks=wanted,
        results=sorted(results, key=lambda result: result.rank),
        left_out=left_out,
        protocol=(
            f"For each task and rank, {trials} trials ({_in_words(space, base)}) were trained on {TRAIN} and judged by "
            f"their top-1 on {VAL} after the last epoch; of options within one standard error of the best those with "
            f"the lowest loss on {VAL} were chosen. With them a side network was trained again on all of {BOTH}, and "
            "it alone was tested, once."
        ),
        unlike=unlike_paper(manifest.fields, manifest.depth),
        machine=machine(),
        to_beat=to_beat,
    )
    write_json(place / RECORD, record.to_json())
    write_whole(place / TABLE, markdown(record).encode("utf-8", "surrogateescape"))
    return record


def _claim(out: Path, task: TaskCaches) -> Path:
    """Note which caches a task's sweeps are of, and write the ids of val200 to a file.

    Raises:
        UserError: if they are of others already, or the folder cannot be written.
    """
    note, ids = out / f"{task.name}.json", out / f"{task.name}-{VAL}.txt"
    content = {"train": task.train.manifest.identity, "test": task.test.manifest.identity, "val_ids": task.val_ids}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if note.exists():
            if json.loads(note.read_text()) != content:
                raise UserError(f"{str(out)!r} holds sweeps of other caches of {task.name}: choose another --out.")
        else:
            write_json(note, content)
        write_whole(ids, "\n".join(task.val_ids).encode("utf-8", "surrogateescape"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(note)!r} cannot be written or read ({error}): choose another --out.") from error
    return ids


def _config(task: TaskCaches, base: TrainConfig, space: Space) -> SweepConfig:
    train, test = str(task.train.path.resolve()), str(task.test.path.resolve())
    return SweepConfig(cache=train, space=space, base=base, test_cache=test, retrain=True)


def _tested_probe(path: Path, task: TaskCaches, config: TrainConfig, placement: Placement) -> ToBeat:
    """Test the probe that the task's sweeps had to beat, once these are over.

    Raises:
        UserError: if the folder cannot be written.
    """
    chosen, train = selected(task.train, config), task.train
    try:
        parts = ((train, chosen.train), (train, chosen.held_out))
        return lines_to_beat(path, *parts, placement.device, config=config, test=task.test)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written ({reason(error)}).") from error


def _finished(
    folder: Path, config: SweepConfig, placement: Placement, *, report: SweepReport, probe: Path
) -> SweepRecord:
    """Begin a sweep, continue it or, if it is finished, read it.

    Raises:
        UserError: if the folder holds another sweep, or none of its trials comes to its end.
    """
    if not folder.exists():
        create_sweep(folder, config)
    elif _options(SweepConfig.load(folder)) != _options(config):
        raise UserError(f"{str(folder)!r} was made with other options: give those, or choose another --out.")
    if (record := load_record(folder)) is not None:
        return record
    return continue_sweep(folder, placement, report=report, probe=probe).record


def _options(config: SweepConfig) -> tuple[Space, TrainConfig]:
    """Give the options that decide the result, except the caches and the held-out ids, which are noted beside the
    sweeps.
    """
    return config.space, replace(config.base, val_ids=None)


def _result(task: str, rank: int, record: SweepRecord, folder: Path) -> Result:
    best, test = record.chosen_trial, record.test
    assert best is not None
    assert best.value is not None
    assert test is not None
    return Result(
        task, rank, test["top1"], test["samples"], best.value, best.options, best.parameters, str(folder), record.choice
    )


def _in_words(space: Space, base: TrainConfig) -> str:
    listed = {"epochs": Choices((base.epochs,))} | space
    return ", ".join(
        f"{name.replace('_', ' ')} {' or '.join(map(str, own.values))}"
        for name, own in listed.items()
        if isinstance(own, Choices)
    )
