"""What reaches a terminal: lines whose names are escaped, in any encoding; of libraries only what concerns a user."""

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from losa_cache.errors import UserError, nearest
from losa_cache.text import shown


class Escaping(logging.Formatter):
    """Write a record in one line: what it names cannot write others."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        return shown(super().format(record))


class Commands(TyperGroup):
    """Verbs whose refusals of options are escaped: they repeat what was typed."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        """Parse what stands before the verb."""
        with _escaped():
            return super().make_context(*arguments, **named)

    def invoke(self, context: Any) -> Any:
        """Parse the verb's options and run it.

        Raises:
            UserError: for an option that it does not have.
        """
        with _escaped():
            try:
                return super().invoke(context)
            except Exception as error:
                if type(error).__name__ == "NoSuchOption":  # of click, as above
                    raise UserError(self._no_such(error)) from error
                if callable(say := getattr(error, "format_message", None)) and getattr(error, "exit_code", 0) == 2:
                    raise UserError(_sentence(say(), error)) from error
                raise

    def _no_such(self, error: Any) -> str:
        """Say which verb lacks an option, and which has it, or what it may mean."""
        name, verb = error.option_name, error.ctx.info_name
        options = {
            other: [text for own in self.commands[other].params for text in (*own.opts, *own.secondary_opts)]
            for other in self.commands
        }
        others = [other for other, known in options.items() if name in known]
        if others:
            return f"{verb} has no option {name!r}, which is one of {', '.join(others)}: leave it out."
        return (
            f"{verb} has no option {name!r}{nearest(name, options[verb], shown=1)}: losa-cache {verb} --help lists all."
        )


def _sentence(text: str, error: Any) -> str:
    """Write click's refusal of a command line in one line, and say where the options are listed."""
    context: Any = getattr(error, "ctx", None)
    verb = context.info_name if context is not None and context.parent is not None else None
    help_ = f"losa-cache {verb} --help lists all options" if verb else "losa-cache --help lists all commands"
    lines = " ".join(text.split()).rstrip(".")
    return f"{lines[:1].lower()}{lines[1:]}: {help_}."


@contextmanager
def _escaped() -> Generator[None, None, None]:
    try:
        yield
    except Exception as error:
        if isinstance(text := getattr(error, "message", None), str):  # of click, which typer may bring its own copy of
            error.message = shown(text)  # type: ignore[attr-defined]
        raise


def prepare() -> None:
    """Set streams, log and warnings up for a command: no name can break the encoding, no library talks past us."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # in the POSIX locale, where é cannot be written
    handler = logging.StreamHandler()
    handler.setFormatter(Escaping("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("losa_cache").setLevel(logging.INFO)
    if not sys.warnoptions:  # python -W shows them
        warnings.simplefilter("ignore")  # of libraries, about their own code; ours are log lines
