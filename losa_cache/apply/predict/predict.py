"""``predict``: adapters and inputs to rows, in memory or in a file."""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from losa_cache.apply.adapted import AdaptedModel
from losa_cache.apply.open import backbone_for, open_adapters, require_one_backbone
from losa_cache.apply.predict.answers import Answering, Found, table_of
from losa_cache.apply.predict.arguments import is_cache, require_input, require_one_kind
from losa_cache.apply.predict.config import PredictConfig
from losa_cache.apply.predict.formats import find_format
from losa_cache.apply.predict.from_cache import answer_cache, fitted
from losa_cache.apply.predict.from_files import Decoding, Model, answer_files
from losa_cache.apply.predict.inputs import items
from losa_cache.apply.predict.journal import Skipped
from losa_cache.apply.predict.known import Known
from losa_cache.apply.predict.output import Output
from losa_cache.apply.predict.table import IMAGES, Rows, Table, plain
from losa_cache.backbone import Backbone
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.errors import UserError
from losa_cache.extract.meter import Meter
from losa_cache.folders import given_path
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, default_workers
from losa_cache.machine.sizes import parse_bytes
from losa_cache.options import lists_options, with_options
from losa_cache.train.trained_adapter import TrainedAdapter, load_adapter

log = logging.getLogger(__name__)

CLOSE = ("float32", "float16", "bfloat16")
"""Precisions of caches whose values are about those that the backbone gives; all others are coarser."""

Take = Callable[[Table, Rows], None]
Adapters = str | Path | TrainedAdapter | Sequence[str | Path] | Mapping[str, "TrainedAdapter | str | Path"]


@dataclass(frozen=True)
class Predictions:
    """What :func:`predict` has done.

    Attributes:
        out: the file that was written; ``None``: the rows are here.
        rows: inputs that have an answer in it, from earlier runs, too; without a file those of this run.
        skipped: inputs of this run without an answer, and why. With a file its first hundred; the file beside it,
            ``OUT.info.json``, has all.
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
"""Skipped inputs that are kept to be named, of those that a file lists."""


@lists_options(PredictConfig)
def predict(
    adapters: Adapters,
    inputs: str | Path | ActivationCache | Sequence[str | Path],
    *,
    config: PredictConfig | None = None,
    backbone: Backbone | None = None,
    meter: Meter | None = None,
    take: Take | None = None,
    **options: Any,
) -> Predictions:
    """Predict images, videos or the samples of a cache with one or more adapters of one backbone.

    Images pass through the backbone once for all adapters, preprocessed exactly as at extraction; a cache needs no
    backbone. What does not decode is skipped and listed. With ``out`` the answers go to a file, and the same call goes
    on where it was interrupted, or adds what is new in the inputs.

    >>> found = lc.predict("runs/birds", "photos")  # doctest: +SKIP
    >>> lc.predict(["runs/birds", "runs/scenes"], ["photos"], out="photos.csv", top_k=3)  # doctest: +SKIP

    Args:
        adapters: finished runs, adapters' folders or ``hub:owner/name``, each with ``NAME=`` before it where it is to
            have another name; or loaded ones, or places, by name; or a loaded one.
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
    cache = inputs if isinstance(inputs, ActivationCache) else None
    paths = [] if isinstance(inputs, ActivationCache) else _paths(inputs)
    require_one_kind(paths)
    out = None if config.out is None else given_path(config.out)
    kind = None if config.out is None else find_format(config.out, embeds=config.embed)
    if paths and is_cache(paths[0]):
        cache = open_cache(paths[0])
    loaded = _loaded(adapters, config.device)
    if not loaded:
        raise UserError("adapters is empty: name at least one.")
    table = table_of(
        loaded, top_k=config.top_k, embed=config.embed, of=IMAGES if cache is None else cache.manifest.identity
    )
    run = _Run(config, loaded, table, meter or Meter(), backbone)
    run.require_fit(cache)
    if out is None and take is not None and table.maps:
        raise UserError(
            "the adapter predicts a map for each image, which is not printed: write them with --out maps.zarr, or "
            "masks with --out masks/."
        )
    if out is None or kind is None:
        return _in_memory(run, cache, paths, take)
    return _to_file(run, cache, paths, Output(out, kind, table))


def _paths(inputs: str | Path | Sequence[str | Path]) -> list[str]:
    """Write inputs out that begin with a home folder, and refuse those that are not there."""
    words = [inputs] if isinstance(inputs, str | Path) else inputs
    paths = [str(word) if "://" in str(word) else str(given_path(word)) for word in words]
    for path in paths:
        require_input(path)
    return paths


def _loaded(adapters: Adapters, device: str | None) -> dict[str, TrainedAdapter]:
    if isinstance(adapters, TrainedAdapter):
        return {"adapter": adapters}
    if isinstance(adapters, Mapping):
        return {
            name: own if isinstance(own, TrainedAdapter) else load_adapter(own, device=device)
            for name, own in adapters.items()
        }
    names = [adapters] if isinstance(adapters, str | Path) else adapters
    return open_adapters([str(name) for name in names], device=device)


