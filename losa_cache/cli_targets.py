"""The command line's ``targets``: parse, call, print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from losa_cache.cli_common import Json, Store, expanded, print_result, refuse
from losa_cache.cli_options import takes_options
from losa_cache.errors import UserError
from losa_cache.targets.check import require_name
from losa_cache.targets.read import open_source
from losa_cache.tasks import task_names

if TYPE_CHECKING:
    from losa_cache.cache.store import ActivationCache

FEW = 10  # names of a target set, in a line
READING = ("task", "name", "columns", "ignore", "subset", "data_dir")


@takes_options
def targets(
    context: typer.Context,
    cache: Store,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="What to add: a table (CSV, JSON lines or Parquet), ids first, or a folder of masks or depth maps; "
            "default: list what the cache has.",
            callback=expanded,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"Task that learns the targets: {', '.join(task_names())}; default: segmentation for a folder, and "
            "for a table what its cells say."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the target set; one of this name is replaced; default: that of the file or folder."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns of the table to take, in a list; default: all behind the first.")
    ] = None,
    ignore: Annotated[
        int | None, typer.Option(help="Value of the masks that stands for no class, besides 255.")
    ] = None,
    subset: Annotated[
        bool,
        typer.Option("--subset/--no-subset", help="Leave out targets of samples that the cache does not have."),
    ] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that holds the images of masks or depth maps now; default: the one of the extraction.",
            callback=expanded,
        ),
    ] = None,
    remove: Annotated[str | None, typer.Option(help="Name of a target set to remove.")] = None,
    as_json: Json = False,
) -> None:
    """Add labels, numbers, masks or depth maps to a finished cache, without the backbone; or list what it has."""
    if remove is not None:
        refuse(context, "--remove removes a target set", only=("source", *READING))
    elif source is None:
        refuse(context, "without --from, what the cache has is listed", only=READING)
    else:
        _require_name(name)
        taken = None if columns is None else [column.strip() for column in columns.split(",")]
        opened = open_source(source, task=task, columns=taken, ignore=ignore)
    from losa_cache.cache.store import open_cache
    from losa_cache.display import PassBar
    from losa_cache.targets.add import add_targets, remove_targets

    if remove is not None:
        remove_targets(cache, remove)
    elif source is not None:
        with PassBar("reading", 1) as bar:
            add_targets(cache, opened, name=name, subset=subset, data_dir=data_dir, progress=bar.advance)
    print_result(_listed(open_cache(cache), None if as_json else FEW), as_json)


def _require_name(name: str | None) -> None:
    try:
        if name is not None:
            require_name(name)
    except ValueError as error:
        raise UserError(f"--name cannot be used: {error}.") from error


def _listed(cache: "ActivationCache", most: int | None) -> dict[str, Any]:
    """List the target sets of a cache, with at most so many names of each; ``None``: with all."""
    listed: list[dict[str, Any]] = []
    for name, kind in cache.target_kinds.items():
        names = cache.manifest.names_of(name) or []
        more = ["..."] if most is not None and len(names) > most else []
        listed.append({"name": name, "kind": kind, "names": names[:most] + more})
    return {"cache": str(cache.path), "samples": len(cache.samples), "targets": listed}
