"""``load_adapter``: a finished run's adapter as a module, for predictions and loops of one's own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from losa_cache.cache.location import Location
from losa_cache.cache.registry import known_stores
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.errors import UserError
from losa_cache.machine.device import choose_device
from losa_cache.sidenet import adapter_file
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.operand import Block
from losa_cache.train.config import TrainConfig
from losa_cache.train.evaluate_run import misfit, of_tokens, read_trained, require_fit
from losa_cache.train.training_data import frozen_tail, used_points


class TrainedAdapter(nn.Module):
    """A trained side network, the frozen tail and the classifier: block outputs to logits.

    It comes in evaluation mode. In training mode a classifier over all layers (``--head all``) leaves out the logits of
    its probe, which is fitted and not trained.

    Attributes:
        adapter: the module inside.
        points: names of the blocks that :meth:`forward` takes, in their order: what to pass to
            ``losa_cache.batches(cache, points=...)``.
        classes: names of the classes, in the order of the logits.
    """

    def __init__(self, adapter: Adapter, points: list[str], classes: list[str]) -> None:
        super().__init__()
        self.adapter, self.points, self.classes = adapter, points, classes

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Compute logits ``(batch, classes)`` from block outputs, each ``(batch, tokens, width)``.

        Of another task than classification they are its outputs (``losa_cache.tasks.Task.outputs``).

        Matrix products are in float32 unless you enter ``torch.autocast``; training and ``losa-cache eval`` enter it
        with bfloat16 where the device computes in bfloat16 and the cache is not in float32.
        """
        return self.adapter(blocks)


def load_adapter(
    path: str | Path, *, cache: str | Location | ActivationCache | None = None, device: str | None = None
) -> TrainedAdapter:
    """Load what a run has trained, as ``losa_cache.evaluate_run`` does.

    >>> model = lc.load_adapter("runs/digits-losa-1", cache="test.zarr")  # doctest: +SKIP
    >>> with lc.batches("test.zarr", points=model.points, shuffle=False) as batches:  # doctest: +SKIP
    ...     for batch in batches:
    ...         predicted = model(batch.blocks).argmax(1)

    The probe of a classifier over all layers was fitted to all samples of the run in the end, also to those that were
    held out of training. So held-out samples of the run's own cache do not test it; a test cache does.

    Args:
        path: directory of a finished run.
        cache: whose blocks it will be given, opened, its path or its URL. It is also where the frozen tail of the
            backbone comes from. By default the cache that the run was trained from; where that is gone, or the run was
            trained online, the most recent cache of yours that fits.
        device: ``cpu``, ``cuda``, ``cuda:1``; by default the GPU where there is one.

    Raises:
        UserError: if this is no finished run, its files were altered, or the cache does not fit or is not found.
    """
    where, run = choose_device(device), Path(path)
    config, _, origin = read_trained(run)
    if cache is None:
        opened = _fitting(run, config, origin["cache"])
    else:
        opened = cache if isinstance(cache, ActivationCache) else open_cache(cache)
        require_fit(run, f"cache {str(opened.path)!r}", config, opened.manifest)
    manifest = opened.manifest
    adapter = adapter_file.load_adapter(run, of_tokens(config, manifest), frozen_tail(opened))
    reads = TrainConfig(side=config["adapter"]["side"], layers=config["layers"], start=config["start"])
    points = used_points(config["tap"], manifest.layers, reads, holds=manifest.holds)
    return TrainedAdapter(adapter, points, config["classes"]).to(where).eval()


def _fitting(run: Path, config: dict[str, Any], trained_from: str | None) -> ActivationCache:
    """Open the cache that a run was trained from, or the most recent one that its adapter fits."""
    for cache in _candidates(trained_from):
        if not misfit(config, cache.manifest):
            return cache
    gone = "" if trained_from is None else f" ({trained_from!r} is not there, or another one now)"
    raise UserError(
        f"no cache is known that run {str(run)!r} fits{gone}: pass cache=, the path of one that was extracted with the "
        "same backbone."
    )


def _candidates(trained_from: str | None) -> Iterator[ActivationCache]:
    places: list[str | Location] = [] if trained_from is None else [trained_from]
    for path in [*places, *known_stores()]:
        try:
            yield open_cache(path)
        except UserError:
            continue
