"""Adapters and the backbone that they share, opened by what the adapters say of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from losa_cache.apply.names import name_adapters
from losa_cache.backbone import Backbone, load_backbone
from losa_cache.backbone.names import CHECKPOINT, VIDEO
from losa_cache.backbone.vivit import CENTRAL, INFLATIONS
from losa_cache.cache.identity import differences
from losa_cache.cache.registry import known_stores, knows
from losa_cache.cache.store import open_cache
from losa_cache.data.transforms import InputSpec
from losa_cache.errors import UserError
from losa_cache.inputs_config import PRETRAINED, RANDOM
from losa_cache.outside import UnreadableError, fit
from losa_cache.train.trained_adapter import TrainedAdapter, load_adapter


def open_adapters(texts: Sequence[str], *, device: str | None = None) -> dict[str, TrainedAdapter]:
    """Load adapters by what they are called on the command line (:func:`losa_cache.apply.names.name_adapters`).

    Raises:
        UserError: for one that cannot be loaded, or two of one name.
    """
    return {name: load_adapter(place, device=device) for name, place in name_adapters(texts).items()}


def backbone_fields(adapter: TrainedAdapter) -> dict[str, Any]:
    """Give what an adapter says of the backbone and of what the backbone is given: name, weights, preprocessing."""
    fields = adapter.config["cache"]["fields"]
    return {name: fields.get(name) for name in ("backbone", "input", "orientation", "pixels")}


def require_one_backbone(adapters: Mapping[str, TrainedAdapter]) -> None:
    """Refuse adapters of different backbones, or of different preprocessing.

    Raises:
        UserError: naming two of them and the fields that differ.
    """
    (first, ours), *others = adapters.items()
    for name, theirs in others:
        if wrong := differences(backbone_fields(ours), backbone_fields(theirs), ("of the first", "of the second")):
            raise UserError(
                f"adapters {first!r} and {name!r} cannot share a backbone: they differ in {'; '.join(wrong)}. Use them "
                "one at a time."
            )


def backbone_for(
    adapters: Mapping[str, TrainedAdapter],
    *,
    weights: str | None = None,
    device: torch.device,
    max_device_memory: int | None = None,
) -> Backbone:
    """Load the backbone that adapters were trained on.

    Args:
        adapters: by name; of one backbone.
        weights: a file, ``pretrained`` or ``random``; by default what a cache of yours was extracted with, if it was of
            this backbone, or else timm's own download.
        device: to put it on.
        max_device_memory: bytes of the device that it may take; more of it is streamed through the device.

    Raises:
        UserError: if they are of different backbones, or the weights are not those that the adapters were trained on.
    """
    require_one_backbone(adapters)
    name, adapter = next(iter(adapters.items()))
    fields = adapter.config["cache"]["fields"]
    wanted = fields["backbone"]["weights"]
    tried = ""
    for source in [weights] if weights is not None else _sources(adapter):
        for inflation in INFLATIONS if fields["backbone"]["name"].startswith(VIDEO) else (CENTRAL,):
            backbone = _load(adapter, source, inflation, mapped=max_device_memory is not None)
            if backbone.weights == wanted:
                backbone.input = _input_of(adapter)
                return backbone.to(device, budget=max_device_memory)
            tried = source
    raise UserError(
        f"adapter {name!r} was trained on other weights of {fields['backbone']['name']!r} than {tried!r}: they differ "
        f"in backbone.weights ({wanted[:20]}... there). Name the file of those with --weights."
    )


def _sources(adapter: TrainedAdapter) -> Iterator[str]:
    """Say where the weights may be had: from where a cache of this user had them, or from timm."""
    backbone = adapter.config["cache"]["fields"]["backbone"]
    if backbone["weights"].startswith(f"{RANDOM}:"):
        yield RANDOM
        return
    for path in known_stores():
        try:
            cache = open_cache(path)
        except UserError:
            continue
        manifest = cache.manifest
        ours = manifest.fields["backbone"] == backbone and knows(cache.path, manifest)  # others may name any file
        if ours and (options := manifest.options) and options.get("weights"):
            yield str(options["weights"])
            return
    yield PRETRAINED


def _load(adapter: TrainedAdapter, weights: str, inflation: str, *, mapped: bool) -> Backbone:
    fields = adapter.config["cache"]["fields"]
    name, spec = fields["backbone"]["name"], _input_of(adapter)
    made = name.startswith(VIDEO)
    if not made and spec.frames > 1:  # its checkpoint says how many frames, how large
        return load_backbone(CHECKPOINT, weights=weights)
    clip: dict[str, Any] = {"frames": spec.frames, "stride": spec.stride, "inflation": inflation} if made else {}
    return load_backbone(
        name, weights=weights, img_size=spec.size[2], seed=fields["sampling"]["seed"], mapped=mapped, **clip
    )


def _input_of(adapter: TrainedAdapter) -> InputSpec:
    """Give the preprocessing that the adapter was trained with."""
    try:
        return fit(adapter.config["cache"]["fields"]["input"], InputSpec)
    except UnreadableError as error:
        raise UserError(f"the adapter's config has no preprocessing that can be used (input: {error}).") from error


def require_fits(name: str, adapter: TrainedAdapter, backbone: Backbone) -> None:
    """Refuse an adapter of another backbone.

    Raises:
        UserError: naming the fields that differ.
    """
    fields, shape = adapter.config["cache"]["fields"], adapter.config["adapter"]
    theirs = {"backbone": fields["backbone"], "input": fields["input"], "width": shape["width"]}
    ours: dict[str, Any] = {
        "backbone": {"name": backbone.name, "weights": backbone.weights},
        "input": asdict(backbone.input),
        "width": backbone.width,
    }
    if adapter.task.dense or not adapter.adapter.spec.pooled_rows:
        theirs["tokens"], ours["tokens"] = shape["tokens"], backbone.tokens
    wrong = differences(theirs, ours, ("of the adapter", "of the backbone"))
    if missing := [layer for layer in adapter.config["layers"] if layer > backbone.depth]:
        wrong.append(f"layers ({missing} are not among {backbone.depth})")
    if wrong:
        raise UserError(f"adapter {name!r} does not fit the backbone: {'; '.join(wrong)}.")
    if adapter.config["tap"] != "block":
        backbone.require_branches()
