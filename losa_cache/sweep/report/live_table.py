"""The live display of a running sweep: the best trials, trials an hour, time left. It goes to stderr."""

from collections.abc import Sequence
from time import perf_counter

from rich.live import Live
from rich.table import Table

from losa_cache.display import LINE_SECONDS, console, note
from losa_cache.sweep.engine.sweep import Standing

BEST = 12


class SweepTable:
    """A live table of the best trials. Without a terminal it is one line a minute, and one at the end.

    Args:
        names: of the options that are searched.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._live = Live(console=console, refresh_per_second=2, transient=False)
        self._shown = perf_counter()

    def __enter__(self) -> "SweepTable":
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, standing: Standing) -> None:
        """Show where a sweep stands."""
        if console.is_terminal:
            self._live.update(self._table(standing))
        elif perf_counter() - self._shown >= LINE_SECONDS or standing.finished == standing.trials:
            self._shown = perf_counter()
            note(headline(standing))

    def _table(self, standing: Standing) -> Table:
        table = Table(title=headline(standing), title_justify="left", box=None, pad_edge=False)
        for name in ("trial", *self._names, "epoch", f"val {standing.metric.title}", ""):
            table.add_column(name.replace("_", "-"), justify="right")
        for row in standing.rows[:BEST]:
            options = [f"{getattr(row['config'], name):g}" if isinstance(getattr(row["config"], name), float)
                       else str(getattr(row["config"], name)) for name in self._names]  # fmt: skip
            value = standing.metric.show(row["value"])
            table.add_row(str(row["number"]), *options, str(row["epoch"]), value, row.get("state", "running"))
        return table


def headline(standing: Standing) -> str:
    """Say in a line how far a sweep is."""
    text = f"{standing.finished}/{standing.trials} trials"
    if standing.epochs_done:
        rate = standing.epochs_done / standing.seconds
        text += f", {3600 * rate / standing.epochs:.0f} trials/hour"
        if standing.epochs_left:
            text += f", {standing.epochs_left / rate / 60:.0f} min left at most"
    if standing.rows:
        best = standing.rows[0]
        text += f"; best: trial {best['number']}, {standing.metric.show(best['value'])} after epoch {best['epoch']}"
    return text
