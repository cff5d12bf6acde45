"""``pareto``: methods beside each other on one backbone and data set, each training in a process of its own.

What is done stands in one record, which is replaced as a whole. A kill at any instruction loses at most the epoch of a
training that was under way: the same call goes on, and reads what is finished.
"""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from losa_cache.backbone.names import CHECKPOINT, full_name
from losa_cache.cache.registry import extraction_seconds
from losa_cache.cache.store import open_cache
from losa_cache.children import Children, Command
from losa_cache.errors import UserError
from losa_cache.files import reason
from losa_cache.folders import require_writable
from losa_cache.lock import locked
from losa_cache.machine.device import machine
from losa_cache.outside import UnreadableError, fit
from losa_cache.pareto.checked import require_caches, require_data
from losa_cache.pareto.config import CLASSES, ParetoConfig, stored
from losa_cache.pareto.outcome import tested, trained
from losa_cache.pareto.plan import CACHE, EXTRACT, TRAIN, Job, next_job
from losa_cache.pareto.record import (
    COST,
    FILE,
    Extraction,
    NoiseCost,
    Result,
    Study,
    Training,
    Work,
    load_study,
    require_same,
)
from losa_cache.pareto.report import write_report, write_study
from losa_cache.sidenet.adapter_folder import has_adapter
from losa_cache.sweep.report.drawing import require_matplotlib
from losa_cache.train.run import CHECKPOINT as RUN_CHECKPOINT
from losa_cache.train.stored import CONFIG as RUN_CONFIG

CHILD, SHAPES = "losa_cache.pareto.child", "losa_cache.pareto.shapes"
ERROR = "error: "  # how a command begins its last line
STOPPED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
LOCK = "lock"

Report = Callable[[Study, Job, str], None]
"""Is given the study, the piece of work that is under way, and what its process says."""


def pareto(
    images: Mapping[str, Any],
    *,
    out: str | Path,
    config: ParetoConfig | None = None,
    cache: str | None = None,
    test_cache: str | None = None,
    shape_only: bool = False,
    device: str | None = None,
    report: Report = lambda study, job, line: None,
) -> Study:
    """Compare methods (*not from the paper*, but for what is drawn: its Fig. 4).

    Args:
        images: options of :class:`~losa_cache.inputs_config.ImageConfig`, by name: the backbone and the data set.
        out: a folder for the caches, the runs (``runs/METHOD/lr-RATE/seed-N``), the record ``pareto.json``, the table
            ``pareto.md``, the figure ``pareto.png`` and the page ``pareto.html``. What it holds is read, not done
            again; what failed is tried again.
        config: the other options.
        cache, test_cache: finished caches of the two splits; by default they are extracted.
        shape_only: measure costs on random weights and noise, without a data set.
        device: by default the GPU if there is one.
        report: is called whenever work begins, and for each line that its process says.

    Returns:
        the whole study, with the methods that the folder had before. Trainings that failed stand in it with their
        reasons.

    Raises:
        UserError: for options that cannot work, a folder that holds something else, or an extraction that failed.
        KeyboardInterrupt: at Ctrl-C; what is finished is kept.
    """
    require_matplotlib()
    config, folder = config or ParetoConfig(), Path(out)
    options = stored(images, config) | {
        "cache": None if cache is None else str(open_cache(cache).path.resolve()),
        "test_cache": None if test_cache is None else str(open_cache(test_cache).path.resolve()),
        "device": device,
        "shape_only": shape_only,
        "classes": CLASSES if shape_only else None,
    }

    def busy() -> None:
        raise UserError(
            f"another process makes the comparison {str(folder)!r}, or a training of it is still coming to its end: "
            "wait for that."
        )

    _require_ours(folder)
    study = _opened(folder, options, config)
    if not shape_only and next_job(study, folder) is not None:
        require_data(options)
        require_caches(options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK, busy) as lock:
            study = _opened(folder, options, config)
            write_study(study, folder)
            while (job := next_job(study, folder)) is not None:
                study = _done(study, job, folder, report, lock)
            write_report(study, folder)
    except OSError as error:
        raise UserError(
            f"the comparison {str(folder)!r} cannot go on ({reason(error)}): mend that, and run it again."
        ) from error
    return study


def _require_ours(folder: Path) -> None:
    """Refuse a folder that cannot be written, or that holds something else.

    The record is the first file behind the lock, and is written beside its place at first.
    """
    require_writable(folder)
    try:
        others = {own.name for own in folder.iterdir()} - {LOCK, f"{FILE}.partial"} if folder.exists() else set()
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be read ({reason(error)}): choose another --out.") from error
    if others and not (folder / FILE).exists():
        raise UserError(f"{str(folder)!r} holds something else than a comparison: choose another --out.")


