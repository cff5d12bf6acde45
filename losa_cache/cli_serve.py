"""The command line's ``serve``: parse, call, print."""

from contextlib import closing
from typing import Annotated

import typer

from losa_cache.apply.names import name_adapters
from losa_cache.apply.serve.config import ServeConfig
from losa_cache.cli_common import Device, all_expanded
from losa_cache.cli_options import takes_options


@takes_options
def serve(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER...",
            help="Adapters of one backbone: finished runs, adapters' folders or hub:owner/name; NAME=ADAPTER gives one "
            "another name.",
            callback=all_expanded,
        ),
    ],
    config: ServeConfig,
    device: Device = None,
) -> None:
    """Answer requests over HTTP: predictions and feature vectors of many adapters from one pass of their backbone.

    The page at the server's address takes an image and shows the predictions; /docs lists all requests.
    """
    from losa_cache.apply.serve.adapter_dir import require_folder
    from losa_cache.apply.serve.listen import bind, require_packages
    from losa_cache.text import say

    places = name_adapters(adapters)
    if config.adapter_dir is not None:
        require_folder(config.adapter_dir)
    require_packages()
    with closing(bind(config.host, config.port)) as listener:
        from losa_cache.apply.serve.server import open_service, run

        service = open_service(places, config, device=device)

        def begun(url: str) -> None:
            count = f"{len(places)} adapter{'' if len(places) == 1 else 's'}"
            typer.echo(f"{count} on {service.backbone.name}: {url}  (Ctrl-C stops the server)")

        run(service, listener, begun=begun, ending=lambda: say("stopping: what was accepted is answered first"))
