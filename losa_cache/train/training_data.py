"""The training data of a run: a cache, a backbone with images, or both."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from losa_cache.cache.identity import differences
from losa_cache.cache.manifest import Manifest
from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.inputs_config import ImageConfig
from losa_cache.layers import choose_layers
from losa_cache.machine.device import default_workers
from losa_cache.machine.memory import available_memory
from losa_cache.machine.sizes import readable_bytes
from losa_cache.options import given, options_of
from losa_cache.points import ALL, EMBEDDING, input_points, stored_points, tapped_points
from losa_cache.sidenet.pooled import pooling_of
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.targets.target_set import TargetSet
from losa_cache.tasks import Task, get_task
from losa_cache.train.batch import Source
from losa_cache.train.cached import open_cached
from losa_cache.train.config import TrainConfig
from losa_cache.train.learned import (
    fitted,
    named_sets,
    named_sets_of_images,
    opened_targets,
    require_augmentable,
    targets_of,
    targets_of_images,
)
from losa_cache.train.memoised import MemoisedSource
from losa_cache.train.mixed import MixedSource
from losa_cache.train.online_config import OnlineConfig
from losa_cache.train.placement import Placement
from losa_cache.train.pooled_source import PooledSource
from losa_cache.train.selection import Selection, select

if TYPE_CHECKING:
    from losa_cache.backbone import Backbone
    from losa_cache.data.samples import Samples
    from losa_cache.inputs import Inputs

log = logging.getLogger(__name__)

# fresh and cached samples may meet in a run where these agree
SAME_SAMPLES = ("backbone", "input", "tap", "dataset", "sampling", "precision", "decoder", "orientation", "pixels")
EXACT = ("bfloat16", "float32")
"""Precisions that do no more than to choose the dtype of products of matrices, where nothing is stored."""
KEEP_SHARE = 0.25  # of the free memory, for features of held-out images in the host's, for pooled rows on the device


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from.

    Attributes:
        manifest: of the cache, or what a cache of the same would say.
        tail: the backbone's frozen tail.
        layers: block numbers that the run uses.
        points: what it reads, in the order of ``Batch.blocks``.
        chosen: samples to train on and to hold out.
        source: of training batches.
        plain: of evaluation batches.
        placement: where it is read to.
        task: what is learned, fitted to the training samples.
        targets: what is learned of every sample.
        backbone: that runs in the loop. A method that trains inside it is given images, and changes it.
    """

    manifest: Manifest
    tail: FrozenTail
    layers: list[int]
    points: list[str]
    chosen: Selection
    source: Source
    plain: Source
    placement: Placement
    task: Task
    targets: TargetSet
    backbone: "Backbone | None" = None

    @property
    def device(self) -> torch.device:
        """Where the batches lie, and what learns from them computes."""
        return self.placement.device

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of matrix products on these activations; ``None``: their own."""
        return self.placement.autocast(self.manifest.precision)

    def __enter__(self) -> "TrainingData":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the sources."""
        self.source.close()
        self.plain.close()


def open_training_data(
    cache: ActivationCache | None,
    online: OnlineConfig | None,
    config: TrainConfig,
    placement: Placement,
    *,
    passes: int = 1,
    backbone: "Backbone | None" = None,
    dataset: "Samples | None" = None,
    task: Task | None = None,
    names: Sequence[str] | None = None,
) -> TrainingData:
    """Open a cache, or images and their backbone, or both (arguments as in ``losa_cache.train``).

    ``passes`` says how often the samples will be asked for; ``task`` is one that was fitted before, in place of one
    that is fitted to the training samples; ``names`` are those of what a run has learned of other samples, as of
    :func:`losa_cache.train.learned.targets_of`.

    Raises:
        UserError: for options that cannot work, and for things that do not belong together.
    """
    require_inside(config, online, cache)
    if online is not None:
        given: dict[str, Any] = {"passes": passes, "backbone": backbone, "dataset": dataset, "task": task}
        return from_backbone(online, config, placement, cache=cache, names=names, **given)
    assert cache is not None, "neither a cache nor a backbone"
    return from_cache(cache, config, placement, passes=passes, task=task, names=names)


