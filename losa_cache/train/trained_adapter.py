"""``load_adapter``: what a run has trained, as a module, for predictions and loops of one's own."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from losa_cache.cache.location import Location
from losa_cache.cache.manifest import UPRIGHT
from losa_cache.cache.registry import known_stores
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.data.pixel_rules import PixelRules
from losa_cache.errors import UserError
from losa_cache.machine.device import choose_device
from losa_cache.points import ALL, LAST
from losa_cache.sidenet import adapter_file
from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.adapter_folder import find_files, local_folder
from losa_cache.sidenet.operand import Block
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.tasks import CLASSIFICATION, Task, get_task
from losa_cache.train.compatible import misfit, of_tokens, require_fit, target_name
from losa_cache.train.config import TrainConfig
from losa_cache.train.evaluate_run import read_trained
from losa_cache.train.training_data import frozen_tail, used_points
from losa_cache.tuned.spec import Method


class TrainedAdapter(nn.Module):
    """A trained side network, the frozen tail and the classifier: block outputs to logits.

    Of a method that trains inside the backbone it has no side network: block outputs are those of the changed backbone
    (:func:`losa_cache.tuned.rebuild.trunk_of`), and the tail is the one that was trained.

    It comes in evaluation mode. In training mode a classifier over all layers (``--head all``) leaves out the logits of
    its probe, which is fitted and not trained.

    Attributes:
        adapter: the module inside.
        points: names of the blocks that :meth:`forward` takes, in their order: what to pass to
            ``losa_cache.batches(cache, points=...)``.
        config: what its ``config.json`` says.
        inside: what was trained inside the backbone, by the names of the changed trunk; empty without a method. It
            stays on the host.
    """

    def __init__(
        self,
        adapter: Adapter,
        points: list[str],
        config: dict[str, Any],
        inside: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.adapter, self.points, self.config, self.inside = adapter, points, config, dict(inside)

    @property
    def method(self) -> Method | None:
        """The method that trained inside the backbone; ``None``: a side network was trained."""
        own = self.config.get("method")
        return None if own is None else Method(**own)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.config["classes"])

    @property
    def task(self) -> Task:
        """What was learned: it turns outputs into predictions (:mod:`losa_cache.tasks`)."""
        return get_task(self.config.get("task", CLASSIFICATION)).restored(self.config.get("constants", {}))

    @property
    def upright(self) -> bool:
        """Whether the pictures it was trained on were turned as their metadata say."""
        return self.config["cache"]["fields"].get("orientation") == UPRIGHT

    @property
    def pixels(self) -> PixelRules:
        """How files that are not 8-bit RGB became the pixels that it was trained on.

        New pictures are refused where the extraction of its cache would have refused them.

        Raises:
            UserError: if its config names no such rules.
        """
        cache = self.config["cache"]
        return replace(PixelRules.from_fields(cache["fields"]), checked=cache.get("checked", False))

    @property
    def digest(self) -> str:
        """Digest of the trained tensors, by which two adapters are told apart."""
        if isinstance(known := self.config.get("sha256"), str):
            return known
        tensors = {name: value.cpu().contiguous() for name, value in self.adapter.trained_state().items()}
        return hashlib.sha256(save(tensors)).hexdigest()

    @property
    def features(self) -> int:
        """Length of the vector of :meth:`embed`."""
        return self.adapter.feature_length

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """Compute logits ``(batch, classes)`` from block outputs, each ``(batch, tokens, width)``.

        Of another task than classification they are its outputs (``losa_cache.tasks.Task.outputs``).

        Matrix products are in float32 unless you enter ``torch.autocast``; training and ``losa-cache eval`` enter it
        with bfloat16 where the device computes in bfloat16 and the cache is not in float32.
        """
        return self.adapter(blocks)

    def embed(self, blocks: Sequence[Block]) -> Tensor:
        """Pool the refined tokens y_k to a vector a sample, ``(batch, features)``, in float32 or wider.

        It is what the classifier reads of y_k: the backbone's own feature vector, ``width`` long, but refined. With a
        classifier over all layers it is the class token and the mean of the patches, one after the other.
        """
        return self.adapter.features(*self.adapter.refined(blocks))

    def around(self, tail: FrozenTail, *, tokens: int, holds: str = ALL) -> "TrainedAdapter":
        """Give the same adapter for other blocks of the same backbone; weights are shared, not copied.

        Args:
            tail: the backbone's, or a cache's.
            tokens: rows n of a block output.
            holds: whether these are ``all`` tokens, or ``pooled`` rows (``losa_cache.points.TOKENS``).
        """
        adapter = adapter_file.rebuild(self.adapter, self.config, tail, tokens=tokens)
        points = _points(self.config, self.config["layers"], holds)
        return TrainedAdapter(adapter, points, self.config, self.inside)


def load_adapter(
    path: str | Path, *, cache: str | Location | ActivationCache | None = None, device: str | None = None
) -> TrainedAdapter:
    """Load what a run has trained, as ``losa_cache.evaluate_run`` does.

    >>> model = lc.load_adapter("runs/digits-losa-1")  # doctest: +SKIP
    >>> with lc.batches("test.zarr", points=model.points, shuffle=False) as batches:  # doctest: +SKIP
    ...     for batch in batches:
    ...         predicted = model(batch.blocks).argmax(1)

    The probe of a classifier over all layers was fitted to all samples of the run in the end, also to those that were
    held out of training. So held-out samples of the run's own cache do not test it; a test cache does.

    Args:
        path: directory of a finished run, the folder ``adapter`` in it or a copy of that, or ``hub:owner/name``, which
            is fetched from the Hugging Face hub.
        cache: whose blocks it will be given, opened, its path or its URL: it is checked that they go together. Without
            one the blocks are taken to be as those it was trained on. Adapters of earlier versions have no frozen tail:
            theirs is the cache's, by default the one that the run was trained from or the most recent that fits.
        device: ``cpu``, ``cuda``, ``cuda:1``; by default the GPU where there is one.

    Raises:
        UserError: if there is no adapter, its files were altered, or the cache does not fit or is not found.
    """
    where, folder = choose_device(device), local_folder(path)
    config = adapter_file.load_adapter_config(folder)
    if cache is None and find_files(folder).stands_alone:
        adapter, inside = adapter_file.load_whole(folder, config)
        holds = config["cache"]["fields"].get("tokens", ALL)
        return TrainedAdapter(adapter, _points(config, config["layers"], holds), config, inside).to(where).eval()
    if cache is None:
        config, _, origin = read_trained(folder)
        opened = _fitting(folder, config, origin["cache"])
    else:
        opened = cache if isinstance(cache, ActivationCache) else open_cache(cache)
        require_fit(folder, f"cache {str(opened.path)!r}", _misfit(config, opened))
    manifest = opened.manifest
    adapter = adapter_file.load_adapter(folder, of_tokens(config, manifest), frozen_tail(opened))
    return TrainedAdapter(adapter, _points(config, manifest.layers, manifest.holds), config).to(where).eval()


def _points(config: dict[str, Any], layers: list[int], holds: str) -> list[str]:
    own = config["adapter"]
    task, head = config.get("task", CLASSIFICATION), own.get("head", LAST)
    reads = TrainConfig(task=task, head=head, side=own["side"], layers=config["layers"], start=config["start"])
    return used_points(config["tap"], layers, reads, holds=holds)


def _fitting(run: Path, config: dict[str, Any], trained_from: str | None) -> ActivationCache:
    """Open the cache that a run was trained from, or the most recent one that its adapter fits."""
    for cache in _candidates(trained_from):
        if not _misfit(config, cache):
            return cache
    gone = "" if trained_from is None else f" ({trained_from!r} is not there, or another one now)"
    raise UserError(
        f"no cache is known that run {str(run)!r} fits{gone}: pass cache=, the path of one that was extracted with the "
        "same backbone."
    )


def _misfit(config: dict[str, Any], cache: ActivationCache) -> str:
    """Compare what an adapter learned, too, where the cache has it: in order, since callers compare numbers."""
    return misfit(config, cache.manifest, cache.manifest.names_of(target_name(config)), in_order=True)


def _candidates(trained_from: str | None) -> Iterator[ActivationCache]:
    places: list[str | Location] = [] if trained_from is None else [trained_from]
    for path in [*places, *known_stores()]:
        try:
            yield open_cache(path)
        except UserError:
            continue
