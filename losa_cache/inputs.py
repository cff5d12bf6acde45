"""A backbone and a data set, opened and described: what decides the numbers, whether they are cached or not."""

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from losa_cache.backbone import Backbone, load_backbone
from losa_cache.backbone.pooled import PooledBackbone
from losa_cache.cache.manifest import UPRIGHT, Manifest
from losa_cache.cache.precision import Precision, get_precision
from losa_cache.cache.precision_names import require_precision
from losa_cache.data.clips import Clip
from losa_cache.data.decode import Decoder
from losa_cache.data.load import load_request, request_of_options
from losa_cache.data.names import NVJPEG, PILLOW
from losa_cache.data.nvjpeg import require_decoder, require_files
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError
from losa_cache.inputs_config import InputsConfig
from losa_cache.layers import choose_layers
from losa_cache.machine.memory import available_memory
from losa_cache.options import given, with_options
from losa_cache.points import ALL, POOLED
from losa_cache.software import software

DEVICE_SHARE = 0.8  # of a device's free memory: larger weights are streamed, and take so much


@dataclass(frozen=True)
class Inputs:
    """What stage one, or an online run, works on.

    Attributes:
        backbone: on its device.
        samples: in the order of a cache's samples.
        manifest: what a cache of them says of itself.
        compute: dtype of the forward's matrix products.
    """

    backbone: Backbone
    samples: Samples
    manifest: Manifest
    compute: torch.dtype

    def decoder(self, workers: int) -> Decoder:
        """Decode views of the samples as a cache of them holds them, with so many threads or processes."""
        fields = self.manifest.fields
        return Decoder(
            self.samples,
            self.backbone.input,
            workers=workers,
            augment=fields["views"]["augment"],
            seed=fields["sampling"]["seed"],
            clips=self.manifest.clips,
            pin=self.backbone.device.type == "cuda",
            turn=self.manifest.upright,
            on=self.decodes_on,
        )

    def numbered_as(self, fingerprint: str) -> "Inputs":
        """Give these inputs with the samples of :meth:`losa_cache.data.samples.Samples.numbered_as`."""
        samples = self.samples.numbered_as(fingerprint)
        fields = self.manifest.fields
        fields = fields | {"dataset": fields["dataset"] | {"fingerprint": samples.fingerprint}}
        return replace(
            self, samples=samples, manifest=replace(self.manifest, fields=fields, classes=[*samples.classes])
        )

    @property
    def decodes_on(self) -> torch.device | None:
        """The device that decodes JPEG files, unless Pillow does."""
        return self.backbone.device if self.manifest.fields.get("decoder") == NVJPEG else None


def open_inputs(
    backbone: str | Backbone | None = None,
    dataset: str | Samples | None = None,
    *,
    device: torch.device,
    config: InputsConfig | None = None,
    max_device_memory: int | None = None,
    **options: Any,
) -> Inputs:
    """Load what is given by name, order the samples, choose the layers.

    A backbone larger than the device's free memory is streamed through it even if ``max_device_memory`` (bytes) is not
    given; a loaded one that is streamed already stays so.

    Args:
        backbone, dataset: names or loaded objects, in place of those of ``config``.
        device: where to compute.
        config: the options.
        max_device_memory: bytes that backbone and forward pass may take of the device.
        options: fields of :class:`InputsConfig`, over those of ``config``.

    Raises:
        UserError: for any of them that cannot work.
    """
    config = with_options(InputsConfig, config, given(backbone=backbone, dataset=dataset) | options)
    chosen = precision_for(config.precision, config.tokens)
    require_decoder(config.decoder, device, augment=config.augment, budget=max_device_memory)
    samples = load_given(config)
    require_files(config.decoder, samples)
    trunk, budget = _load_backbone(config, device, max_device_memory)
    require_decoder(config.decoder, device, augment=config.augment, budget=budget)
    if config.augment is not None:
        trunk.input.augmentation(config.augment)  # an unknown one is refused before anything is written
    samples.require_clips(Clip(trunk.input.frames, trunk.input.stride, count=config.clips))
    samples.require_augmentable(config.augment)
    chosen.require(trunk.width)
    trunk.to(device, budget=budget)
    if config.tap != "block":
        trunk.require_branches()
    if config.tokens == POOLED:
        trunk = PooledBackbone(trunk)
    limit = config.limit if config.limit is not None and config.limit < len(samples) else None
    samples = samples.select(permute(len(samples), seed=config.seed, limit=config.limit))
    compute = trunk.compute_dtype(config.precision)
    manifest = describe(
        trunk,
        samples,
        layers=choose_layers(config.layers, range(1, trunk.depth + 1)),
        tap=config.tap,
        embedding=config.embedding,
        tokens=config.tokens,
        precision=config.precision,
        compute=compute,
        seed=config.seed,
        limit=limit,
        views=config.views,
        augment=config.augment,
        clips=config.clips,
        decoder=config.decoder,
        upright=not config.ignore_orientation,
    )
    return Inputs(trunk, samples, manifest, compute)


