"""The results of a probe of a cache: a table, and its best line. Pure."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from losa_cache.outside import fit

LOGISTIC, RIDGE = "logistic regression", "ridge regression"
NEIGHBOURS, CLASS_MEAN = "nearest neighbours", "nearest class mean"
ALL, TAIL = "all layers", "frozen tail"
"""What is read where it is no single point."""


@dataclass(frozen=True)
class Line:
    """One probe.

    Attributes:
        method: ``logistic regression``, ``ridge regression``, ``nearest neighbours`` or ``nearest class mean``.
        reads: a point of the trunk, ``all layers``, or the ``frozen tail``, whose features ``--side linear`` reads.
        rows: ``cls``, ``mean`` or ``both`` of each layer read; ``features`` of the frozen tail.
        features: how many.
        held_out_top1: in percent, before the probe was fitted again to all training images.
        held_out_loss: in nats; ``None`` where a method gives no probabilities. A ridge regression's predictions are
            multiplied by a number that makes it least.
        c: chosen C as scikit-learn's, of features of standard deviation 1; of a ridge regression 1 / alpha; ``None``:
            there is none.
        neighbours: chosen number; ``None``: there is none.
        test_top1: in percent; ``None``: there is no test cache.
        test_error: one standard error of it, over images, in points.
        test_loss: in nats.
        seconds: of choosing, fitting and testing; what regressions on the same features share counts in each.
    """

    method: str
    reads: str
    rows: str
    features: int
    held_out_top1: float
    held_out_loss: float | None
    c: float | None
    neighbours: int | None
    test_top1: float | None
    test_error: float | None
    test_loss: float | None
    seconds: float

    @property
    def name(self) -> str:
        """Its name in tables, which is the same for the same probe of another cache."""
        rows = "" if self.rows == "features" else f", {self.rows}"
        return f"{self.method}, {self.reads}{rows}"

    @property
    def chosen(self) -> str:
        """The chosen value, in short."""
        if self.c is not None:
            return strength(self.method, self.c)
        return f"k {self.neighbours}" if self.neighbours else ""


def strength(method: str, c: float) -> str:
    """Tell the regularisation of a regression as users of scikit-learn know it."""
    return f"alpha {1 / c:.1e}" if method == RIDGE else f"C {c:.1e}"


@dataclass(frozen=True)
class Counts:
    """Images: fitted while C was chosen, held out, and tested (0: there is no test cache)."""

    train: int
    held_out: int
    test: int


@dataclass(frozen=True)
class ProbeRecord:
    """A probe of a cache. All of it is JSON.

    Attributes:
        title: the data set and the backbone.
        cache, identity: of the training cache.
        test_cache: ``None``: there was none.
        layers: the points, first to last.
        images: how many.
        chosen_by: what C and the number of neighbours were chosen on, in words.
        notes: sentences on what was left out.
        lines: all probes.
        seconds: of everything.
        seconds_reading: of reading the caches.
        machine: what computed.
    """

    title: str
    cache: str
    identity: str
    test_cache: str | None
    layers: list[str]
    images: Counts
    chosen_by: str
    notes: list[str]
    lines: list[Line]
    seconds: float
    seconds_reading: float
    machine: str

    @property
    def best(self) -> Line:
        """The best line: the highest held-out accuracy; if equal, the lowest loss, then the fewest features."""
        return _best(self.lines)

    @property
    def last_layer(self) -> Line:
        """The best regression on the last layer."""
        return self._best_of(self.layers[-1])

    @property
    def best_layer(self) -> Line:
        """The best regression on a single layer."""
        return self._best_of(*self.layers)

    @property
    def all_layers(self) -> Line:
        """The best regression on all layers together."""
        return self._best_of(ALL)

    def _best_of(self, *reads: str) -> Line:
        return _best([line for line in self.regressions if line.reads in reads])

    @property
    def regressions(self) -> list[Line]:
        """The better one, logistic or ridge, of the regressions on the same features."""
        return _best_of_each(self.lines, lambda line: None if line.c is None else (line.reads, line.rows))

    def in_short(self) -> list[Line]:
        """The lines that a table for people shows: regressions on the ends and on the best layer, and of each other
        method on a layer its best rows.
        """
        ends = (ALL, TAIL, self.layers[-1])
        regressions = [line for line in self.regressions if line.reads in ends or line is self.best_layer]
        return regressions + _best_of_each(
            self.lines, lambda line: (line.method, line.reads) if line.c is None else None
        )

    def to_json(self) -> dict[str, Any]:
        """Give all of it as JSON; ``best``, ``last_layer``, ``best_layer`` and ``all_layers`` name lines."""
        named = ("best", "last_layer", "best_layer", "all_layers")
        return asdict(self) | {name: getattr(self, name).name for name in named}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ProbeRecord":
        """Read what :meth:`to_json` gave.

        Raises:
            UnreadableError: for something else.
        """
        return fit(content, cls)


def table(record: ProbeRecord) -> list[list[str]]:
    """Format the short table: a head, and a row for each line; the best line is marked in the first column."""
    head = ["", "method", "reads", "rows", "features", "chosen", "held out (%)", "test (%)", "seconds"]
    rows = []
    for line in record.in_short():
        test = "" if line.test_top1 is None else f"{line.test_top1:.2f} ± {line.test_error:.2f}"
        rows.append(
            [
                "*" if line is record.best else "",
                line.method,
                line.reads,
                line.rows,
                f"{line.features:,}",
                line.chosen,
                f"{line.held_out_top1:.2f}",
                test,
                f"{line.seconds:.1f}",
            ]
        )
    return [head, *rows]


def text(record: ProbeRecord) -> str:
    """Format the short table for a terminal, with the samples of the choice."""
    cells = table(record)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    told = [f"C, alpha and k were chosen on {record.chosen_by}.", *record.notes]
    told += ["Each row of a regression is the better one, logistic or ridge, on held-out images."]
    told += ["* the line to beat: the best held out."]
    return "\n".join([*lines, "", *told])


def _best_of_each(lines: Iterable[Line], group: Callable[[Line], tuple[str, str] | None]) -> list[Line]:
    """Give the best line of each group; lines whose group is ``None`` are left out."""
    grouped: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if (own := group(line)) is not None:
            grouped.setdefault(own, []).append(line)
    return [_best(own) for own in grouped.values()]


def _best(lines: list[Line]) -> Line:
    return min(
        lines,
        key=lambda line: (
            -line.held_out_top1,
            math.inf if line.held_out_loss is None else line.held_out_loss,
            line.features,
        ),
    )
