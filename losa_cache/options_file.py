"""Files of options (``--config``, ``--space``): TOML, YAML or JSON from outside, read within bounds."""

import tomllib
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
        path: of the file; ``.toml`` is TOML, anything else YAML, of which JSON is a part.
        what: that it is, for messages: ``config`` or ``space``.

    Returns:
        values by name, with ``_`` for every ``-``.

    Raises:
        UserError: if it cannot be read, is no TOML or YAML, or holds no options.
    """
    name = shown(str(path))
    try:
        text = read_file(path, at_most=MOST_BYTES).decode("utf-8-sig")
    except UnreadableError as error:
        raise UserError(f"{what} {name!r} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {name!r} cannot be read: it is not UTF-8.") from error
    kind = "TOML" if path.suffix.lower() == ".toml" else "YAML"
    try:
        content = tomllib.loads(text) if kind == "TOML" else _yaml(text)
    except RecursionError as error:
        raise UserError(f"{what} {name!r} cannot be read: it is nested too deeply.") from error
    except Exception as error:  # yaml's own have no common base but this, without importing it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{what} {name!r} cannot be read: it is no {kind} ({shown(reason[:200])}).") from error
    if not isinstance(content, dict) or not content or not all(isinstance(own, str) for own in content):
        raise UserError(f"{what} {name!r} holds no options: write one a line, such as rank: [4, 8].")
    found: dict[str, Any] = {}
    for given, value in content.items():
        if (key := given.replace("-", "_")) in found:
            raise UserError(f"{what} {str(path)!r} has {shown(given[:40].replace('_', '-'))} twice: leave one out.")
        found[key] = value
    return found


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
