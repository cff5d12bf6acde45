"""The probe of a training cache as contenders of a comparison. Its predictions are stored beside its files and used
again.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from losa_cache.cache.registry import extraction_seconds
from losa_cache.cache.store import ActivationCache
from losa_cache.compare.predictions import NAME, Count, Digest, images_digest, keep, read_kept
from losa_cache.compare.record import Contender
from losa_cache.errors import UserError
from losa_cache.probe.probe import ProbeResult, probe
from losa_cache.train.held_out_caches import test_cache_for, unfit_for_test

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeLine:
    """A probe in a comparison.

    Attributes:
        name: of the contender.
        parameters: trained ones.
        seconds: of reading the features of all layers, choosing, fitting and testing.
        predicted: the number of each test image's class, in the order of their ids.
    """

    name: str
    parameters: Count
    seconds: float
    predicted: list[Count]


@dataclass(frozen=True)
class ProbePredictions:
    """``predictions.json`` of a probe.

    Attributes:
        source, cache: identities of the training cache and of the test cache.
        images: digest of the test images, as of a run's predictions.
        labels: the number of each image's class, in the order of their ids.
        lines: the probes.
    """

    source: Digest
    cache: Digest
    images: Digest
    labels: list[Count]
    lines: list[ProbeLine]


def probe_contenders(
    source: ActivationCache, tests: Sequence[ActivationCache], runs: Path, *, device: str | None
) -> list[Contender]:
    """Probe a training cache, or read the results of a probe below ``runs``: the last layer, all layers, and the best.

    Args:
        source: the training cache.
        tests: test caches; the first that fits is taken, or if there are none, the one that is known.
        runs: folder in which probes are searched.
        device: by default the GPU where there is one.

    Raises:
        UserError: if there is no test cache that fits, or nothing can be tuned.
    """
    test = _test_cache(source, tests)
    wanted = (source.manifest.identity, test.manifest.identity)
    folders = sorted(path.parent for path in runs.glob(f"*/{NAME}") if (path.parent / "probe.json").exists())
    for folder in folders:
        known = read_kept(folder / NAME, ProbePredictions)
        if known is not None and (known.source, known.cache) == wanted:
            return _contenders(known, folder, source, test)
    result = probe(source, test=test, device=device)
    made = _predictions(result, source, test)
    keep(result.folder / NAME, asdict(made))
    return _contenders(made, result.folder, source, test)


def _test_cache(source: ActivationCache, tests: Sequence[ActivationCache]) -> ActivationCache:
    for test in tests:
        if not unfit_for_test(source.manifest, test):
            return test
    known = None if tests else test_cache_for(source.manifest)
    if known is None:
        raise UserError(f"no test cache is known that fits cache {str(source.path)!r}: extract one, or name it here.")
    return known


def _predictions(result: ProbeResult, source: ActivationCache, test: ActivationCache) -> ProbePredictions:
    order = sorted(range(len(result.test_ids)), key=result.test_ids.__getitem__)
    labels = result.test_labels[order].tolist()
    record, classes = result.record, len(source.manifest.classes)
    last, whole, best = record.last_layer, record.all_layers, record.best
    shown = {"probe, last layer": last, "probe, all layers": whole}
    if best not in (last, whole):
        shown[f"probe, {best.name}"] = best
    lines = [
        ProbeLine(
            name,
            (line.features + 1) * classes if line.c is not None else 0,
            record.seconds_reading + line.seconds,
            result.predicted[line.name][order].tolist(),
        )
        for name, line in shown.items()
    ]
    ids = [result.test_ids[place] for place in order]
    images = images_digest(test.manifest.fields, ids, labels)
    return ProbePredictions(source.manifest.identity, test.manifest.identity, images, labels, lines)


def _contenders(
    found: ProbePredictions, folder: Path, source: ActivationCache, test: ActivationCache
) -> list[Contender]:
    extracted = extraction_seconds(source.path, source.manifest)
    labels = np.array(found.labels)
    return [
        Contender(
            line.name,
            [str(folder)],
            [],
            (np.array(line.predicted) == labels)[None],
            found.images,
            str(test.path),
            {"side": 0, "classifier": line.parameters},
            train_seconds=line.seconds,
            extract_seconds=extracted,
        )
        for line in found.lines
    ]