def require_inside(config: TrainConfig, online: OnlineConfig | None, cache: object | None) -> None:
    """Refuse what a method that trains inside the backbone cannot do: it runs on every image of every epoch.

    Raises:
        UserError: for a cache, a mixed run, or options of block outputs.
    """
    if config.trains is None:
        return
    method = f"--method {config.trains}"
    if online is None:
        raise UserError(f"{method} trains inside the backbone, which a cache cannot replace: use --online.")
    if online.share < 1:
        raise UserError(
            f"{method} trains inside the backbone, and --mixed takes a part of it from a cache: use --online."
        )
    if cache is not None:
        raise UserError(
            f"{method} trains inside the backbone, whose outputs change: no cache serves them; leave out --cache."
        )
    if online.tap not in (None, "block"):
        raise UserError(f"tap is {online.tap!r}, but {method} reads what the last block gives: leave it out.")
    if online.precision not in (None, *EXACT):
        raise UserError(
            f"precision is {online.precision!r}, but {method} rounds no block outputs: choose {' or '.join(EXACT)}, in "
            "which products of matrices are computed."
        )


def from_cache(
    cache: ActivationCache,
    config: TrainConfig,
    placement: Placement,
    *,
    passes: int,
    trials: int = 1,
    task: Task | None = None,
    names: Sequence[str] | None = None,
) -> TrainingData:
    """Learn from a cache (arguments as of :func:`open_training_data`), for so many trials at a time.

    Raises:
        UserError: for layers or a start that it does not hold, or a choice of samples that cannot be.
    """
    manifest = cache.manifest
    if config.reads_all_tokens:
        require_all_tokens(cache, f"--task {config.task}" if config.dense else f"--side {config.side}")
    layers = used_layers(manifest.layers, config)
    points = used_points(manifest.fields["tap"], manifest.layers, config, holds=manifest.holds)
    _require_start(cache, points)
    targets = targets_of(cache, config, names)
    chosen = selected(cache, config, targets)
    task = task or fitted(config, targets, chosen)
    samples, tail = np.concatenate([chosen.train, chosen.held_out]), frozen_tail(cache)
    pooling, views = pooling_of(tail.config), manifest.views
    pooled = len(samples) * views * len(points) * pooling.rows * manifest.width * 4  # bytes
    whole = not config.reads_all_tokens and not config.reads_last and manifest.holds == ALL
    once = whole and passes > 1 and pooled <= KEEP_SHARE * available_memory(placement.device)
    image = len(manifest.tokens["grid"]) == 2  # the layers of a video's side network want whole values
    folds = config.spec.folds_codes and not config.reads_all
    source: Source = open_cached(
        cache,
        points,
        placement,
        samples=samples,
        targets=targets.values,
        passes=1 if once else passes,
        seed=config.seed,
        batch_size=config.batch_size,
        rank=trials * (config.chosen_rank if image else manifest.width) if folds else 0,
        pooling=pooling if config.reads_all else None,
    )
    if once:
        source = PooledSource(source, pooling, samples, ids=cache.ids, views=views, seed=config.seed)
    return TrainingData(manifest, tail, layers, points, chosen, source, source, placement, task, targets)


def selected(cache: ActivationCache, config: TrainConfig, targets: TargetSet | None = None) -> Selection:
    """Choose the samples of a run from a cache.

    Args:
        cache: to learn from.
        config: the options.
        targets: what is learned of them; by default read from the cache.

    Raises:
        UserError: for a choice that cannot be.
    """
    targets = targets or targets_of(cache, config)
    return select(cache.samples, cache.sample_ids, targets, config, **named_sets(cache, config))


def _image_options(online: OnlineConfig, cache: ActivationCache | None) -> dict[str, Any]:
    """Give backbone and images as the options say; where they say nothing, images are decoded as for the cache."""
    images = {own.name: getattr(online, own.name) for own in options_of(ImageConfig)}
    if cache is not None:
        defaults = {own.name: own.default for own in options_of(ImageConfig)}
        kept = cache.manifest.pixels.options() | {"ignore_orientation": not cache.manifest.upright}
        images |= {name: value for name, value in kept.items() if images[name] == defaults[name]}
    return images


