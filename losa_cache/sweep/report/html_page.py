"""A page of HTML that needs nothing else: no script, no font, no network; every name in it is escaped."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any
from unicodedata import bidirectional, category

REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def page(title: str, body: Sequence[str]) -> str:
    """Lay out a whole document.

    Args:
        title: of the document, and its first heading.
        body: its parts in HTML.
    """
    style = files("losa_cache.sweep.report").joinpath("report.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join([f"<h1>{text(title)}</h1>", *body])
        + "\n</main>\n</body>\n</html>\n"
    )


def picture(name: str, png: bytes, caption: str) -> str:
    """Give a PNG with its caption."""
    source, caption = base64.b64encode(png).decode(), text(caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{source}">'
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="Figure {text(name)}">{image}</div>'
    return f"<figure>\n{box}\n<figcaption>{caption}</figcaption>\n</figure>"


def facts(told: Mapping[str, str]) -> str:
    """Give a list of names and what is said of each."""
    return "<dl>\n" + "\n".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in told.items()) + "\n</dl>"


def table(caption: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table in a box that scrolls by itself; rows with the name of their style."""
    lines = [
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">\n<table>',
        f"<caption>{text(caption)}</caption>",
        "<thead><tr>" + "".join(f'<th scope="col">{text(name)}</th>' for name in head) + "</tr></thead>\n<tbody>",
    ]
    for style, cells in rows:
        opening = f'<tr class="{style}">' if style else "<tr>"
        lines.append(opening + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</tbody>\n</table>\n</div>"])


def text(value: Any) -> str:
    """Escape text for an element or a quoted attribute; what HTML or UTF-8 cannot hold is made visible."""
    escaped = escape(str(value)).encode("utf-8", "backslashreplace").decode()
    return "".join("\N{REPLACEMENT CHARACTER}" if _hides(c) else c for c in escaped)


def _hides(letter: str) -> bool:
    """Whether a letter is a control character, or changes the order in which others are shown."""
    return (category(letter) == "Cc" and letter not in "\n\t") or bidirectional(letter) in REORDERING
