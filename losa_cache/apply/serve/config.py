"""The options of ``serve``."""

from dataclasses import dataclass
from typing import Annotated

from losa_cache.errors import UserError, require_counts
from losa_cache.machine.sizes import parse_bytes
from losa_cache.options import Option

LIMITS = "Limits"
PILLOW_REFUSES = 178_956_970  # pixels; Pillow takes more for a decompression bomb in any case


def _limit(text: str) -> Option:
    return Option(text, panel=LIMITS)


@dataclass(frozen=True)
class ServeConfig:
    """Where a server listens, how it batches, and what it refuses.

    Attributes:
        host, port: address; port 0 takes a free one.
        adapter_dir: folder from which requests may add adapters; without one, requests change nothing.
        weights: of the backbone, as of ``losa_cache.load_backbone``; by default what a cache of this user had, or
            timm's own.
        max_device_memory: of the backbone, as of ``losa_cache.ExtractConfig``.
        workers: decoding threads; by default one a core, at most 16.
        max_batch: images a forward pass.
        max_wait_ms: a batch that is not full starts when its first image has waited so long.
        queue: requests that are accepted and not yet answered; more get 503.
        timeout: seconds that the body of a request may take to arrive, and that its answer may take then.
        max_body: bytes of a request's body.
        max_pixels: of an image.

    Raises:
        UserError: for values that cannot work.
    """

    host: Annotated[
        str, Option("Address to listen on. 0.0.0.0 lets other machines in: anyone who reaches it can use it.")
    ] = "127.0.0.1"
    port: Annotated[int, Option("Port to listen on; 0: any free one.")] = 8000
    adapter_dir: Annotated[
        str | None,
        Option("Folder of adapters that requests may add; without it requests neither add nor remove any.", path=True),
    ] = None
    weights: Annotated[
        str | None,
        Option("File of the backbone's weights; default: where a cache of yours had them, or timm's.", path=True),
    ] = None
    max_device_memory: Annotated[
        str | int | None,
        Option("4GB, 1.5GiB: the most device memory to use; a larger backbone streams through the device."),
    ] = None
    workers: Annotated[int | None, Option("Threads that decode images; default: one a core.")] = None
    max_batch: Annotated[int, Option("Images in a forward pass, at most.")] = 32
    max_wait_ms: Annotated[float, Option("Milliseconds that an image waits for others to share its forward pass.")] = (
        5.0
    )
    queue: Annotated[int, _limit("Requests that are accepted and not answered yet; more are refused with 503.")] = 256
    timeout: Annotated[
        float, _limit("Seconds that a request's body may take to arrive, and that its answer may take then.")
    ] = 30.0
    max_body: Annotated[int, _limit("Bytes that the body of a request may have.")] = 32_000_000
    max_pixels: Annotated[
        int, _limit("Pixels that an image may have: larger ones, maybe decompression bombs, are not decoded.")
    ] = 50_000_000

    def __post_init__(self) -> None:
        require_counts(
            max_batch=self.max_batch,
            queue=self.queue,
            workers=self.workers,
            max_body=self.max_body,
            max_pixels=self.max_pixels,
        )
        if self.max_device_memory is not None:
            parse_bytes(self.max_device_memory)
        if not 0 <= self.port <= 65535:
            raise UserError(f"port is {self.port}: it must lie between 0 and 65535.")
        if not 0 <= self.max_wait_ms <= 60_000:
            raise UserError(f"max-wait-ms is {self.max_wait_ms:g}: it must lie between 0 and 60000.")
        if not 0 < self.timeout <= 3600:
            raise UserError(f"timeout is {self.timeout:g}: it must lie between 0 and 3600 seconds.")
        if self.max_pixels > PILLOW_REFUSES:
            raise UserError(f"max-pixels is {self.max_pixels}: Pillow decodes no image of more than {PILLOW_REFUSES}.")
