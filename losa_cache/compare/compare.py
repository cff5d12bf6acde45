"""``compare``: runs, and the probe of the cache that they were trained from, on the same test images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from losa_cache.cache.store import HELD_OUT_SPLITS, ActivationCache, open_cache
from losa_cache.compare.predictions import Predictions, predictions
from losa_cache.compare.probed import probe_contenders
from losa_cache.compare.record import Comparison, Contender, comparison
from losa_cache.compare.trained import Trained, contender, group, names, read_run
from losa_cache.errors import UserError, no_run_or_cache
from losa_cache.folders import is_url
from losa_cache.sidenet.adapter_file import load_adapter_config
from losa_cache.sidenet.adapter_folder import has_adapter
from losa_cache.train.compatible import misfit_of_cache, of_same_images
from losa_cache.train.held_out_caches import known_test_cache
from losa_cache.train.run import RUNS
from losa_cache.train.stored import CONFIG as RUN_CONFIG

LEAST = 2
"""Test images that a paired test takes: from one there is no standard error."""


def compare(
    *what: str | Path | ActivationCache,
    probe: bool = False,
    device: str | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> Comparison:
    """Compare finished runs, and probes, on the same test images (*not from the paper*).

    Runs that differ only in their seed are one method. A run's predictions are stored in it (``predictions.json``) and
    used again.

    Args:
        what: directories of finished runs, and caches. Runs are tested on caches of held-out splits, each on the first
            that fits it. Any other cache adds its probe and, if no run is named, all finished runs below ``runs`` that
            were trained from it.
        probe: add the probe of the cache that the runs were trained from.
        device: by default the GPU if there is one.
        progress: is called with the number of tested runs, with their fraction.

    Returns:
        accuracies in percent with intervals at 95 %, and differences between each pair in points.

    Raises:
        UserError: if something is neither, does not fit, or was tested on other images than the others.
    """
    runs, caches = _sorted(what)
    tests = [cache for cache in caches if _held_out(cache)]
    sources = list({cache.manifest.identity: cache for cache in caches if not _held_out(cache)}.values())
    if not runs:
        runs = [run for cache in sources for run in _trained_from(cache)]
    if not runs and not sources:
        raise UserError("there is nothing to compare: name the directories of finished runs, or a training cache.")
    trained = [read_run(run) for run in runs]
    groups = group(trained)
    if probe:
        sources += _sources_of(trained, known=sources)
    contenders: list[Contender] = []
    done = 0
    for name, members in zip(names(groups), groups, strict=True):
        tested, told = [_test_cache(run, tests) for run in members], []
        for run, cache in zip(members, tested, strict=True):
            told.append(predictions(run.path, cache, device=device, progress=partial(_advance, progress, done)))
            done += 1
        _require_same(members, told)
        contenders.append(contender(name, members, told, str(tested[0].path)))
    for source in sources:
        contenders += probe_contenders(source, tests, RUNS, device=device)
    _require_same_images(contenders)
    if len(contenders) > 1 and contenders[0].correct.shape[1] < LEAST:
        raise UserError(
            f"cache {contenders[0].tested_on!r} has one image, on which no two methods can be compared: name a test "
            f"cache of at least {LEAST}."
        )
    test = open_cache(contenders[0].tested_on)
    dataset, backbone = test.manifest.fields["dataset"], test.manifest.fields["backbone"]["name"]
    return comparison(f"{dataset['name']}, {dataset['split']}: {backbone}", _named_apart(contenders))


def _advance(progress: Callable[[float], None], done: int, share: float) -> None:
    progress(done + share)


def _sorted(what: Sequence[str | Path | ActivationCache]) -> tuple[list[Path], list[ActivationCache]]:
    """Separate runs from caches."""
    runs, caches = [], []
    for one in what:
        if isinstance(one, ActivationCache):
            caches.append(one)
        elif not is_url(str(one)) and ((Path(one) / RUN_CONFIG).exists() or has_adapter(Path(one))):
            runs.append(Path(one))
        elif is_url(str(one)) or Path(one).exists():
            try:
                caches.append(open_cache(str(one)))
            except UserError as error:
                raise UserError(f"{str(one)!r} is no finished run and cannot be opened as a cache: {error}") from error
        else:
            raise no_run_or_cache(one)
    return runs, caches


def _held_out(cache: ActivationCache) -> bool:
    return cache.manifest.fields["dataset"]["split"] in HELD_OUT_SPLITS


def _trained_from(cache: ActivationCache) -> list[Path]:
    """Find the finished runs below ``runs`` that were trained from a cache."""
    runs = []
    for run in filter(has_adapter, sorted(RUNS.glob("*"))):
        try:
            identity = load_adapter_config(run)["cache"]["identity"]
        except UserError:  # naming it says what is wrong with it
            continue
        if identity == cache.manifest.identity:
            runs.append(run)
    return runs


def _sources_of(trained: Sequence[Trained], known: Sequence[ActivationCache]) -> list[ActivationCache]:
    """Open the caches that runs were trained from, except those that are open already."""
    seen = {cache.manifest.identity for cache in known}
    caches = []
    for path in dict.fromkeys(run.cache for run in trained if run.cache is not None):
        cache = open_cache(path)
        if cache.manifest.identity not in seen:
            seen.add(cache.manifest.identity)
            caches.append(cache)
    return caches


def _test_cache(run: Trained, tests: Sequence[ActivationCache]) -> ActivationCache:
    """Choose the test cache of a run: the first given cache that fits, or else the one that ``eval`` takes.

    Raises:
        UserError: if there is none.
    """
    if tests:
        config = load_adapter_config(run.path)
        problems = [
            "it was trained on these images"
            if of_same_images(config["cache"]["fields"], test.manifest.fields)
            else misfit_of_cache(config, test)
            for test in tests
        ]
        for test, problem in zip(tests, problems, strict=True):
            if not problem:
                return test
        raise UserError(f"run {str(run.path)!r} does not fit cache {str(tests[0].path)!r}: {problems[0]}.")
    known = known_test_cache(run.path)
    if known is None:
        raise UserError(f"no test cache is known that fits run {str(run.path)!r}: extract one, or name it here.")
    return known


def _require_same(members: Sequence[Trained], told: Sequence[Predictions]) -> None:
    for run, predicted in zip(members, told, strict=True):
        if predicted.images != told[0].images:
            raise _unlike(str(members[0].path), str(run.path))


def _require_same_images(contenders: Sequence[Contender]) -> None:
    for one in contenders:
        if one.images != contenders[0].images:
            raise _unlike(*((contender.runs or [contender.name])[0] for contender in (contenders[0], one)))


def _unlike(first: str, second: str) -> UserError:
    return UserError(
        f"{first!r} and {second!r} were tested on different images: name one test cache that fits both, or compare "
        "them apart."
    )


def _named_apart(contenders: Sequence[Contender]) -> list[Contender]:
    """Give methods different names: if two have the same name, a number follows it."""
    seen: dict[str, int] = {}
    apart = []
    for one in contenders:
        seen[one.name] = seen.get(one.name, 0) + 1
        apart.append(one if seen[one.name] == 1 else replace(one, name=f"{one.name} ({seen[one.name]})"))
    return apart
