"""``survey``: what would be extracted from a data set, and what is odd about it, without a backbone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from losa_cache.data.duplicates import Place, same_content
from losa_cache.data.headers import Header, HeaderCounts, in_parts, read_header
from losa_cache.data.load import open_request, request_of_options
from losa_cache.data.samples import Samples
from losa_cache.data.spec import other_splits
from losa_cache.data.survey_config import NAMES, PIXELS, SurveyConfig
from losa_cache.errors import UserError
from losa_cache.options import given, lists_options, with_options

THREADS = 16
_HEADERS = 0.7  # share of the time


@lists_options(SurveyConfig)
def survey(
    dataset: str | Samples | None = None,
    *,
    config: SurveyConfig | None = None,
    progress: Callable[[float], None] = lambda _: None,
    **options: Any,
) -> dict[str, Any]:
    """Look at a data set before it is extracted.

    Args:
        dataset: a name or loaded samples, in place of that of ``config``.
        config: the options.
        progress: is called with the share of the work that is done.
        options: fields of :class:`SurveyConfig`, over those of ``config``.

    Returns:
        ``dataset``, ``split``, ``images``, ``videos`` (whether they are), ``fingerprint``; ``classes``: images of each;
        ``targets``: names of the target sets that come with it; ``left_out`` and ``kept`` (``{"what", "count",
        "names"}``, the first five): what is no part of it, and what looks like a mistake. Unless ``look`` is ``names``
        also ``width`` and ``height`` (``{"min", "median", "max"}`` in pixels, as stored, or null), ``modes`` and
        ``formats`` as Pillow names them, ``unreadable`` (``{"id", "reason"}``), ``duplicates`` (``{"ids", "classes"}``:
        images of one content in this split, and their classes), ``other_splits`` (images in each, or why it cannot be
        opened) and ``leaks`` (``{"ids", "split", "others"}``: images of this split that another one has, too).

    Raises:
        UserError: for a data set that cannot be read as a whole.
    """
    config = with_options(SurveyConfig, config, given(dataset=dataset) | options)
    samples, others, unopened = _opened(config)
    counts = np.bincount(samples.labels, minlength=len(samples.classes)).tolist()
    found: dict[str, Any] = {
        "dataset": samples.name,
        "split": samples.split,
        "images": len(samples),
        "videos": samples.clip is not None,
        "fingerprint": samples.fingerprint,
        "classes": dict(zip(samples.classes, counts, strict=True)),
        "targets": sorted(samples.targets),
        "left_out": samples.left.listed(kept=False),
        "kept": samples.left.listed(kept=True),
    }
    if config.look == NAMES:
        return found
    headers, threads = HeaderCounts(), ThreadPoolExecutor(THREADS, "survey")

    def look(part: range) -> tuple[range, list[Header | str]]:
        return part, [read_header(samples, index, decode=config.look == PIXELS) for index in part]

    try:
        for part, seen in threads.map(look, in_parts(len(samples))):
            headers.add((samples.ids[index] for index in part), seen)
            progress(_HEADERS * part.stop / len(samples))
        splits = [samples, *(other for other in others if (other.file is None) == (samples.file is None))]
        groups = same_content(splits, threads, lambda share: progress(_HEADERS + (1 - _HEADERS) * share))
    finally:
        threads.shutdown(cancel_futures=True)  # after Ctrl-C, a million images are not looked at first
    found |= headers.summary()
    found["duplicates"] = [_duplicate(samples, inside) for group in groups if len(inside := _of(group, 0)) > 1]
    found["other_splits"] = {other.split: len(other) for other in others} | unopened
    found["leaks"] = [leak for group in groups for leak in _leaks(splits, group)]
    return found


def _opened(config: SurveyConfig) -> tuple[Samples, list[Samples], dict[str, str]]:
    """Open a split and the others of its data set; of those that cannot be opened, give the reasons."""
    if not isinstance(config.dataset, str):
        return config.dataset, [], {}
    kind, request = request_of_options(config)
    samples = open_request(kind, request)
    if config.look == NAMES:
        return samples, [], {}
    opened, unopened = [], {}
    for split in other_splits(kind, request):
        try:
            opened.append(open_request(kind, replace(request, split=split)))
        except UserError as error:
            unopened[split] = str(error)
    return samples, opened, unopened


def _of(group: list[Place], split: int) -> list[int]:
    return [index for number, index in group if number == split]


def _duplicate(samples: Samples, indices: list[int]) -> dict[str, list[str]]:
    labels = np.unique(samples.labels[indices]).tolist()
    return {"ids": [samples.ids[index] for index in indices], "classes": [samples.classes[label] for label in labels]}


def _leaks(splits: list[Samples], group: list[Place]) -> list[dict[str, Any]]:
    """Say which images of the first split others have, too."""
    ids = [splits[0].ids[index] for index in _of(group, 0)]
    return [
        {"ids": ids, "split": other.split, "others": [other.ids[index] for index in indices]}
        for number, other in enumerate(splits[1:], 1)
        if ids and (indices := _of(group, number))
    ]