def _opened(folder: Path, options: dict[str, Any], config: ParetoConfig) -> Study:
    """Read the study of a folder, with these methods beside those that it has, or begin one.

    Raises:
        UserError: for a study with other options, or a backbone that nobody knows.
    """
    if options["backbone"] != CHECKPOINT:
        full_name(options["backbone"])
    methods, found = config.entries(options["backbone"]), load_study(folder)
    if found is None:
        return Study(options, methods, machine(), _given(options))
    require_same(folder, options, found.options)
    added = [method for method in methods if method not in found.methods]
    return replace(found.retried(), methods=[*found.methods, *added], machine=machine())


def _given(options: Mapping[str, Any]) -> dict[str, Work]:
    """Note what is known of the extraction of a cache that is given."""
    if options["cache"] is None:
        return {}
    cache = open_cache(options["cache"])
    return {CACHE: Work(Extraction(None), seconds=extraction_seconds(cache.path, cache.manifest))}


def _done(study: Study, job: Job, folder: Path, report: Report, lock: int) -> Study:
    """Do a piece of work, and write down what came of it.

    Raises:
        UserError: for an extraction that failed: nothing goes on without its cache.
    """
    report(study, job, "")
    if job.kind == TRAIN and has_adapter(job.place):  # its process came to the end, and this one did not see it
        work = _outcome(study, job, _Ended())
    else:
        whole, began = not _begun(job), perf_counter()
        ended = _run(study, job, report, lock)
        work = _outcome(study, job, ended, perf_counter() - began if whole else None)
    study = study.ended(job.name, work)
    write_study(study, folder)
    if job.kind == EXTRACT and work.error is not None:
        raise UserError(f"the extraction of {str(job.place)!r} failed: {work.error}")
    return study


def _begun(job: Job) -> bool:
    """Whether another process did a part of a piece of work, which is not done again."""
    if job.kind == TRAIN:
        return (job.place / RUN_CHECKPOINT).exists()
    return job.kind == EXTRACT and job.place.exists()


@dataclass
class _Ended:
    """How a process ended.

    Attributes:
        code: its exit code.
        told: the last object that it told.
        error: the reason that it gave.
        line: its last line.
    """

    code: int = 0
    told: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    line: str = ""


def _run(study: Study, job: Job, report: Report, lock: int) -> _Ended:
    """Run a piece of work in a process of its own, which holds the lock of the comparison, too, until it ends."""
    ended = _Ended()
    with Children([Command(_words(study, job), {}, [lock])]) as children:
        for message in children.messages():
            if message.told is not None:
                ended.told = message.told
                continue
            ended.line = message.line or ended.line
            if message.line.startswith(ERROR):
                ended.error = message.line.removeprefix(ERROR)
            else:
                report(study, job, message.line)
    ended.code = children.codes[0] or 0
    return ended


def _words(study: Study, job: Job) -> list[str]:
    """Give the command line of a piece of work; a training that was begun goes on."""
    python = [sys.executable, "-P", "-m"]  # -P: a module of the working directory must not take a library's place
    if job.kind == COST:
        return [*python, SHAPES, json.dumps({**study.options, "entry": job.entry})]
    if job.kind == TRAIN and (job.place / RUN_CONFIG).exists():
        device = study.options["device"]
        again = ["train", "--resume", str(job.place), *([] if device is None else ["--device", device])]
        return [*python, CHILD, *again]
    return [*python, CHILD, *job.words]


def _outcome(study: Study, job: Job, ended: _Ended, seconds: float | None = None) -> Work:
    """Give what came of a piece of work.

    Args:
        study: as far as it has come.
        job: the piece of work.
        ended: how its process ended.
        seconds: that this took; ``None``: it did not do all of it.

    Raises:
        KeyboardInterrupt: if the process was asked to stop, as this one is.
    """
    if ended.code:
        number = -ended.code if ended.code < 0 else ended.code - 128
        if number in STOPPED:
            raise KeyboardInterrupt
        if number == signal.SIGKILL:
            return Work(error="it was killed, as the system does where memory runs out.")
        return Work(error=ended.error or f"it failed with exit code {ended.code} ({ended.line}).")
    try:
        return Work(_result(study, job, ended, whole=seconds is not None), seconds=seconds)
    except (UserError, UnreadableError) as error:
        return Work(error=str(error))


def _result(study: Study, job: Job, ended: _Ended, *, whole: bool) -> Result:
    if job.kind == EXTRACT:
        return Extraction(ended.told["peak"] / 1e9 if whole else None)
    if job.kind == COST:
        return fit(ended.told, NoiseCost)
    return _of_same_images(study, trained(job.place)) if job.kind == TRAIN else tested(job.place)


def _of_same_images(study: Study, result: Training) -> Training:
    """Pass the figures of a training on.

    Raises:
        UserError: if others were trained on other images.
    """
    known = {own.images for work in study.works.values() if isinstance(own := work.result, Training)}
    if known - {result.images}:
        raise UserError(
            "it was trained on other images than the methods before it: put the data set back as it was, or choose "
            "another --out."
        )
    return result