class _Run:
    """The adapters of a call, and what they give of inputs, batch by batch.

    Args:
        config: the options.
        adapters: by name.
        table: of their answers.
        meter: is told of progress.
        backbone: a loaded one; by default that which the adapters name is loaded when it is needed.
    """

    def __init__(
        self,
        config: PredictConfig,
        adapters: Mapping[str, TrainedAdapter],
        table: Table,
        meter: Meter,
        backbone: Backbone | None,
    ) -> None:
        self.config, self.adapters, self.table, self.meter = config, adapters, table, meter
        self._backbone, self._device = backbone, choose_device(config.device)

    def require_fit(self, cache: ActivationCache | None) -> None:
        """Refuse adapters that do not go together, or not with a cache, before anything is computed.

        Raises:
            UserError: naming the fields that differ.
        """
        if cache is not None:
            self.adapters = fitted(self.adapters, cache)
            return
        require_one_backbone(self.adapters)
        clips = {name: _clips(own) for name, own in self.adapters.items()}
        if len({*clips.values()}) > 1:
            listed = ", ".join(f"{name!r} with {count}" for name, count in clips.items())
            raise UserError(
                f"the adapters were trained with other clips of a video ({listed}): use them one at a time."
            )
        for name, own in self.adapters.items():
            precision = own.config["cache"]["fields"]["precision"]
            if precision not in CLOSE:
                log.info(
                    "adapter %r was trained on a cache at %s; block outputs of new images are not rounded to that, so "
                    "figures may differ from those of losa-cache eval on such a cache.",
                    *(name, precision),
                )

    def found(self, cache: ActivationCache | None, paths: Sequence[str], known: Known) -> Generator[Found, None, None]:
        """Give the answers of all inputs that are not known, and note them as known.

        The meter is told how many there are.
        """
        keep_freed_memory()
        answering = Answering(self.table, self.adapters)
        if cache is not None:
            samples = unanswered(cache, known)
            self.meter.start(len(samples))
            if len(samples):
                places: dict[str, Any] = {"batch_size": self.config.batch_size, "device": self._device}
                yield from answer_cache(cache, samples, self.adapters, answering, embed=self.config.embed, **places)
            return
        self.meter.start(sum(item.id not in known for item in items(paths)))
        new = (item for item in items(paths, log.info) if known.add(item.id))
        yield from answer_files(new, self._load, answering, self._decoding(), self.meter)

    def _decoding(self) -> Decoding:
        own = next(iter(self.adapters.values()))
        return Decoding(
            batch_size=self.config.batch_size,
            workers=self.config.workers or default_workers(),
            clips=_clips(own),
            upright=own.upright,
            pixels=replace(own.pixels, checked=all(one.pixels.checked for one in self.adapters.values())),
            max_pixels=self.config.max_pixels,
        )

    def _load(self) -> Model:
        memory = self.config.max_device_memory
        budget = None if memory is None else parse_bytes(memory)
        backbone = self._backbone or backbone_for(
            self.adapters, weights=self.config.weights, device=self._device, max_device_memory=budget
        )
        model = AdaptedModel(backbone, self.adapters)
        forward = model.embed if self.config.embed else model
        return Model(forward, backbone.input, pin=backbone.device.type == "cuda")

    def count(self, rows: Rows, skipped: Sequence[Skipped], size: int = 0) -> None:
        """Tell the meter of a batch."""
        self.meter.images += len(rows) + len(skipped)
        self.meter.bytes += size
        self.meter.update()


def unanswered(cache: ActivationCache, known: Known) -> NDArray[np.int64]:
    """Number the samples of a cache whose ids are not known, and note them as known."""
    samples = cache.samples
    return samples[known.add_all(map(plain, cache.sample_ids.take(samples)))]


def _clips(adapter: TrainedAdapter) -> int:
    """Say how many clips of a video an adapter was trained on."""
    return int(adapter.config["cache"]["fields"].get("views", {}).get("clips", 1))


def _in_memory(run: _Run, cache: ActivationCache | None, paths: Sequence[str], take: Take | None) -> Predictions:
    count, skipped, kept = 0, list[Skipped](), list[dict[str, Any]]()
    with closing(run.found(cache, paths, Known())) as batches:
        for rows, bad in batches:
            if take is None:
                kept += [run.table.entry(rows, place) for place in range(len(rows))]
            elif len(rows):
                take(run.table, rows)
            count += len(rows)
            skipped += bad
            run.count(rows, bad)
    _require_some(count, skipped)
    return Predictions(None, count, skipped, len(skipped), kept)


def _to_file(run: _Run, cache: ActivationCache | None, paths: Sequence[str], output: Output) -> Predictions:
    try:
        with closing(run.found(cache, paths, output.known)) as batches:
            for rows, bad in batches:
                run.count(rows, bad, output.add(rows, bad))
        skipped, count = list(islice(output.not_answered(), SHOWN)), output.skipped
        output.finish()
    finally:
        output.close()
    _require_some(output.rows, skipped)
    return Predictions(output.path, output.rows, skipped, count)


def _require_some(rows: int, skipped: Sequence[Skipped]) -> None:
    """Refuse inputs of which none has an answer.

    Raises:
        UserError: naming the first ones.
    """
    if not rows:
        told = "; ".join(f"{own.id!r} ({own.reason})" for own in skipped[:3])
        raise UserError(f"nothing could be predicted: {told or 'there are no inputs'}.")
