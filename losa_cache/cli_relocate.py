"""The command line's ``copy``, ``move`` and ``remove``: parse, call, print."""

import sys
from typing import Annotated, Any

import typer

from losa_cache.cli_common import Json, expanded, print_result
from losa_cache.cli_options import takes_options
from losa_cache.errors import UserError

# A cache whose move or removal was interrupted has no name any more: whether it is there is asked later.
Cache = Annotated[str, typer.Argument(help="Cache: a .zarr folder, or its URL.", callback=expanded)]
Out = Annotated[
    str,
    typer.Argument(
        help="Where it goes: a .zarr folder or its URL; or a folder, into which it goes.", callback=expanded
    ),
]


@takes_options
def copy(cache: Cache, out: Out, as_json: Json = False) -> None:
    """Copy a cache with its receipts (its records of checksums), from any store to any other; every chunk is checked.

    Run it again to resume.
    """
    from losa_cache.display import PassBar
    from losa_cache.relocate.copy import copy_cache

    with PassBar("copying", 1) as bar:
        copied = copy_cache(cache, out, progress=bar.advance)
    _print(copied, as_json)


@takes_options
def move(cache: Cache, out: Out, as_json: Json = False) -> None:
    """Move a cache with its receipts: it is renamed, or copied, checked and removed. Run it again to resume."""
    from losa_cache.display import PassBar
    from losa_cache.relocate.move import move_cache

    with PassBar("copying", 1) as bar:
        moved = move_cache(cache, out, progress=bar.advance)
    _print(moved, as_json)


@takes_options
def remove(
    cache: Cache,
    yes: Annotated[
        bool, typer.Option("--yes/--no-yes", help="Delete without asking; needed without a terminal.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete a cache, complete or not, with its receipts. Run it again if it was interrupted."""
    from losa_cache.cache.location import locate
    from losa_cache.relocate.remove import half_removed, remove_cache

    place = locate(cache)
    if not yes and not half_removed(place):
        _ask(place)
    remove_cache(place)
    print_result({"removed": str(place)}, as_json)


def _ask(place: Any) -> None:
    """Ask whether a cache is to be deleted.

    Raises:
        UserError: if there is nobody to answer.
        typer.Exit: if it is not.
    """
    from losa_cache.cache.storage import receipts_of
    from losa_cache.machine.sizes import readable_bytes
    from losa_cache.relocate.place import manifest_at
    from losa_cache.text import shown

    manifest = manifest_at(place)
    if not _asks():
        raise UserError(f"{str(place)!r} would be deleted, and there is no terminal to ask on: pass --yes.")
    size = sum(count for folder in (place, receipts_of(place)) for _, count in folder.scan())
    backbone, dataset = manifest.fields["backbone"]["name"], manifest.fields["dataset"]
    about = f"{backbone} on {dataset['name']} {dataset['split']}, {readable_bytes(size)}"
    if not typer.confirm(shown(f"Delete {str(place)!r} ({about})?"), err=True):
        typer.echo("nothing was deleted", err=True)
        raise typer.Exit(1)


def _asks() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def _print(cache: Any, as_json: bool) -> None:
    print_result({"cache": str(cache.path), "identity": cache.manifest.identity}, as_json)
