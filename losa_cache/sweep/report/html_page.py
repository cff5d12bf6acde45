"""Reports as one file of HTML that needs nothing else: no script, no font, no network; every text in it is escaped.

The templates lie in ``templates/``: ``page.html`` is the frame, ``parts.html`` has what pages are made of.
"""

import base64
import hashlib
from functools import cache
from typing import Any
from unicodedata import bidirectional, category

from jinja2 import Environment, PackageLoader, StrictUndefined

REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def render(template: str, title: str, **values: Any) -> str:
    """Fill a template in.

    Args:
        template: name of its file.
        title: of the document, and its first heading.
        values: what the template names.
    """
    templates = _templates()
    assert templates.loader is not None
    style, _, _ = templates.loader.get_source(templates, "report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return templates.get_template(template).render(title=title, style=style, digest=digest, **values)


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("losa_cache.sweep.report"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return found


def _visible(value: Any) -> Any:
    """Show in a text what HTML or UTF-8 cannot hold; markup of the templates stays as it is."""
    if hasattr(value, "__html__"):
        return value
    text = str(value)
    if text.isascii() and text.isprintable():  # as a picture's base64, which is long
        return text
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join("\N{REPLACEMENT CHARACTER}" if _hides(c) else c for c in text)


def _hides(letter: str) -> bool:
    """Whether a letter is a control character, or changes the order in which others are shown."""
    return (category(letter) == "Cc" and letter not in "\n\t") or bidirectional(letter) in REORDERING
