"""Options of a stage, typed once: a field of a dataclass, whose ``Annotated`` type says what the option means.

The command line, files of options (``--config``), run directories and callers of the library all use these dataclasses.
This module imports no library, so that ``--help`` is fast and bad options are refused at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from inspect import Parameter, signature
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

SIMPLE = (bool, int, float, str, list[str])
"""Types of values on a command line and in files."""
C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What a field says of its option.

    Attributes:
        help: the text of ``--help`` and of the command reference.
        flag: the option's name on the command line and in files; by default the field's.
        panel: the heading under which ``--help`` lists it; by default that of the other options.
        path: whether the value may be a path; then ``~`` stands for the home folder.
        searched: whether a sweep can search it; or its help as an option of a sweep.
    """

    help: str
    flag: str = ""
    panel: str = ""
    path: bool = False
    searched: bool | str = False


@dataclass(frozen=True)
class OptionField:
    """A field of a dataclass that is an option.

    Attributes:
        name: of the field.
        option: what it says of itself.
        kind: its type, without ``Annotated``.
        default: its value if it is not given; ``Parameter.empty``: it must be given.
    """

    name: str
    option: Option
    kind: Any
    default: Any

    @property
    def key(self) -> str:
        """The option's name in files and among the parameters of a command: ``--data-dir`` is ``data_dir``."""
        return (self.option.flag or self.name).replace("-", "_")

    @property
    def simple(self) -> Any:
        """The type of its values as text and files have them."""
        return simple(self.kind)


def simple(kind: Any) -> Any:
    """Give the type that a command line or a file uses for a type: text, where it has no type of its own.

    ``None``, which stands for an option that is not given, is left out.
    """
    if get_origin(kind) is Annotated:
        kind = kind.__origin__
    if get_origin(kind) in (Union, UnionType):
        rest = [one for one in get_args(kind) if one is not type(None)]
        kind = rest[0] if len(rest) == 1 else str
    return kind if kind in SIMPLE else str


def options_of(shape: type) -> list[OptionField]:
    """List the options of a dataclass: those that must be given first, then in the order of its fields.

    Fields that are given by name alone come after the others, as those of a base class do in its ``__init__``.
    """
    defaults = {name: parameter.default for name, parameter in signature(shape).parameters.items()}
    found = []
    for field in sorted(fields(shape), key=lambda field: field.kw_only is True):
        marks: tuple[Any, ...] = getattr(field.type, "__metadata__", ())
        if option := next((mark for mark in marks if isinstance(mark, Option)), None):
            default = field.default_factory() if callable(field.default_factory) else defaults[field.name]
            found.append(OptionField(field.name, option, field.type.__origin__, default))  # type: ignore[union-attr]
    return sorted(found, key=lambda own: own.default is not Parameter.empty)


def with_options(shape: type[C], config: C | None, given: Mapping[str, Any]) -> C:
    """Give a config with options over it, or one of the options alone.

    Raises:
        TypeError: for an option that the dataclass does not have, or without one that must be given.
        UserError: for a value that cannot work.
    """
    return shape(**given) if config is None else replace(config, **given)  # type: ignore[type-var]


def given(**options: Any) -> dict[str, Any]:
    """Give the options that are not ``None``."""
    return {name: value for name, value in options.items() if value is not None}


def lists_options(shape: type) -> Callable[[F], F]:
    """Show the options of a dataclass in the signature of a function that takes them as ``**options``.

    ``help()``, IPython and Jupyter list and complete them then.
    """

    def listed(function: F) -> F:
        own = signature(function)
        explicit = [p for p in own.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        names = {parameter.name for parameter in explicit}
        more = [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.kind)
            for field in options_of(shape)
            if field.name not in names
        ]
        function.__signature__ = own.replace(parameters=[*explicit, *more])  # type: ignore[attr-defined]
        return function

    return listed
