"""What a server does, apart from HTTP's forms: it takes requests, has them decoded and computed, and keeps adapters."""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from losa_cache.apply.adapted import AdaptedModel
from losa_cache.apply.names import name_adapters
from losa_cache.apply.open import backbone_fields, require_one_backbone
from losa_cache.apply.serve.adapter_dir import AdapterDir
from losa_cache.apply.serve.answers import Answer, Answers, Asked, require_known
from losa_cache.apply.serve.batcher import Batcher
from losa_cache.apply.serve.config import ServeConfig
from losa_cache.apply.serve.metrics import Metrics
from losa_cache.apply.serve.pixels import Pixels
from losa_cache.apply.serve.refused import RefusedError, busy
from losa_cache.backbone import Backbone
from losa_cache.cache.identity import differences
from losa_cache.errors import UserError
from losa_cache.machine.device import default_workers
from losa_cache.text import shown
from losa_cache.train.trained_adapter import TrainedAdapter, load_adapter

SIDES = ("of the server", "of the adapter")
MOST_ADAPTERS, LONGEST_NAME = 1000, 200
"""That requests may add: the same folder can come under any number of names."""


class Service:
    """A backbone with adapters that answers requests. All but its threads belongs to one event loop.

    Args:
        backbone: on its device.
        adapters: at the start, by name: at least one.
        config: limits, and the folder of adapters.

    Attributes:
        config: of it.
        backbone: of it.
        metrics: what it counts.

    Raises:
        UserError: if the adapters do not fit the backbone, take clips of videos, or there is no such folder.
    """

    def __init__(self, backbone: Backbone, adapters: Mapping[str, TrainedAdapter], config: ServeConfig) -> None:
        self.config, self.backbone = config, backbone
        self._folder = None if config.adapter_dir is None else AdapterDir(config.adapter_dir)
        require_images(adapters)
        require_one_backbone(adapters)
        first = next(iter(adapters.values()))
        self._fields = backbone_fields(first)  # that later ones must share, too
        self._model = AdaptedModel(backbone, adapters)
        self._inside, self._adding = 0, asyncio.Lock()
        self.metrics = Metrics(waiting=lambda: self._inside, adapters=lambda: len(self._model.adapters))
        self._pixels = Pixels(backbone.input, first.pixels, turned=first.upright, max_pixels=config.max_pixels)
        self._decoding = ThreadPoolExecutor(config.workers or default_workers(), "decode")
        answers = Answers(self._model, self.metrics)
        self._batcher = Batcher(answers, most=config.max_batch, wait=config.max_wait_ms / 1000)

    @property
    def adapters(self) -> Mapping[str, TrainedAdapter]:
        """The adapters by name, as they are now."""
        return self._model.adapters

    @property
    def healthy(self) -> bool:
        """Whether it computes."""
        return self._batcher.alive

    @property
    def inside(self) -> int:
        """Requests that are accepted and not answered yet."""
        return self._inside

    async def answer(
        self, kind: str, read: Callable[[], Awaitable[bytes]], names: Sequence[str] | None, top_k: int
    ) -> Answer:
        """Answer a request.

        Args:
            kind: ``predict`` or ``embed``.
            read: gives the bytes of the image; it is asked when there is room for the request.
            names: of adapters; ``None``: all.
            top_k: answers of each adapter, at most.

        Raises:
            RefusedError: if there is no room or no time, an adapter is unknown, or the bytes are no image.
        """
        wanted = None if names is None else tuple(dict.fromkeys(names))
        require_known(wanted or (), self.adapters)
        if not self.adapters:
            raise RefusedError(404, "the server has no adapter now: add one with POST /adapters.")
        with self._admitted():
            raw = await read()
            try:
                async with asyncio.timeout(self.config.timeout):
                    pixels = await asyncio.get_running_loop().run_in_executor(self._decoding, self._pixels, raw)
                    del raw
                    answer: Answer = await asyncio.wrap_future(self._batcher.submit(kind, Asked(pixels, wanted, top_k)))
            except TimeoutError as error:
                raise busy(f"there was no answer within {self.config.timeout:g} seconds: try again later.") from error
            return answer

    @contextmanager
    def _admitted(self) -> Generator[None, None, None]:
        if self._inside >= self.config.queue:
            raise busy(f"{self._inside} requests are waiting, which is all that the server takes: try again soon.")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def add(self, folder: str, name: str | None) -> str:
        """Add an adapter from the folder of adapters.

        Args:
            folder: its path below that.
            name: that it gets; by default the folder's.

        Returns:
            the name.

        Raises:
            RefusedError: if there is none, its name is taken or unfit, or it does not go with the backbone.
        """
        own = self._required_folder()
        async with self._adding:  # one at a time: each is read into memory
            path = await asyncio.to_thread(own.find, folder)
            called = next(iter(name_adapters([str(path)]))) if name is None else name
            if called in ("", ".", "..") or len(called) > LONGEST_NAME or "/" in called or shown(called) != called:
                raise RefusedError(422, f"{called[:LONGEST_NAME]!r} can be no adapter's name: give another one.")
            if called in self.adapters:
                raise RefusedError(
                    409, f"an adapter {called!r} is there already: remove it first, or choose another name."
                )
            if len(self.adapters) >= MOST_ADAPTERS:
                raise RefusedError(409, f"there are {MOST_ADAPTERS} adapters, which is all that the server takes.")
            try:
                adapter = await asyncio.to_thread(load_adapter, path, device=str(self.backbone.device))
            except UserError as error:
                raise RefusedError(422, own.hide(str(error))) from error
            if wrong := differences(self._fields, backbone_fields(adapter), SIDES):
                raise RefusedError(409, f"adapter {called!r} does not fit the server's backbone: {'; '.join(wrong)}.")
            try:
                await asyncio.wrap_future(self._batcher.between(lambda: self._add(called, adapter)))
            except UserError as error:
                raise RefusedError(409, own.hide(str(error))) from error
        return called

    def _add(self, name: str, adapter: TrainedAdapter) -> None:
        """Add an adapter that computes: one that cannot would break the batches of the others.

        Raises:
            UserError: if it does not fit, or does not compute.
        """
        black = torch.zeros(1, *self.backbone.input.shape, dtype=torch.uint8)
        try:
            self._model.add(name, adapter, trial=black)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise UserError(f"adapter {name!r} cannot be computed ({type(error).__name__}): save it anew.") from error

    async def remove(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            RefusedError: if there is none of that name, or requests may change nothing.
        """
        self._required_folder()
        require_known([name], self.adapters)
        try:
            await asyncio.wrap_future(self._batcher.between(lambda: self._model.remove(name)))
        except UserError as error:  # another request was faster
            raise RefusedError(404, str(error)) from error

    def _required_folder(self) -> AdapterDir:
        if self._folder is None:
            raise RefusedError(
                403, "the adapters of this server are fixed: start it with --adapter-dir to change them."
            )
        return self._folder

    def close(self) -> None:
        """Finish what was accepted, and end its threads."""
        self._decoding.shutdown()
        self._batcher.close()


def require_images(adapters: Mapping[str, TrainedAdapter]) -> None:
    """Refuse adapters of clips of videos.

    Raises:
        UserError: naming the first one.
    """
    for name, adapter in adapters.items():
        fields: dict[str, Any] = adapter.config["cache"]["fields"]
        if (frames := fields["input"].get("frames", 1)) > 1:
            raise UserError(
                f"adapter {name!r} takes clips of {frames} frames, and a server takes images: use losa-cache predict."
            )
