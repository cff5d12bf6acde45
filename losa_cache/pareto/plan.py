"""What is left to do of a comparison, piece by piece, and the command of each. Pure: what is done stands in the record.

The order is: the caches; then for each method a training at each learning rate, without the held-out samples; with the
best of them a training on all training samples for each seed, and its test.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from losa_cache.inputs_config import ImageConfig
from losa_cache.pareto.config import words_of
from losa_cache.pareto.entries import Entry, named_in, rates
from losa_cache.pareto.record import Study

EXTRACT, TRAIN, TEST, COST = "extract", "train", "test", "cost"
CACHE, TEST_CACHE = "train.zarr", "test.zarr"
RUNS = "runs"
EXTRACTION_COST = "extraction/cost"


@dataclass(frozen=True)
class Job:
    """A piece of work that one process does.

    Attributes:
        name: in the record.
        kind: one of ``extract``, ``train``, ``test`` and ``cost``.
        words: the command line of losa-cache; none of costs.
        place: the cache or the run directory that it makes or tests.
        entry: the method; ``None``: of all that are trained from a cache.
    """

    name: str
    kind: str
    words: list[str]
    place: Path
    entry: str | None = None


def next_job(study: Study, folder: Path) -> Job | None:
    """Give the first piece of work that is neither done nor failed; ``None`` when all is over."""
    return next((job for job in jobs(study, folder) if not study.work(job.name).over), None)


def jobs(study: Study, folder: Path) -> Iterator[Job]:
    """Give all pieces of work that can be named so far, in their order."""
    entries = named_in(study.methods)
    if study.shape_only:
        if any(entry.cached for entry in entries):
            yield Job(EXTRACTION_COST, COST, [], folder)
        for entry in entries:
            yield Job(name_of_cost(entry), COST, [], folder, entry.text)
        return
    if any(entry.cached for entry in entries):
        yield from _extractions(study, folder)
    for entry in entries:
        yield from _of_entry(study, folder, entry)


def total(study: Study) -> int:
    """Count the pieces of work of a whole study."""
    entries = named_in(study.methods)
    cached = any(entry.cached for entry in entries)
    if study.shape_only:
        return len(entries) + cached
    caches = sum(study.options[name] is None for name in ("cache", "test_cache")) if cached else 0
    each = _searched(study) + 2 * study.options["seeds"]
    return caches + len(entries) * each


def name_of_cost(entry: Entry) -> str:
    """Name the measurement of a method's costs."""
    return f"{entry.folder}/cost"


def name_of_choice(entry: Entry, rate: float) -> str:
    """Name the training of a method that held-out samples judge."""
    return f"{entry.folder}/lr-{rate:g}/held-out"


def name_of_run(entry: Entry, rate: float, seed: int) -> str:
    """Name the training of a method on all training samples; its test is this name and ``/test``."""
    return f"{entry.folder}/lr-{rate:g}/seed-{seed}"


def name_of_test(run: str) -> str:
    """Name the test of a training."""
    return f"{run}/test"


def rates_of(study: Study, entry: Entry) -> list[float]:
    """Give the learning rates of a method."""
    return rates(entry.lr, study.options["rates"])


def chosen_rate(study: Study, entry: Entry) -> float | None:
    """Give the learning rate with the best held-out top-1; of equal ones that with the lowest held-out loss.

    ``None``: it is not known yet, or no training came to its end.
    """
    known = rates_of(study, entry)
    if not _searched(study):
        return known[0]
    works = {rate: study.work(name_of_choice(entry, rate)) for rate in known}
    done = {rate: work.result for rate, work in works.items() if work.result is not None}
    if not done or not all(work.over for work in works.values()):
        return None
    return min(done, key=lambda rate: (-done[rate]["val_top1"], done[rate]["val_loss"], rate))


def _searched(study: Study) -> int:
    """Count the trainings that choose a method's rate: there is nothing to choose from one."""
    count: int = study.options["rates"]
    return count if count > 1 else 0


def _extractions(study: Study, folder: Path) -> Iterator[Job]:
    options = study.options
    for given, name, split in (("cache", CACHE, options["split"]), ("test_cache", TEST_CACHE, options["test_split"])):
        if options[given] is None:
            place = folder / name
            images = words_of(ImageConfig, {**options, "split": split})
            words = ["extract", *images, "--precision", options["precision"], *_workers(options), *_device(options)]
            yield Job(name, EXTRACT, [*words, "--out", str(place)], place)


def _of_entry(study: Study, folder: Path, entry: Entry) -> Iterator[Job]:
    options = study.options
    if _searched(study):
        for rate in rates_of(study, entry):
            name = name_of_choice(entry, rate)
            yield _training(study, folder, entry, name, rate, ["--val-fraction", str(options["val_fraction"])])
    if (chosen := chosen_rate(study, entry)) is None:
        return
    for seed in range(options["seeds"]):
        name = name_of_run(entry, chosen, seed)
        training = _training(study, folder, entry, name, chosen, ["--val-fraction", "0", "--seed", str(seed)])
        yield training
        if study.work(name).error is None:
            on = ["--split", options["test_split"]] if entry.online else ["--cache", _cache(study, folder, test=True)]
            words = ["eval", str(training.place), *on, *_device(options)]
            yield Job(name_of_test(name), TEST, words, training.place, entry.text)


def _training(study: Study, folder: Path, entry: Entry, name: str, rate: float, held_out: list[str]) -> Job:
    options, place = study.options, folder / RUNS / name
    words = ["train"]
    if entry.online:
        words += ["--online", *words_of(ImageConfig, options), "--precision", options["precision"]]
        words += _workers(options)
    else:
        words += ["--cache", _cache(study, folder, test=False)]
    words += entry.words
    if entry.method is not None and options["grad_checkpointing"]:
        words += ["--grad-checkpointing"]
    words += ["--recipe", options["recipe"], "--epochs", str(options["epochs"])]
    words += ["--batch-size", str(options["batch_size"]), "--lr", f"{rate:g}", *held_out, *_device(options)]
    return Job(name, TRAIN, [*words, "--out", str(place)], place, entry.text)


def _cache(study: Study, folder: Path, *, test: bool) -> str:
    given = study.options["test_cache" if test else "cache"]
    return str(folder / (TEST_CACHE if test else CACHE)) if given is None else str(given)


def _workers(options: dict[str, Any]) -> list[str]:
    return [] if options["workers"] is None else ["--workers", str(options["workers"])]


def _device(options: dict[str, Any]) -> list[str]:
    return [] if options["device"] is None else ["--device", options["device"]]
