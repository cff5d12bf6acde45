"""``predict``: adapters and inputs to rows, in memory or in a file."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from losa_cache.apply.adapted import AdaptedModel
from losa_cache.apply.open import backbone_fields, backbone_for, open_adapters, require_one_backbone
from losa_cache.apply.predict.answers import Answering, table_of
from losa_cache.apply.predict.arguments import is_cache, require_input, require_one_kind
from losa_cache.apply.predict.config import PredictConfig
from losa_cache.apply.predict.formats import find_format
from losa_cache.apply.predict.from_cache import answer_cache, fitted
from losa_cache.apply.predict.from_files import Found, answer_files
from losa_cache.apply.predict.inputs import Item, items
from losa_cache.apply.predict.journal import Skipped
from losa_cache.apply.predict.known import Known
from losa_cache.apply.predict.output import Output
from losa_cache.apply.predict.table import IMAGES, Rows, Table, plain
from losa_cache.backbone import Backbone
from losa_cache.cache.manifest import UPRIGHT
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.errors import UserError
from losa_cache.extract.meter import Meter
from losa_cache.folders import given_path
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, default_workers
from losa_cache.machine.memory import parse_bytes
from losa_cache.options import lists_options, with_options
from losa_cache.train.trained_adapter import TrainedAdapter

log = logging.getLogger(__name__)

CLOSE = ("float32", "float16", "bfloat16")
"""Precisions of caches whose values are about those that the backbone gives; all others are coarser."""

Take = Callable[[Table, Rows], None]


@dataclass(frozen=True)
class Predicted:
    """What :func:`predict` has done.

    Attributes:
        out: the file that was written; ``None``: the rows are here.
        rows: inputs that have an answer in it, from earlier runs, too; without a file those of this run.
        skipped: inputs of this run without an answer, and why. With a file its first hundred; the file beside it,
            ``OUT.about.json``, has all.
        skipped_count: how many there are.
        predictions: of each input ``{"id": ..., "predictions": {adapter: [{"class": ..., "probability": ...}, ...]}}``,
            or, where feature vectors are asked for, ``{"id": ..., "features": {adapter: array}}``. Empty with a file.
    """

    out: Path | None
    rows: int
    skipped: list[Skipped]
    skipped_count: int
    predictions: list[dict[str, Any]] = field(default_factory=list, repr=False)


SHOWN = 100


@lists_options(PredictConfig)
def predict(
    adapters: str | Path | Sequence[str | Path] | Mapping[str, TrainedAdapter],
    inputs: str | Path | ActivationCache | Sequence[str | Path],
    *,
    config: PredictConfig | None = None,
    backbone: Backbone | None = None,
    meter: Meter | None = None,
    take: Take | None = None,
    **options: Any,
) -> Predicted:
    """Predict images, videos or the samples of a cache with one or more adapters of one backbone.

    Images pass through the backbone once for all adapters, preprocessed exactly as at extraction; a cache needs no
    backbone. What does not decode is skipped and listed. With ``out`` the answers go to a file, and the same call goes
    on where it was interrupted, or adds what is new in the inputs.

    >>> found = lc.predict("runs/birds", "photos")  # doctest: +SKIP
    >>> lc.predict(["runs/birds", "runs/scenes"], ["photos"], out="photos.csv", top=3)  # doctest: +SKIP

    Args:
        adapters: finished runs, adapters' folders or ``hub:owner/name``, each with ``NAME=`` before it where it is to
            have another name; or loaded ones by name.
        inputs: images, videos, folders of these, patterns (``photos/*.jpg``) and CSV files that list paths; or one
            cache.
        config: the options.
        backbone: a loaded one, in place of that which the adapters name.
        meter: is told of progress.
        take: is given the rows as they come, where there is no ``out``; then they are not kept.
        options: fields of :class:`PredictConfig`, over those of ``config``.

    Raises:
        UserError: for anything that cannot work, in one sentence; and if there is no answer at all.
    """
    config = with_options(PredictConfig, config, options)
    words = [inputs] if isinstance(inputs, str | Path | ActivationCache) else list(inputs)
    cache = words[0] if isinstance(words[0], ActivationCache) else None
    paths = [str(given_path(word)) if "://" not in str(word) else str(word) for word in words] if cache is None else []
    for word in paths:
        require_input(word)
    require_one_kind(paths)
    out = None if config.out is None else given_path(config.out)
    kind = None if out is None else find_format(out, embeds=config.embed)
    if paths and is_cache(paths[0]):
        cache = open_cache(paths[0])
    loaded = _loaded(adapters, config.device)
    table = table_of(
        loaded, top=config.top, embed=config.embed, of=IMAGES if cache is None else cache.manifest.identity
    )
    run = _Run(config, loaded, table, meter or Meter(), backbone)
    run.prepare(cache)
    if out is None or kind is None:
        return _in_memory(run, cache, paths, take)
    return _to_file(run, cache, paths, Output(out, kind, table))


def _loaded(
    adapters: str | Path | Sequence[str | Path] | Mapping[str, TrainedAdapter], device: str | None
) -> dict[str, TrainedAdapter]:
    if isinstance(adapters, Mapping):
        return dict(adapters)
    names = [adapters] if isinstance(adapters, str | Path) else adapters
    return open_adapters([str(name) for name in names], device=device)
