"""From adapters' names to a server that runs until it is told to stop."""

import logging
import math
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import uvicorn

from losa_cache.apply.open import backbone_for, require_one_backbone
from losa_cache.apply.serve.app import make_app
from losa_cache.apply.serve.config import ServeConfig
from losa_cache.apply.serve.listen import is_local, start, url_of
from losa_cache.apply.serve.service import Service, require_images
from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device
from losa_cache.machine.sizes import parse_bytes
from losa_cache.stop import Signals
from losa_cache.train.trained_adapter import TrainedAdapter, load_adapter

log = logging.getLogger(__name__)

CONNECTIONS = 256  # that may be open beside the requests that are accepted


def open_service(places: Mapping[str, str], config: ServeConfig, *, device: str | None = None) -> Service:
    """Load adapters and the backbone that they share.

    Args:
        places: of adapters, by name (``losa_cache.apply.names.name_adapters``).
        config: of the server.
        device: ``cpu``, ``cuda``, ``cuda:1``; by default the GPU where there is one.

    Raises:
        UserError: if one cannot be loaded, or they do not go together.
    """
    keep_freed_memory()
    adapters: dict[str, TrainedAdapter] = {name: load_adapter(own, device=device) for name, own in places.items()}
    require_images(adapters)
    require_one_backbone(adapters)
    memory = config.max_device_memory
    backbone = backbone_for(
        adapters,
        weights=config.weights,
        device=choose_device(device),
        max_device_memory=None if memory is None else parse_bytes(memory),
    )
    return Service(backbone, adapters, config)


def run(service: Service, listener: socket.socket, *, begun: Callable[[str], None], ending: Callable[[], None]) -> None:
    """Answer requests until a signal says stop; then answer those that were accepted, and return.

    Args:
        service: that answers. It is closed in the end.
        listener: its address (``losa_cache.apply.serve.listen.bind``).
        begun: is told the URL once clients can connect.
        ending: is called when it begins to stop.

    Raises:
        UserError: if the address has been taken meanwhile.
    """
    try:
        start(listener)
        if not is_local(listener):
            log.warning("whoever reaches this machine's port can use the server: it asks for no password.")
        server = make_server(service, local=is_local(listener))

        def stop() -> None:
            server.should_exit = True
            ending()

        with Signals(stop):
            begun(url_of(listener))
            server.run(sockets=[listener])
    finally:
        service.close()


def make_server(service: Service, *, local: bool) -> uvicorn.Server:
    """Make the server that speaks HTTP; it takes no signals."""
    config = service.config
    return _Server(
        uvicorn.Config(
            make_app(service, local=local),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=config.queue + CONNECTIONS,
            timeout_graceful_shutdown=math.ceil(config.timeout) + 5,
        )
    )


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to ``losa_cache.stop``: the first ends it well, a second one at once."""
        yield
