"""``probe``: baselines of a cache, each tuned on the samples that ``train`` holds out. *Not from the paper*.

What is trained from all tokens of a cache is worth its bytes where it beats these, which read one or two rows of a
layer and take seconds.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from losa_cache.cache.location import Location
from losa_cache.cache.store import ActivationCache, latest_training_cache, open_cache
from losa_cache.errors import UserError
from losa_cache.files import publish
from losa_cache.machine.device import machine
from losa_cache.options import lists_options, with_options
from losa_cache.probe.config import ProbeConfig
from losa_cache.probe.features import read_features
from losa_cache.probe.images import choose_images
from losa_cache.probe.lines import Data, probe_features
from losa_cache.probe.logistic import Fit
from losa_cache.probe.record import Counts, ProbeRecord
from losa_cache.probe.report import write_report
from losa_cache.targets.target_set import LABELS
from losa_cache.train.compatible import of_same_images
from losa_cache.train.config import TrainConfig
from losa_cache.train.held_out_caches import test_cache_for, unfit_for_test
from losa_cache.train.learned import targets_of
from losa_cache.train.placement import Placement
from losa_cache.train.run import RUNS, next_run_path, require_place

Progress = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """The result of a probe.

    Attributes:
        record: all figures.
        folder: where they were written.
        fits: by the name of a line, its regression, which gives logits of features that are not standardised.
        predicted: by the name of a line, the class that it gives each test image, int64 ``(N,)``; empty without a test.
        test_ids: of the test images, in this order.
        test_labels: likewise, int64 ``(N,)``.
    """

    record: ProbeRecord
    folder: Path
    fits: dict[str, Fit]
    predicted: dict[str, Tensor]
    test_ids: list[str]
    test_labels: Tensor


@lists_options(ProbeConfig)
def probe(
    cache: str | Location | ActivationCache | None = None,
    *,
    test: str | Location | ActivationCache | None = None,
    config: ProbeConfig | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    residency: str = "auto",
    progress: Progress = lambda share: None,
    **options: Any,
) -> ProbeResult:
    """Fit probes to frozen features, each tuned on held-out images and then fitted to all training images.

    Logistic and ridge regressions, C and 1 / alpha chosen from a path of 33 values: on the class token, the mean of the
    patches and both, of each layer and of all layers together, and on the frozen tail's features, as ``--side linear``
    reads them. Nearest neighbours and the nearest class mean: on the last layer and on the layer whose regression is
    best.

    Where a share is held out and these are fewer than 500 images, all choices are made by cross-validation over all
    training images instead. Of augmented views the plain one is read; over clips of videos rows are averaged.

    Args:
        cache: opened, its path or its URL; by default the most recent complete one that is not of a held-out split.
        test: a cache to test on; by default a known one of a held-out split of the same data set. It decides nothing.
        config: which images are fitted and held out.
        out: folder for ``probe.json``, ``layers.png`` and ``report.html``; by default ``runs/<data set>-probe-<n>``.
        device: by default the GPU where there is one.
        residency: as of ``losa_cache.train``.
        progress: is given the share done.
        options: fields of :class:`losa_cache.probe.config.ProbeConfig`, over those of ``config``.

    Raises:
        UserError: for a cache, or a choice of images, on which nothing can be tuned.
    """
    chosen = with_options(ProbeConfig, config, options)
    require_place(out, remedy="choose another --out")
    started, placement = perf_counter(), Placement.choose(device, residency)
    if cache is None:
        cache = latest_training_cache(all_tokens=False)
    opened = cache if isinstance(cache, ActivationCache) else open_cache(cache)
    options_of_train = TrainConfig(**asdict(chosen))
    targets = targets_of(opened, options_of_train)
    tested = _test_cache(opened, test, targets.name)
    images = choose_images(opened, tested, options_of_train, placement.device)
    reading = perf_counter()
    train = read_features(
        opened, images.fitted, placement, labels=targets.values, progress=lambda share: progress(0.2 * share)
    )
    test_features = None
    if tested is not None:
        test_features = read_features(
            tested,
            images.test,
            placement,
            labels=targets_of(tested, options_of_train, targets.names).values,
            progress=lambda share: progress(0.2 + 0.2 * share),
        )
    reading = perf_counter() - reading
    data = Data(train, test_features, len(targets.names), images.folds, placement.device)
    found = probe_features(data, lambda share: progress(0.4 + 0.6 * share))
    fields = opened.manifest.fields
    record = ProbeRecord(
        title=f"Probes of {fields['dataset']['name']}{_of(targets.name)}: {fields['backbone']['name']}",
        cache=str(opened.path),
        identity=opened.manifest.identity,
        test_cache=None if tested is None else str(tested.path),
        layers=train.points,
        images=Counts(len(images.train), len(images.held_out), len(images.test)),
        chosen_by=images.folds.told,
        notes=images.notes,
        lines=[one.line for one in found],
        seconds=perf_counter() - started,
        seconds_reading=reading,
        machine=machine(),
    )
    folder = _written(record, out, f"{fields['dataset']['name']}-probe")
    return ProbeResult(
        record,
        folder,
        {one.line.name: one.tuned.fit for one in found if one.tuned is not None},
        {one.line.name: one.predicted for one in found if one.predicted is not None},
        [] if test_features is None else test_features.ids,
        torch.empty(0, dtype=torch.int64) if test_features is None else test_features.labels,
    )


def _test_cache(
    cache: ActivationCache, test: str | Location | ActivationCache | None, targets: str
) -> ActivationCache | None:
    """Open the test cache of the same target set, or find one; ``None`` if there is none."""
    if test is None:
        return test_cache_for(cache.manifest, targets)
    opened = test if isinstance(test, ActivationCache) else open_cache(test)
    if opened.manifest.identity == cache.manifest.identity:
        raise UserError(f"{str(opened.path)!r} is the cache that is fitted: give another one as the test.")
    if of_same_images(cache.manifest.fields, opened.manifest.fields):
        raise UserError(
            f"cache {str(opened.path)!r} is of the images that are fitted: give one of another split as the test."
        )
    if problem := unfit_for_test(cache.manifest, opened, targets):
        raise UserError(f"cache {str(opened.path)!r} is no test of {str(cache.path)!r}: {problem}.")
    return opened


def _of(targets: str) -> str:
    return "" if targets == LABELS else f", {targets}"


def _written(record: ProbeRecord, out: str | Path | None, name: str) -> Path:
    """Write a probe's folder, which appears with all of its files in it.

    Raises:
        UserError: if it cannot be written.
    """
    while True:
        folder = next_run_path(RUNS, re.sub(r"[^\w-]", "_", name)) if out is None else Path(out)
        partial = folder.with_name(f"{folder.name}.partial.{os.getpid()}")
        try:
            partial.mkdir(parents=True)
            write_report(record, partial)
            publish(partial, folder)
        except OSError as error:
            if out is None and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                continue  # another process took the same name
            raise UserError(f"folder {str(folder)!r} cannot be made ({error.strerror}).") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder
