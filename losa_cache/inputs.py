"""A backbone and a data set, opened and described: what decides the numbers, whether they are cached or not."""

import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from losa_cache.backbone import Backbone, load_backbone
from losa_cache.backbone.pooled import PooledBackbone
from losa_cache.cache.manifest import UPRIGHT, Manifest
from losa_cache.cache.precision import Precision, get_precision
from losa_cache.data.clips import Clip
from losa_cache.data.decode import Decoder
from losa_cache.data.load import load_samples
from losa_cache.data.nvjpeg import NVJPEG, PILLOW, require_decoder, require_files
from losa_cache.data.samples import Samples
from losa_cache.errors import UserError, require_counts, require_seed
from losa_cache.folders import find_home, given_path
from losa_cache.layers import choose_layers
from losa_cache.machine.memory import available_memory
from losa_cache.points import ALL, POOLED, require_tap, require_tokens

OF_POOLED = ("float32", "float16", "bfloat16", "int8")
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

    @property
    def decodes_on(self) -> torch.device | None:
        """The device that decodes JPEG files, unless Pillow does."""
        return self.backbone.device if self.manifest.fields.get("decoder") == NVJPEG else None


def open_inputs(
    backbone: str | Backbone,
    dataset: str | Samples,
    *,
    device: torch.device,
    split: str = "train",
    data_dir: str | Path | None = None,
    weights: str | Path = "pretrained",
    img_size: int | None = None,
    resize: str = "crop",
    layers: str | int | list[int] = "all",
    tap: str = "block",
    embedding: bool = False,
    tokens: str = ALL,
    precision: str = "bfloat16",
    limit: int | None = None,
    seed: int = 0,
    views: int = 1,
    augment: str | None = None,
    clips: int = 1,
    frames: int | None = None,
    stride: int | None = None,
    inflation: str = "central",
    decoder: str = PILLOW,
    ignore_orientation: bool = False,
    max_device_memory: int | None = None,
) -> Inputs:
    """Load what is given by name, order the samples, choose the layers.

    Options are those of ``losa_cache.extract``; ``frames``, ``stride`` and ``inflation`` those of ``load_backbone``.

    A backbone larger than the device's free memory is streamed through it even if ``max_device_memory`` (bytes) is not
    given; a loaded one that is streamed already stays so.

    Raises:
        UserError: for any of them that cannot work.
    """
    require_tap(tap)
    require_tokens(tokens)
    chosen = precision_for(precision, tokens)
    require_counts(views=views, limit=limit, clips=clips)
    require_seed(seed)
    if views > 1 and augment is None:
        raise UserError(f"views is {views}: say with --augment how the views after the plain one are drawn.")
    if views > 1 and clips > 1:
        raise UserError(
            f"views is {views} and clips is {clips}: rows are augmented views of images or clips of videos."
        )
    if views == 1 and augment is not None:
        raise UserError(f"augment is {augment!r}, but the first view is plain: ask for --views of at least 2.")
    require_decoder(decoder, device, augment=augment, budget=max_device_memory)
    if isinstance(dataset, str):
        folder = given_path(data_dir) if data_dir is not None else None
        home = find_home()
        dataset = load_samples(dataset, split=split, data_dir=folder, home=home and home / "data")
    require_files(decoder, dataset)
    budget = max_device_memory
    if isinstance(backbone, str):
        size = os.path.getsize(weights) if os.path.isfile(weights) else 0
        budget = budget or _needed_budget(size, device)
        backbone = load_backbone(
            backbone,
            weights=weights,
            img_size=img_size,
            resize=resize,
            seed=seed,
            frames=frames,
            stride=stride,
            inflation=inflation,
            mapped=budget is not None,
        )
    if budget is None and backbone.streamed is not None:
        budget = backbone.streamed.budget
    if budget is None and device.type != "cpu":  # on the CPU it is in memory already
        budget = _needed_budget(backbone.weight_bytes, device)
    require_decoder(decoder, device, augment=augment, budget=budget)
    if augment is not None:
        backbone.input.augmentation(augment)  # an unknown one is refused before anything is written
    dataset.require_clips(Clip(backbone.input.frames, backbone.input.stride, count=clips))
    dataset.require_augmentable(augment)
    chosen.require(backbone.width)
    backbone.to(device, budget=budget)
    if tap != "block":
        backbone.require_branches()
    if tokens == POOLED:
        backbone = PooledBackbone(backbone)
    samples = dataset.select(permute(len(dataset), seed=seed, limit=limit))
    compute = backbone.compute_dtype(precision)
    manifest = describe(
        backbone,
        samples,
        layers=choose_layers(layers, range(1, backbone.depth + 1)),
        tap=tap,
        embedding=embedding,
        tokens=tokens,
        precision=precision,
        compute=compute,
        seed=seed,
        limit=limit if limit is not None and limit < len(dataset) else None,
        views=views,
        augment=augment,
        clips=clips,
        decoder=decoder,
        upright=not ignore_orientation,
    )
    return Inputs(backbone, samples, manifest, compute)


def precision_for(name: str, tokens: str) -> Precision:
    """Look up the precision of a cache of all tokens, or of pooled rows.

    Raises:
        UserError: for an unknown one; and for one of pooled rows that is coarser than int8: their error is not averaged
            over tokens, and there is little to save.
    """
    precision = get_precision(name)
    if tokens == POOLED and name not in OF_POOLED:
        raise UserError(
            f"precision is {name!r}, but pooled rows are few and small: choose one of {', '.join(OF_POOLED)}."
        )
    return precision


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
    newer = {} if decoder == PILLOW else {"decoder": decoder}  # the identities of older caches stay as they are
    if upright and samples.file is not None:  # pictures in memory have no orientation
        newer["orientation"] = UPRIGHT
    if tokens != ALL:
        newer["tokens"] = tokens
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
        software={name: version(name) for name in ("losa-cache", "torch", "timm", "zarr")},
    )
