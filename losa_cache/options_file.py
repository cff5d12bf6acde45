"""Files of options (``--config``, ``--space``): TOML, YAML or JSON from outside, read within bounds."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, read_file
from losa_cache.text import shown

MOST_BYTES = 64 * 1024
MOST_DEPTH = 3  # options, their lists, and lists of layers in these


def read_options(path: Path, what: str) -> dict[str, Any]:
    """Read the options of a file, whatever their values are.

    Args:
        path: of the file; ``.toml`` is TOML, ``.json`` JSON, anything else YAML.
        what: that it is, for messages: ``config`` or ``space``.

    Returns:
        values by name, with ``_`` for every ``-``.

    Raises:
        UserError: if it cannot be read, is no TOML, JSON or YAML, or holds no options.
    """
    name = shown(str(path))
    try:
        text = read_file(path, at_most=MOST_BYTES).decode("utf-8-sig")
    except UnreadableError as error:
        raise UserError(f"{what} {name!r} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {name!r} cannot be read: it is not UTF-8.") from error
    kind, read = _KINDS.get(path.suffix.lower(), ("YAML", _yaml))
    try:
        content = read(text)
    except RecursionError as error:
        raise UserError(f"{what} {name!r} cannot be read: it is nested too deeply.") from error
    except Exception as error:  # yaml's own have no common base but this, without importing it
        raise UserError(f"{what} {name!r} cannot be read: it is no {kind} ({_reason(error)}).") from error
    if not isinstance(content, dict) or not content or not all(isinstance(own, str) for own in content):
        raise UserError(f"{what} {name!r} holds no options: write each as a name and a value, in a line of its own.")
    found: dict[str, Any] = {}
    for given, value in content.items():
        if (key := given.replace("-", "_")) in found:
            raise UserError(f"{what} {str(path)!r} has {shown(given[:40].replace('_', '-'))} twice: leave one out.")
        found[key] = value
    return found


def _reason(error: Exception) -> str:
    """Say what is wrong in one line, and in which line of the file, as far as the reader of the format says it."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or (str(error).strip() or type(error).__name__).splitlines()[0]
    place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
    return shown(f"{problem[:200]}{place}")


def _json(text: str) -> Any:
    """Read JSON without deep nesting, or a name twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
            raise ValueError(f"it has {twice[:40]!r} twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _yaml(text: str) -> Any:
    """Read YAML without aliases, deep nesting, or a name twice: a few lines of these unfold to gigabytes, or hide."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has an alias: write the values out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise ValueError("it is nested too deeply")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
            raise ValueError(f"it has {twice[:40]!r} twice")
    return yaml.safe_load(text)


_KINDS: dict[str, tuple[str, Callable[[str], Any]]] = {".toml": ("TOML", tomllib.loads), ".json": ("JSON", _json)}
