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
from losa_cache.pareto.config import CLASSES, ParetoConfig, stored
from losa_cache.pareto.outcome import tested, trained
from losa_cache.pareto.plan import CACHE, COST, EXTRACT, TRAIN, Job, next_job
from losa_cache.pareto.record import FILE, Study, Work, load_study, require_same
from losa_cache.pareto.report import write_report, write_study
from losa_cache.sidenet.adapter_folder import has_adapter
from losa_cache.sweep.report.drawing import require_matplotlib
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
    cache: str | Path | None = None,
    test_cache: str | Path | None = None,
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
        the whole study. Trainings that failed stand in it with their reasons.

    Raises:
        UserError: for options that cannot work, a folder that holds something else, or an extraction that failed.
        KeyboardInterrupt: at Ctrl-C; what is finished is kept.
    """
    require_matplotlib()
    config, folder = config or ParetoConfig(), Path(out)
    options = stored(images, config) | {
        "cache": None if cache is None else str(Path(cache).resolve()),
        "test_cache": None if test_cache is None else str(Path(test_cache).resolve()),
        "device": device,
        "shape_only": shape_only,
        "classes": CLASSES if shape_only else None,
    }
    _make(folder)

    def busy() -> None:
        raise UserError(f"another process makes the comparison {str(folder)!r}: wait for it.")

    try:
        with locked(folder / LOCK, busy):
            study = _opened(folder, options, config.entries(images["backbone"]))
            write_study(study, folder)
            while (job := next_job(study, folder)) is not None:
                study = _done(study, job, folder, report)
            write_report(study, folder)
    except OSError as error:
        raise UserError(
            f"the comparison {str(folder)!r} cannot go on ({reason(error)}): mend that, and run it again."
        ) from error
    return study


def _make(folder: Path) -> None:
    """Make the folder, unless it is there and is one of ours."""
    require_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = not (folder / FILE).exists() and any(own.name != LOCK for own in folder.iterdir())
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be made ({reason(error)}): choose another --out.") from error
    if taken:
        raise UserError(f"{str(folder)!r} holds something else than a comparison: choose another --out.")


def _opened(folder: Path, options: dict[str, Any], methods: list[str]) -> Study:
    """Read the study of a folder, or begin one.

    Raises:
        UserError: for a study with other options, or a backbone that nobody knows.
    """
    backbone = options["backbone"] if options["backbone"] == CHECKPOINT else full_name(options["backbone"])
    found = load_study(folder)
    if found is None:
        return Study(options, methods, machine(), _given(options, backbone))
    require_same(folder, options, found.options)
    return replace(found.retried(), methods=methods, machine=machine())


def _given(options: Mapping[str, Any], backbone: str) -> dict[str, Work]:
    """Note what is known of the extraction of a cache that is given, which must be of this backbone.

    Raises:
        UserError: for a cache that is not of this backbone.
    """
    if options["cache"] is None:
        return {}
    cache = open_cache(options["cache"])
    if (of := cache.manifest.fields["backbone"]["name"]) != backbone and options["backbone"] != CHECKPOINT:
        raise UserError(
            f"cache {options['cache']!r} is of backbone {of!r}, not of {backbone!r}: choose one of the two."
        )
    seconds = extraction_seconds(cache.path, cache.manifest)
    return {CACHE: Work(1, 0 if seconds is None else 1, seconds or 0.0, result={"peak_gb": None})}


def _done(study: Study, job: Job, folder: Path, report: Report) -> Study:
    """Do a piece of work, and write down what came of it.

    Raises:
        UserError: for an extraction that failed: nothing goes on without its cache.
    """
    report(study, job, "")
    if job.kind == TRAIN and has_adapter(job.place):  # its process came to the end, and this one did not see it
        study = study.found(job.name, _of_same_images(study, trained(job.place)))
        write_study(study, folder)
        return study
    study = study.begun(job.name)
    write_study(study, folder)
    began = perf_counter()
    outcome: dict[str, Any] = {}
    try:
        outcome = _outcome(study, job, _run(study, job, report))
    finally:
        study = study.ended(job.name, perf_counter() - began, **outcome)
        write_study(study, folder)
    if job.kind == EXTRACT and study.work(job.name).error is not None:
        raise UserError(f"the extraction of {str(job.place)!r} failed: {study.work(job.name).error}")
    return study


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


def _run(study: Study, job: Job, report: Report) -> _Ended:
    """Run a piece of work in a process of its own."""
    ended = _Ended()
    with Children([Command(_words(study, job), {})]) as children:
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


def _outcome(study: Study, job: Job, ended: _Ended) -> dict[str, Any]:
    """Give what came of a piece of work: ``result`` or ``error``.

    Raises:
        KeyboardInterrupt: if the process was asked to stop, as this one is.
    """
    if ended.code:
        number = -ended.code if ended.code < 0 else ended.code - 128
        if number in STOPPED:
            raise KeyboardInterrupt
        if number == signal.SIGKILL:
            return {"error": "it was killed, as the system does where memory runs out."}
        return {"error": ended.error or f"it failed with exit code {ended.code} ({ended.line})."}
    if job.kind == EXTRACT:
        return {"result": {"peak_gb": ended.told["peak"] / 1e9}}
    if job.kind == COST:
        return {"result": ended.told}
    try:
        return {"result": _of_same_images(study, trained(job.place)) if job.kind == TRAIN else tested(job.place)}
    except UserError as error:
        return {"error": str(error)}


def _of_same_images(study: Study, result: dict[str, Any]) -> dict[str, Any]:
    """Pass the figures of a training on.

    Raises:
        UserError: if others were trained on other images, as from a cache that was given.
    """
    known = {own["images"] for work in study.works.values() if (own := work.result) is not None and "images" in own}
    if known - {result["images"]}:
        raise UserError(
            "it was trained on other images than the methods before it: name a cache of this data set with --cache, or "
            "leave it out, and choose another --out."
        )
    return result
