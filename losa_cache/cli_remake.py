"""The command line's ``transcode`` and ``merge``: parse, call, print."""

from typing import TYPE_CHECKING, Annotated

import typer

from losa_cache.cache.precision_names import require_precision
from losa_cache.cli_common import Device, Json, Store, existing, expanded, print_result
from losa_cache.cli_options import takes_options
from losa_cache.errors import require_counts
from losa_cache.layers import require_layers
from losa_cache.machine.sizes import parse_bytes
from losa_cache.points import require_tokens

if TYPE_CHECKING:
    from losa_cache.cache.store import ActivationCache


def _size(value: str) -> str:
    parse_bytes(value)
    return value


Out = Annotated[str, typer.Option("--out", help="Cache to write: a .zarr folder or its URL.", callback=expanded)]
ShardBytes = Annotated[str, typer.Option(help="Size of a shard, such as 64MB.", callback=_size)]
Workers = Annotated[
    int | None, typer.Option(help="Threads that read, decode and write; default: one for each core, at most 16.")
]


@takes_options
def transcode(
    cache: Store,
    out: Out,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precision of the new cache, no finer than that of this one: float32, float16, bfloat16, int8, int4, "
            "predict:BITS or predict:ERROR%; default: the same."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers to keep: all, a number K (K evenly spaced ones of those in the cache), or a list of block "
            "numbers such as 3,6,12; default: all."
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Tokens to keep: pooled (the class token and the mean of the patches); default: the same."),
    ] = None,
    shard_bytes: ShardBytes = "256MiB",
    workers: Workers = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Rewrite a finished cache: fewer bits, fewer layers, pooled tokens, other shards or another store.

    Run it again to resume.
    """
    require_counts(workers=workers)
    if precision is not None:
        require_precision(precision)
    if layers is not None:
        require_layers(layers)
    if tokens is not None:
        require_tokens(tokens)
    from losa_cache.display import PassBar
    from losa_cache.remake.transcode import transcode as run

    with PassBar("transcoding", 1) as bar:
        made = run(
            cache,
            out,
            precision=precision,
            layers=layers,
            tokens=tokens,
            shard_bytes=shard_bytes,
            workers=workers,
            device=device,
            progress=bar.advance,
        )
    _print(made, as_json)


@takes_options
def merge(
    caches: Annotated[
        list[str],
        typer.Argument(
            help="Two caches or more: .zarr folders, or their URLs.",
            callback=lambda value: [existing(v) for v in value],
        ),
    ],
    out: Out,
    shard_bytes: ShardBytes = "256MiB",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Combine caches that hold different samples and were extracted with the same options. Run it again to resume."""
    require_counts(workers=workers)
    from losa_cache.display import PassBar
    from losa_cache.remake.merge import merge as run

    with PassBar("merging", 1) as bar:
        made = run(caches, out, shard_bytes=shard_bytes, workers=workers, progress=bar.advance)
    _print(made, as_json)


def _print(cache: "ActivationCache", as_json: bool) -> None:
    manifest = cache.manifest
    report = {
        "cache": str(cache.path),
        "identity": manifest.identity,
        "rows": cache.layout.samples,
        "layers": manifest.layers,
        "tokens": manifest.holds,
        "precision": manifest.precision,
        "bytes": sum(cache.shard_sizes().values()),
        "made_from": [entry["identity"] for entry in manifest.made_from],
    }
    print_result(report, as_json)
