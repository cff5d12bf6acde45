"""A cache's samples, without the backbone, at the speed at which training reads them."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from losa_cache.apply.predict.answers import Answering, Found
from losa_cache.apply.predict.table import plain
from losa_cache.cache.store import ActivationCache
from losa_cache.errors import UserError
from losa_cache.train.cached import open_cached
from losa_cache.train.compatible import misfit
from losa_cache.train.placement import Placement
from losa_cache.train.sampler import requests_in_order
from losa_cache.train.trained_adapter import TrainedAdapter
from losa_cache.train.training_data import frozen_tail


def fitted(adapters: Mapping[str, TrainedAdapter], cache: ActivationCache) -> dict[str, TrainedAdapter]:
    """Put adapters around a cache's block outputs. The cache may be of other classes than they know.

    Raises:
        UserError: naming the adapter that does not fit it, and the fields that differ.
    """
    manifest, tail = cache.manifest, frozen_tail(cache)
    for name, adapter in adapters.items():
        if adapter.method is not None:
            raise UserError(
                f"adapter {name!r} was trained inside the backbone ({adapter.method}), which cache {str(cache.path)!r} "
                "cannot replace: predict the images themselves."
            )
        if wrong := misfit(adapter.config, manifest, None):
            raise UserError(f"adapter {name!r} does not fit cache {str(cache.path)!r}: {wrong}.")
    tokens, holds = manifest.tokens["total"], manifest.holds
    return {name: own.around(tail, tokens=tokens, holds=holds) for name, own in adapters.items()}


@torch.inference_mode()
def answer_cache(
    cache: ActivationCache,
    samples: NDArray[np.int64],
    adapters: Mapping[str, TrainedAdapter],
    answering: Answering,
    *,
    embed: bool,
    batch_size: int,
    device: torch.device,
) -> Iterator[Found]:
    """Answer samples of a cache, batch by batch; plain images, and all clips of videos.

    Args:
        cache: to read.
        samples: their numbers.
        adapters: that are fitted to it.
        answering: makes numbers of what they give.
        embed: whether feature vectors are wanted.
        batch_size: samples a batch.
        device: to compute on.

    Yields:
        rows and skipped samples of each batch.
    """
    manifest, placement = cache.manifest, Placement(device)
    wanted = {point for adapter in adapters.values() for point in adapter.points}
    points = [point for point in manifest.points if point in wanted]
    placed = {name: adapter.to(device).eval() for name, adapter in adapters.items()}
    autocast, clips = placement.autocast(manifest.precision), manifest.clips
    source = open_cached(cache, points, placement, samples=samples, passes=1, batch_size=batch_size)
    try:
        requests = requests_in_order(samples, batch_size, clips=clips)
        for request, batch in zip(requests, source.batches(requests), strict=True):
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                outputs = {}
                for name, adapter in placed.items():
                    blocks = [batch.blocks[points.index(point)] for point in adapter.points]
                    outputs[name] = (adapter.embed(blocks) if embed else adapter(blocks)).float()
            answering.add(outputs)
            if request.view == clips - 1:
                yield answering.found(list(map(plain, batch.ids)), clips, {})
    finally:
        source.close()
