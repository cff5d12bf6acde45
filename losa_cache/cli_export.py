"""The command line's ``export``: parse, call, print."""

from typing import Annotated

import typer

from losa_cache.apply.export.config import ExportConfig
from losa_cache.apply.names import name_adapters
from losa_cache.cli_common import Json, expanded, print_result
from losa_cache.cli_options import takes_options


@takes_options
def export(
    *,
    adapter: Annotated[
        str,
        typer.Argument(help="A finished run, an adapter's folder, or hub:owner/name.", callback=expanded),
    ],
    config: ExportConfig,
    as_json: Json = False,
) -> None:
    """Write an adapter and its backbone to one file, for ONNX Runtime or torch: pixels in, outputs of its task out."""
    name_adapters([adapter])  # at once, before torch is imported
    from losa_cache import export as run
    from losa_cache.machine.sizes import readable_bytes

    found = run(adapter, config=config)
    if as_json:
        print_result(found, as_json)
        return
    shape = next(iter(found["inputs"].values()))  # that of all
    shown = {
        "written to": ", ".join(found["files"]),
        "size": readable_bytes(found["bytes"]),
        "takes": f"{', '.join(found['inputs'])}: {shape['dtype']} ({', '.join(map(str, shape['shape']))})",
        "gives": f"{found['output']}: float32 ({', '.join(map(str, found['shape']))})",
        "difference": f"{found['difference']:.1e} of the largest output, to losa-cache itself on noise",
    }
    print_result(shown, as_json)
