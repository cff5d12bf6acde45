"""The command line's ``push``: parse, call, print."""

from pathlib import Path
from typing import Annotated

import typer

from losa_cache.cli_common import Json, expanded, print_result
from losa_cache.cli_options import takes_options
from losa_cache.errors import UserError
from losa_cache.sidenet.adapter_folder import has_adapter


@takes_options
def push(
    run: Annotated[Path, typer.Argument(help="A finished run, or an adapter's folder.", callback=expanded)],
    repo: Annotated[str, typer.Argument(help="owner/name on the hub; it is made if it is not there.")],
    private: Annotated[
        bool, typer.Option("--private/--no-private", help="Make a new repository visible to its owner alone.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; default: main.")] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    license: Annotated[str | None, typer.Option(help="License for a new model card, such as apache-2.0.")] = None,
    as_json: Json = False,
) -> None:
    """Publish a run's adapter on the Hugging Face hub; others load it as hub:owner/name."""
    if not has_adapter(run):
        raise UserError(f"{str(run)!r} holds no adapter: name the directory of a finished run, or an adapter's folder.")
    from losa_cache.apply.hub import push as publish

    address = publish(run, repo, private=private, revision=revision, message=message, license=license)
    print_result({"adapter": f"hub:{repo}" + (f"@{revision}" if revision else ""), "commit": address}, as_json)