def from_backbone(
    online: OnlineConfig,
    config: TrainConfig,
    placement: Placement,
    *,
    cache: ActivationCache | None,
    passes: int = 1,
    backbone: "Backbone | None" = None,
    dataset: "Samples | None" = None,
    task: Task | None = None,
    names: Sequence[str] | None = None,
) -> TrainingData:
    """Learn from the backbone itself, or from it and a cache in every batch.

    Held-out samples are not augmented: their features come from the cache where there is one; else they are computed
    once and kept, where a quarter of the free memory holds them, or computed anew in every epoch.

    Args:
        online: which backbone and images, and what happens to them.
        config: the options.
        placement: where to compute, and where what is read of the cache is kept.
        cache: of the same samples.
        passes: as of :func:`open_training_data`, for the cache.
        backbone, dataset: loaded ones, in place of those named.
        task, names: as of :func:`open_training_data`.

    Raises:
        UserError: for options that cannot work, and for a cache of other samples, weights or preprocessing.
    """
    require_augmentable(get_task(config.task), online)
    given_targets = opened_targets(online, config, cache)
    from losa_cache.calibrate import fit_encoding
    from losa_cache.data.augment import BatchAugmentation
    from losa_cache.inputs import open_inputs
    from losa_cache.train.online import OnlineSource
    from losa_cache.train.pixels import PixelSource

    if cache is not None:
        require_all_tokens(cache, "a run with the backbone in the loop")
    stored = {} if cache is None else cache.manifest.fields
    sampling = stored.get("sampling", {"seed": config.seed, "limit": None})
    inputs = open_inputs(
        **(_image_options(online, cache) | given(backbone=backbone, dataset=dataset)),
        layers=config.layers if cache is None else choose_layers(config.layers, cache.manifest.layers),
        tap=online.tap or stored.get("tap", "block"),
        embedding=config.reads_embedding,
        precision=stored.get("precision", "bfloat16") if online.precision is None else online.precision,
        limit=sampling["limit"] if online.limit is None else online.limit,
        seed=sampling["seed"],
        device=placement.device,
    )
    manifest, running = inputs.manifest, inputs.backbone
    if cache is not None:
        require_same_images(cache, inputs)
    samples = np.arange(len(inputs.samples)) if cache is None else cache.samples
    if cache is None:
        targets = targets_of_images(inputs, config, given_targets, names)
    else:
        targets = targets_of(cache, config, names)
    named = named_sets_of_images(inputs.samples, config) if cache is None else named_sets(cache, config)
    chosen = select(samples, inputs.samples.ids, targets, config, **named)
    task = task or fitted(config, targets, chosen)
    layers = used_layers(manifest.layers, config)
    points = used_points(manifest.fields["tap"], manifest.layers, config)
    if cache is not None:
        _require_start(cache, points)
    workers = online.workers or default_workers()
    inputs.samples.require_augmentable(online.augment)
    pixels: dict[str, Any] = {
        "targets": targets.values,
        "workers": workers,
        "augment": online.augment,
        "batch_augmentation": BatchAugmentation(online.mixup, online.cutmix, online.reprob, len(targets.names)),
        "seed": config.seed,
    }
    if config.trains is not None:
        images = PixelSource(inputs, **pixels)
        size = len(chosen.held_out) * manifest.clips * prod(running.input.shape) * torch.float32.itemsize
        plain = _memoised(images, size, placement.device)
        return TrainingData(
            manifest, running.tail, layers, points, chosen, images, plain or images, placement, task, targets, running
        )
    encoding = fit_encoding(inputs, workers=workers) if cache is None else cache.encoding()
    encoded = (manifest if cache is None else cache.manifest).points
    fresh = OnlineSource(inputs, points, encoding, encoded, **pixels)
    tail = running.tail
    if cache is not None:
        alone = online.share == 1 and not config.reads_all  # a probe is fitted to plain training samples
        asked = chosen.held_out if alone else np.concatenate([chosen.train, chosen.held_out])
        cached = open_cached(
            cache,
            points,
            placement,
            samples=asked,
            targets=targets.values,
            passes=passes,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        outputs = task.outputs(targets.names)
        source = MixedSource(fresh, cached, online.share, lambda hard: task.soft(hard, outputs))
        return TrainingData(manifest, tail, layers, points, chosen, source, cached, placement, task, targets, running)
    held_out = len(chosen.held_out)
    size = held_out * len(points) * manifest.tokens["total"] * manifest.width * encoding.precision.dtype.itemsize
    kept = _memoised(fresh, size, placement.device)
    if held_out and kept is None:
        log.warning(
            "features of the %d held-out images (%s) are computed anew in every epoch: a cache of the data set "
            "(--cache) would serve them.",
            held_out,
            readable_bytes(size),
        )
    return TrainingData(manifest, tail, layers, points, chosen, fresh, kept or fresh, placement, task, targets, running)


def _memoised(source: Source, size: int, device: torch.device) -> MemoisedSource | None:
    """Keep the plain batches of a source, of so many bytes, where the host's memory holds them."""
    return MemoisedSource(source, device) if size <= KEEP_SHARE * available_memory(torch.device("cpu")) else None


def require_same_images(cache: ActivationCache, inputs: "Inputs") -> None:
    """Refuse a cache of other images, or of another backbone.

    Raises:
        UserError: naming the fields that differ, or the files.
    """
    from losa_cache.sources import Sources

    each = (inputs.manifest.fields, cache.manifest.fields)
    ours, theirs = ({name: fields.get(name) for name in SAME_SAMPLES} for fields in each)
    if wrong := differences(ours, theirs, ("of these images", "in the cache")):
        raise UserError(
            f"cache {str(cache.path)!r} is not of these images by this backbone: it differs in {'; '.join(wrong)}. "
            "Give the options it was extracted with, or another --cache."
        )
    if inputs.samples.stored:
        sources = Sources(cache.path, cache.layout, cache.manifest, inputs.samples)
        sources.require_unchanged(range(cache.layout.shards), renew=False)


def used_layers(available: list[int], config: TrainConfig) -> list[int]:
    """Block numbers that a run reads: some side networks look at the last only."""
    chosen = choose_layers(config.layers, available)
    return chosen[-1:] if config.reads_last else chosen


def used_points(tap: str, available: list[int], config: TrainConfig, *, holds: str = ALL) -> list[str]:
    """Points that a run reads, in the order of ``Batch.blocks``: of a cache that holds all tokens, or pooled rows.

    A network that looks at the last layer reads the last point there is, whatever tap and start: b_L, or what the tail
    makes of it. One that refines no y_0 reads what is tapped, and nothing behind it.
    """
    layers = used_layers(available, config)
    if config.reads_last:
        return stored_points(tap, layers, embedding=False, tokens=holds)[-1:]
    if not config.spec.start and not config.reads_all:
        return tapped_points(tap, layers)
    return input_points(tap, layers, start=config.start)


def require_all_tokens(cache: ActivationCache, reader: str) -> None:
    """Refuse a cache of pooled rows for what reads all tokens.

    Raises:
        UserError: naming that reader, and the cache that it needs.
    """
    if cache.manifest.holds != ALL:
        raise UserError(
            f"cache {str(cache.path)!r} holds pooled rows alone, and {reader} needs all tokens: extract the full cache "
            "(--tokens all)."
        )


def _require_start(cache: ActivationCache, points: list[str]) -> None:
    if EMBEDDING in points and EMBEDDING not in cache.manifest.points:
        raise UserError(
            f"cache {str(cache.path)!r} lacks the embedding, y_0 of --start embedding: extract it with --embedding, or "
            "start from the output."
        )


def frozen_tail(cache: ActivationCache) -> FrozenTail:
    """Rebuild the backbone's frozen tail from a cache.

    Raises:
        UserError: if its config or tensors are not as the protocol says.
    """
    try:
        config, tensors = cache.manifest.tail, cache.tail_tensors()
        with torch.device("meta"):  # what the config declares, before memory is asked for
            declared = {name: tuple(tensor.shape) for name, tensor in FrozenTail(config).state_dict().items()}
        if declared != (stored := {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
            wrong = min(name for name in declared | stored if declared.get(name) != stored.get(name))
            raise ValueError(f"{wrong} is of shape {stored.get(wrong)}, its config says {declared.get(wrong)}")
        return FrozenTail(config, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the frozen tail in {str(cache.path)!r} cannot be rebuilt ({error}): extract again."
        ) from error
