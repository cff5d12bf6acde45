"""A comparison for the terminal. Pure."""

from losa_cache.compare.record import Comparison, Method
from losa_cache.text import NONE, columns, shown

HEAD = [
    "method",
    "seeds",
    "top-1 (%)",
    "95 % interval",
    "behind the best",
    "p",
    "parameters",
    "training s",
    "extraction s",
    "peak GB",
]


def text(found: Comparison) -> str:
    """Format a comparison: a line for each method, then notes."""
    lines = [HEAD, *(cells(found, method) for method in found.methods)]
    on = ", ".join(dict.fromkeys(shown(method.tested_on) for method in found.methods))
    title = f"{shown(found.title)}, {found.samples:,} images: {on}"
    return "\n\n".join([title, columns(lines), *found.notes])


def cells(found: Comparison, method: Method) -> list[str]:
    """Give the cells of a method's line, under :data:`HEAD`."""
    pair = found.against_best(method)
    return [
        method.name,
        str(max(1, len(method.runs))),
        f"{method.top1:.2f}",
        f"{method.low:.2f} to {method.high:.2f}",
        NONE if pair is None else f"{pair.difference:.2f} ± {pair.standard_error:.2f}",
        NONE if pair is None else say_p(pair.p),
        f"{sum(method.parameters.values()):,}",
        *(NONE if value is None else f"{value:.1f}" for value in (method.train_seconds, method.extract_seconds)),
        NONE if method.peak_gb is None else f"{method.peak_gb:.2f}",
    ]


def say_p(p: float) -> str:
    """Write a probability with its significant digits."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