def load_given(config: InputsConfig) -> Samples:
    """Load the data set that options name, or give the loaded one.

    Raises:
        UserError: if it cannot be loaded, or was loaded by other rules of pixels.
    """
    if not isinstance(config.dataset, str):
        if (asked := config.pixels.fields()) and asked != config.dataset.pixels.fields():
            raise UserError(
                f"data set {config.dataset.name!r} is loaded already, by other rules of pixels: leave out "
                f"{' and '.join(asked)}, or load it by load_samples(..., pixels=...)."
            )
        return config.dataset
    return load_request(*request_of_options(config))


def _load_backbone(config: InputsConfig, device: torch.device, budget: int | None) -> tuple[Backbone, int | None]:
    """Load a backbone, and say how many bytes of the device it may take if it is streamed."""
    backbone = config.backbone
    if isinstance(backbone, str):
        size = os.path.getsize(config.weights) if os.path.isfile(config.weights) else 0
        budget = budget or _needed_budget(size, device)
        backbone = load_backbone(
            backbone,
            weights=config.weights,
            img_size=config.img_size,
            resize=config.resize,
            normalise=config.normalise,
            seed=config.seed,
            frames=config.frames,
            stride=config.stride,
            inflation=config.inflation,
            mapped=budget is not None,
        )
    if budget is None and backbone.streamed is not None:
        budget = backbone.streamed.budget
    if budget is None and device.type != "cpu":  # on the CPU it is in memory already
        budget = _needed_budget(backbone.weight_bytes, device)
    return backbone, budget


def precision_for(name: str, tokens: str) -> Precision:
    """Look up the precision of a cache of all tokens, or of pooled rows.

    Raises:
        UserError: as of :func:`losa_cache.cache.precision_names.require_precision`.
    """
    require_precision(name, tokens=tokens)
    return get_precision(name)


def _needed_budget(weights: int, device: torch.device) -> int | None:
    """Give a budget for a backbone of so many bytes if it does not fit a device, else ``None``."""
    room = int(DEVICE_SHARE * available_memory(device))
    return room if weights > room else None


def permute(count: int, *, seed: int, limit: int | None) -> NDArray[np.int64]:
    """Draw the order of the samples, so that contiguous reads are already shuffled; keep the first ``limit``."""
    return np.random.default_rng(seed).permutation(count)[:limit].astype(np.int64)


def describe(
    backbone: Backbone,
    samples: Samples,
    *,
    layers: list[int],
    tap: str,
    embedding: bool,
    precision: str,
    compute: torch.dtype,
    seed: int,
    limit: int | None,
    views: int,
    augment: str | None,
    clips: int,
    tokens: str = ALL,
    decoder: str = PILLOW,
    upright: bool = True,
) -> Manifest:
    """Write down everything that decides the numbers, and what stage two needs to know."""
    newer: dict[str, Any] = {}  # what older caches do not say is the default, so their identities stay
    if decoder != PILLOW:
        newer["decoder"] = decoder
    if upright and samples.stored:  # pictures in memory have no orientation
        newer["orientation"] = UPRIGHT
    if tokens != ALL:
        newer["tokens"] = tokens
    if pixels := samples.pixels.fields():
        newer["pixels"] = pixels
    return Manifest(
        fields={
            "backbone": {"name": backbone.name, "weights": backbone.weights},
            "input": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(backbone.input).items()},
            "tap": tap,
            "layers": layers,
            "embedding": embedding,
            "precision": precision,
            "compute": str(compute).removeprefix("torch."),
            "dataset": {"name": samples.name, "split": samples.split, "fingerprint": samples.fingerprint},
            "sampling": {"seed": seed, "limit": limit},
            "views": {"count": max(views, clips), "augment": augment, "clips": clips},
            **newer,
        },
        tokens={"total": backbone.tokens, "prefix": backbone.prefix_tokens, "grid": list(backbone.grid)},
        width=backbone.width,
        depth=backbone.depth,
        classes=list(samples.classes),
        tail=backbone.tail.config,
        software=software(),
    )
