"""Typer options made of dataclasses (``losa_cache.options``), and the file that ``--config`` names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from losa_cache.cli_common import CONFIG, REPEATED, expanded, long_flag
from losa_cache.errors import UserError, nearest
from losa_cache.folders import given_path
from losa_cache.options import OptionField, options_of, simple

CONFIG_HELP = "TOML, YAML or JSON file with options of this command; options on the command line override it."
WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list[str]: "a list of texts"}

Stored = Callable[[Path], dict[str, Any] | None]


@dataclass(frozen=True)
class Values:
    """Mark a parameter of a verb that takes values by field: ``Annotated[dict[str, Any], Values(OnlineConfig)]``.

    None of them must be given: the verb decides whether, and with what else, it makes a config of them.

    Attributes:
        of: the dataclass.
        only: fields to take; by default all.
        listed: heading for options that take a list or a range of values, as text.
    """

    of: type
    only: tuple[str, ...] = ()
    listed: str = ""

    @property
    def options(self) -> list[OptionField]:
        """The options that are taken."""
        return [own for own in options_of(self.of) if not self.only or own.name in self.only]


def takes_options(verb: Callable[..., None], stored: Stored | None = None) -> Callable[..., None]:
    """Make a typer command of a function that takes configs.

    A parameter whose type is a dataclass of options becomes these options, and the function is given the dataclass. One
    that is marked with :class:`Values` becomes options that need not be given. Others stay as they are. ``--config`` is
    added.

    Args:
        verb: the function.
        stored: gives the options that a run directory stores, by their names in files; ``None`` for any other path.
    """
    hints = get_type_hints(verb, include_extras=True)
    made: dict[str, tuple[Callable[..., Any], list[OptionField]]] = {}
    parameters: list[Parameter] = []
    for name, parameter in signature(verb).parameters.items():
        hint = hints[name]
        marked = next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Values)), None)
        if marked is not None:
            made[name] = (dict, marked.options)
            parameters += [_parameter(own, optional=True, listed=marked.listed) for own in marked.options]
        elif isinstance(hint, type) and is_dataclass(hint):
            made[name] = (hint, options_of(hint))
            parameters += [_parameter(own) for own in made[name][1]]
        else:
            parameters.append(parameter.replace(annotation=hint, kind=Parameter.KEYWORD_ONLY))
    kinds = {parameter.name: simple(parameter.annotation) for parameter in parameters}
    parameters.append(_config_parameter(kinds, stored))

    def run(**values: Any) -> None:
        del values[CONFIG]
        configs = {
            name: make(**{own.name: _listed(values.pop(own.key)) for own in options})
            for name, (make, options) in made.items()
        }
        verb(**configs, **values)

    update_wrapper(run, verb)
    delattr(run, "__wrapped__")  # typer reads the signature that is made here
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _listed(value: Any) -> Any:
    """Give a list for what some versions of typer give as a tuple."""
    return list(value) if isinstance(value, tuple) else value


def _parameter(own: OptionField, *, optional: bool = False, listed: str = "") -> Parameter:
    """Make a parameter of an option, as typer reads it."""
    kind, flag = (str if listed else own.simple), f"--{own.key.replace('_', '-')}"
    default = None if listed or (optional and own.default is Parameter.empty) else own.default
    if default is None:
        kind = kind | None
    info = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=own.option.searched if listed and isinstance(own.option.searched, str) else own.option.help,
        rich_help_panel=listed or own.option.panel or None,
        show_default=default is not False,  # "--json/--no-json" says it
        metavar="<path>" if own.option.path and kind in (str, str | None) else None,
        callback=expanded if own.option.path else None,
    )
    return Parameter(own.key, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _config_parameter(kinds: Mapping[str, Any], stored: Stored | None) -> Parameter:
    def read(context: typer.Context, values: list[str] | None) -> list[str] | None:
        if values and not context.resilient_parsing:
            if len(values) > 1:
                raise UserError(f"--config is there {len(values)} times: put all options into one file.")
            context.default_map = _values(given_path(values[0]), context, kinds, stored)
        return values

    text = CONFIG_HELP if stored is None else f"{CONFIG_HELP} Or the folder of an earlier run, to repeat it."
    info = typer.Option("--config", help=text, metavar="<path>", is_eager=True, callback=read)
    return Parameter(CONFIG, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[list[str] | None, info])


def _values(path: Path, context: typer.Context, kinds: Mapping[str, Any], stored: Stored | None) -> dict[str, Any]:
    """Read a file's options, by the names of the command's parameters.

    A run or sweep stores all options, also those that nobody chose: one that is the command's default is not given, so
    that a recipe or a search may still set it.

    Raises:
        UserError: for a name that the command does not have, or a value of another type.
    """
    from losa_cache.options_file import read_options

    known = {_key(own): own.name for own in context.command.params if own.name in kinds}
    found = {}
    repeated = None if stored is None else stored(path)
    for key, value in (read_options(path, "config") if repeated is None else repeated).items():
        if key not in known:
            raise UserError(f"config {str(path)!r} has {key[:40]!r}, which is {_unknown(key, list(known), context)}.")
        if value is not None:
            found[known[key]] = _fitted(value, kinds[known[key]], f"{key.replace('_', '-')} in {str(path)!r}")
    if repeated is not None:
        context.meta[REPEATED] = True
        defaults = {own.name: own.default for own in context.command.params}
        found = {name: value for name, value in found.items() if value != defaults[name]}
    return found


def _unknown(key: str, known: list[str], context: typer.Context) -> str:
    """Say what a name may mean that is no option of the command."""
    plain = key.removeprefix("no_")
    if plain != key and plain in known:
        return f"written {plain}: false in a file"
    verbs = getattr(getattr(context.parent, "command", None), "commands", {})
    if others := [name for name, verb in verbs.items() if key in {_key(own) for own in verb.params}]:
        return f"an option of {', '.join(others)} and not of {context.info_name}: leave it out"
    return f"no option of {context.info_name}{nearest(key, known, shown=1) or ': leave it out'}"


def _key(parameter: Any) -> str:
    return long_flag(parameter).replace("-", "_")


def _fitted(value: Any, kind: Any, name: str) -> Any:
    """Hold a value of a file to the type of its option.

    A list for an option that takes text becomes ``3,6,12``, and ``12,`` where it has one value.

    Raises:
        UserError: if it is of another type.
    """
    from losa_cache.outside import UnreadableError, fit

    text = kind is str
    if text and isinstance(value, list) and value and all(isinstance(one, str | int | float) for one in value):
        return ",".join(map(str, value)) + ("," if len(value) == 1 else "")
    if text and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if text and isinstance(value, dict) and value.keys() == {"low", "high"}:  # as sweep.json has a range
        return f"{value['low']}..{value['high']}"
    if kind == list[str] and isinstance(value, str):
        return [value]
    try:
        return fit(value, kind, strict=kind is bool)
    except UnreadableError as error:
        raise UserError(f"{name} is {value!r:.60}: it must be {WANTED[kind]}.") from error
