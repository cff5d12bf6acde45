"""Fill the reference pages of the documentation when MkDocs builds them: a hook, named in mkdocs.yml.

The page of commands comes from the typer app, so that it cannot lag behind ``--help``. The page of Python names comes
from ``losa_cache.__all__``.
"""

import re
from typing import Any

COMMANDS, NAMES = "<!-- commands -->", "<!-- names -->"
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):(?=<code>)(<code>)~?(?:[\w.]*\.)?(\w+)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks in a page."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    if NAMES in markdown:
        markdown = markdown.replace(NAMES, names())
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Show the name alone where a docstring refers to it in Sphinx's way."""
    return ROLE.sub(r"\1\2", html)


def commands() -> str:
    """Describe every command: what it does, its arguments, and its options by panel."""
    from typer.core import TyperGroup
    from typer.main import get_command

    from losa_cache.cli import app

    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return "\n\n".join(_command(name, verb) for name, verb in group.commands.items())


def names() -> str:
    """Ask mkdocstrings for every public name, where it is defined."""
    import losa_cache

    public = [getattr(losa_cache, name) for name in losa_cache.__all__]
    return "\n\n".join(f"::: {value.__module__}.{value.__qualname__}" for value in public)


def _command(name: str, verb: Any) -> str:
    shown = [parameter for parameter in verb.params if not parameter.hidden]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    panels: dict[str, list[Any]] = {}
    for option in shown:
        if option not in arguments:
            panels.setdefault(option.rich_help_panel or "Options", []).append(option)
    usage = " ".join(_title(argument) if argument.required else f"[{_title(argument)}]" for argument in arguments)
    parts = [f"## `{name}`", (verb.help or "").strip(), f"    losa-cache {name} [OPTIONS] {usage}".rstrip()]
    if arguments:
        rows = [f"| `{_cell(_title(argument))}` | {_cell(argument.help)} |" for argument in arguments]
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    for title, options in panels.items():
        rows = [f"| {_flags(option)} | {_cell(option.help)} | {_default(option)} |" for option in options]
        parts.append("\n".join([f"**{title}**", "", "| option | meaning | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _title(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _flags(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def _default(option: Any) -> str:
    if option.required:
        return "required"
    return "" if option.is_flag or option.default in (None, ()) else f"`{option.default}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("<", "&lt;")
