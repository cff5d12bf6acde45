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
from losa_cache.pareto.record import CACHES, COST, TEST, Study, Training

EXTRACT, TRAIN = "extract", "train"
CACHE, TEST_CACHE = f"train{CACHES}", f"test{CACHES}"
RUNS = "runs"
EXTRACTION_COST = f"extraction/{COST}"


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


def progress(study: Study) -> tuple[int, int]:
    """Count the pieces of work that are over, and all that there are or may be."""
    named = [study.work(job.name).over for job in jobs(study, Path())]
    later = 0
    if not study.shape_only:
        entries = named_in(study.methods)
        later = sum(2 * study.options["seeds"] for entry in entries if not _judged(study, entry))
    return sum(named), len(named) + later


def name_of_cost(entry: Entry) -> str:
    """Name the measurement of a method's costs."""
    return f"{entry.folder}/{COST}"


def name_of_choice(entry: Entry, rate: float) -> str:
    """Name the training of a method that held-out samples judge."""
    return f"{entry.folder}/lr-{rate:g}/held-out"


def name_of_run(entry: Entry, rate: float, seed: int) -> str:
    """Name the training of a method on all training samples; its test is this name and ``/test``."""
    return f"{entry.folder}/lr-{rate:g}/seed-{seed}"


def name_of_test(run: str) -> str:
    """Name the test of a training."""
    return f"{run}/{TEST}"


def rates_of(study: Study, entry: Entry) -> list[float]:
    """Give the learning rates of a method."""
    return rates(entry.lr, study.options["rates"])


def chosen_rate(study: Study, entry: Entry) -> float | None:
    """Give the learning rate with the best held-out top-1; of equal ones that with the lowest held-out loss.

    Trainings that diverged are passed over. ``None``: it is not known yet, or no training is left.
    """
    known = rates_of(study, entry)
    if not _searched(study):
        return known[0]
    results = {rate: study.result(name_of_choice(entry, rate), Training) for rate in known}
    found = {rate: own.held_out for rate, own in results.items() if own is not None and own.held_out is not None}
    if not found or not _judged(study, entry):
        return None
    return min(found, key=lambda rate: (-found[rate][0], found[rate][1], rate))


def _judged(study: Study, entry: Entry) -> bool:
    """Whether the trainings that choose a method's rate are over."""
    if not _searched(study):
        return True
    return all(study.work(name_of_choice(entry, rate)).over for rate in rates_of(study, entry))


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
