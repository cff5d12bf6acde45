"""What the verbs of the command line share: options, refusals, and how results are printed."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from losa_cache.errors import UserError, no_cache
from losa_cache.folders import given_path
from losa_cache.machine.device_names import require_device_name
from losa_cache.report.details import cell
from losa_cache.sidenet.adapter_folder import HUB
from losa_cache.tasks import get_task
from losa_cache.text import columns, say
from losa_cache.train.config import TrainConfig

CONFIG = "config_file"
"""The parameter of ``--config``."""
IN_FILE = "DEFAULT_MAP"
"""What typer says of an option that the file of ``--config`` gives."""
MOST_LINES = 40
"""Lines of a table that is printed."""
REPEATED = "losa_cache.repeated"
"""Key of a context's ``meta``: whether ``--config`` names an earlier run, whose options give way to what is given."""


def expanded(value: Any) -> Any:
    """Write a path out that begins with ``~``: shells leave it as it is in quotes, and behind ``=``."""
    return type(value)(given_path(value)) if isinstance(value, str | Path) and str(value).startswith("~") else value


def all_expanded(values: list[str]) -> list[str]:
    """Expand each path of a list."""
    return [str(expanded(value)) for value in values]


def existing(value: Any) -> Any:
    """Expand the path of a cache, and refuse it where nothing is: at once, before any library is imported."""
    place = expanded(value)
    if isinstance(place, str) and "://" not in place and not os.path.lexists(place):
        raise no_cache(place)
    return place


def existing_run(value: Path) -> Path:
    """Expand the path of a run directory, and refuse it where nothing is; ``hub:owner/name`` stays what it is."""
    run: Path = expanded(value)
    if not str(run).startswith(HUB) and not os.path.lexists(run):
        raise UserError(f"{str(run)!r} holds no adapter: there is no such folder; name one of a run, as in runs/NAME.")
    return run


def _device(value: str | None) -> str | None:
    if value is not None:
        require_device_name(value)
    return value


def _residency(value: str) -> str:
    from losa_cache.train.residency import require_residency

    require_residency(value)
    return value


Store = Annotated[str, typer.Argument(help="Cache: a .zarr folder, or its URL.", callback=existing)]
Json = Annotated[bool, typer.Option("--json/--no-json", help="Print the result as JSON on stdout.")]
Device = Annotated[
    str | None,
    typer.Option(help="Device that computes: cpu, cuda or cuda:1; default: the GPU if there is one.", callback=_device),
]
Residency = Annotated[
    str,
    typer.Option(
        help="Where training keeps the activations it reads: device (GPU memory), memory (RAM) or disk (read anew in "
        "every epoch); auto: the fastest of these that holds them.",
        callback=_residency,
    ),
]


def long_flag(parameter: Any) -> str:
    """Give the name of an option or argument as users write it, without dashes in front."""
    return str(next((name for name in parameter.opts if name.startswith("--")), parameter.name)).lstrip("-")


def given(context: typer.Context, name: str) -> bool:
    """Say whether an option was given, on the command line or in a file of options.

    What an earlier run stores is not given: it gives way to a recipe, a search, and options that exclude it.
    """
    source = context.get_parameter_source(name)
    if source is None:
        return False
    return source.name == "COMMANDLINE" or (source.name == IN_FILE and not context.meta.get(REPEATED))


def refuse(context: typer.Context, reason: str, *, but: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> None:
    """Refuse options that would be ignored: all but some, or only some.

    Raises:
        UserError: naming the option.
    """
    if not only and context.meta.get(REPEATED):
        raise UserError(f"{reason}: leave out --config.")
    for name in only or [name for name in context.params if name not in (CONFIG, *but)]:
        if given(context, name):
            flag = next(long_flag(own) for own in context.command.params if own.name == name)
            source = context.get_parameter_source(name)
            place = ", which stands in the file of --config" if source and source.name == IN_FILE else ""
            raise UserError(f"{reason}: leave out --{flag}{place}.")


def refuse_unused(context: typer.Context, config: TrainConfig) -> None:
    """Refuse options of training that were given and that the task has no use for.

    Raises:
        UserError: naming the option.
    """
    task = get_task(config.task)
    name = f"the task {task.name!r}"
    if "label_smoothing" not in task.loss_options:
        refuse(context, f"the loss of {name} smooths no labels", only=("label_smoothing",))
    if task.dense:
        refuse(context, f"the decoder of {name} has no dropout", only=("dropout",))
    else:
        refuse(context, f"{name} makes no maps, so nothing is decoded", only=("decoder",))


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """Print a result: JSON for machines, aligned lines for people."""
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    width = max(map(len, result))
    for name, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            say(name)
            for entry in value:
                say("  " + ", ".join(f"{key} {inner}" for key, inner in entry.items()))
            continue
        say(f"{name.ljust(width)}  {_shown(value)}")


def print_table(name: str, lines: list[dict[str, Any]]) -> None:
    """Print a table of an evaluation, a line for each class, label or column; a long one is only counted."""
    if len(lines) > MOST_LINES:
        say(f"{name}  {len(lines)} lines, which --json or --report gives")
    elif lines:
        typer.echo(columns([list(lines[0]), *([cell(value) for value in line.values()] for line in lines)]))


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(own, float) for own in value):
        return " to ".join(f"{own:.3f}" for own in value)  # an interval
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 0.001 else f"{value:.3f}"
    return value if isinstance(value, str) else json.dumps(value)
