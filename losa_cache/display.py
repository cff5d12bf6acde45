"""What a person sees: progress with rate and time left, and figures in readable units. It all goes to stderr."""

from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from losa_cache.extract.limiter import limiter
from losa_cache.extract.meter import Meter
from losa_cache.machine.sizes import readable_bytes
from losa_cache.tasks.classification import AMONG, TOP5
from losa_cache.text import shown
from losa_cache.train.config import TrainConfig

if TYPE_CHECKING:  # some verbs do without torch, and training without backbones
    from losa_cache.apply.predict.predict import Predictions
    from losa_cache.cache.store import ActivationCache
    from losa_cache.train.train import TrainResult

LINE_SECONDS = 60
WORTH_SHORTENING = 0.1  # seconds of an epoch
console = Console(stderr=True, highlight=False, markup=False, emoji=False)


def note(text: str) -> None:
    """Print a line beside the progress, with every name in it escaped."""
    console.print(shown(text), soft_wrap=True)


def extraction_report(cache: "ActivationCache", meter: Meter) -> dict[str, Any]:
    """Sum an extraction up; say aloud what was skipped or did not fit the precision."""
    manifest = cache.manifest
    if manifest.skipped:
        names = ", ".join(entry["id"] for entry in manifest.skipped[:5])
        more = ", ..." if len(manifest.skipped) > 5 else ""
        note(f"warning: {len(manifest.skipped)} of the images did not decode and were skipped: {names}{more}")
    if manifest.overflowed:
        note(
            f"warning: {manifest.overflowed} values overflowed {manifest.precision} and were stored as its largest: "
            "use --precision bfloat16."
        )
    if manifest.non_finite:
        note(f"warning: the backbone itself gave {manifest.non_finite} values that are not finite.")
    stored = cache.stored_bytes
    return {
        "cache": str(cache.path),
        "identity": manifest.identity,
        "complete": manifest.complete,
        "images": cache.layout.samples,
        "shape": list(cache.layout.shape),
        "precision": manifest.precision,
        "bytes": stored,
        "size": readable_bytes(stored),
        "extracted_now": meter.images,
        "seconds": round(meter.seconds, 3),
        "images_per_second": round(meter.images / meter.seconds, 1) if meter.seconds else None,
        "waited_for_decode": round(meter.waited_decode, 3),
        "waited_for_disk": round(meter.waited_write, 3),
        "limiter": limiter(meter),
        "skipped": len(manifest.skipped),
        "overflowed": manifest.overflowed,
        "non_finite": manifest.non_finite,
    }


def in_words(report: dict[str, Any]) -> dict[str, Any]:
    """Give the report of an extraction as people read it: of the images, those that were not skipped."""
    images, skipped = report["images"], report["skipped"]
    return report | ({"images": f"{images - skipped} of {images}"} if skipped else {})


def telling(figures: dict[str, Any], classes: int) -> dict[str, Any]:
    """Leave out the metrics of an evaluation that are 100 % whatever the predictions: top-5 of up to five classes."""
    always = (TOP5.name, f"{TOP5.name}_interval")
    return {name: value for name, value in figures.items() if classes > AMONG or not name.endswith(always)}


def prediction_report(found: "Predictions", meter: Meter) -> dict[str, Any]:
    """Sum predictions up; name aloud what was skipped."""
    for entry in found.skipped:
        note(f"skipped {entry.id}: {entry.reason}")
    if (more := found.skipped_count - len(found.skipped)) > 0:
        note(f"and {more} more")
    return {
        "out": str(found.out),
        "rows": found.rows,
        "inputs_now": meter.images,
        "skipped": found.skipped_count,
        "seconds": round(meter.seconds, 3),
        "images_per_second": round(meter.images / meter.seconds, 1) if meter.seconds else None,
    }


def cache_table(caches: list[dict[str, Any]]) -> str:
    """Lay ``list_caches`` out, a line a cache."""
    if not caches:
        return "no caches yet: make one with losa-cache extract"
    rows = [
        (
            shown(f"{c['backbone']}, {c['points']} points ({c['tap']}, {c['tokens']} tokens)"),
            shown(f"{c['dataset']} {c['split']}"),
            f"{c['rows']} x {c['precision']}",
            readable_bytes(c["bytes"]),
            "complete" if c["complete"] else "incomplete",
            shown(c["path"]),
        )
        for c in caches
        if "error" not in c
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*lines, *(shown(f"cannot be opened: {c['error']}") for c in caches if "error" in c)])


def training_report(result: "TrainResult") -> dict[str, Any]:
    """Sum a training run up."""
    return {"run": str(result.run), **result.metrics, "parameters": result.parameters, "samples": result.samples}


def _progress(text: str) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn(text, markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class ExtractionBar(Meter):
    """Show images/s, bytes written and time left of an extraction; a line a minute where there is no terminal."""

    name = "extracting"
    _shown = 0.0

    def __enter__(self) -> Self:
        self._bar = _progress(
            "{task.completed:.0f}/{task.total:.0f} images, {task.fields[rate]:.0f}/s, {task.fields[size]}"
        )
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, total: int) -> None:
        """Show the bar."""
        super().start(total)
        self._task = self._bar.add_task(self.name, total=total, rate=0.0, size="0 B")

    def update(self) -> None:
        """Move the bar."""
        super().update()
        rate, size, done = self.images / self.seconds, readable_bytes(self.bytes), self.images + self.elsewhere
        self._bar.update(self._task, completed=done, rate=rate, size=size)
        if done and not console.is_terminal and self.seconds - self._shown >= LINE_SECONDS:
            self._shown = self.seconds
            done = min(done, self.total)  # two processes may both have written some
            left = (self.total - done) / (done / self.seconds) / 60
            note(f"{done}/{self.total} images, {rate:.0f}/s, {size}, {left:.0f} min left")


class PredictionBar(ExtractionBar):
    """Show the same of predictions."""

    name = "predicting"


class PassBar:
    """Show passes over samples and time left; a line a minute where there is no terminal.

    Args:
        name: what is done.
        total: passes.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self._bar = _progress("{task.completed:.2f}/{task.total:.0f}{task.fields[figures]}")

    def __enter__(self) -> Self:
        self._task = self._bar.add_task(self.name, total=self.total, figures="")
        self._bar.start()
        self._shown = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, passes: float) -> None:
        """Take the passes done so far, with their fraction."""
        self._bar.update(self._task, completed=passes)
        if perf_counter() - self._shown >= LINE_SECONDS:
            self.line(f"{self.name} {passes:.2f}/{self.total}")

    def line(self, text: str) -> None:
        """Print a line where there is no terminal."""
        if not console.is_terminal:
            note(text)
        self._shown = perf_counter()


class TrainingBar(PassBar):
    """Show epochs, and the loss and the selection metric of the last; a line every tenth where there is no terminal.

    Says what limits an epoch whenever that changes, unless epochs are over in no time.
    """

    _limiter = ""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__("epoch", config.epochs)
        self._metric = config.learns.selection

    def staging(self, share: float) -> None:
        """Take the share of the cache that is copied."""
        self._bar.update(self._task, figures=f", {share:.0%} of the cache copied")
        if perf_counter() - self._shown >= LINE_SECONDS:
            self.line(f"{share:.0%} of the cache copied")

    def __call__(self, metrics: dict[str, Any]) -> None:
        """Take an epoch's metrics."""
        epoch = metrics["epoch"]
        figures = f"loss {metrics['train_loss']:.3f}"
        if (value := metrics.get(self._metric.held_out)) is not None:
            figures += f", val {self._metric.title} {self._metric.show(value)}"
        self._bar.update(self._task, completed=epoch, figures=f", {figures}")
        if epoch % max(1, self.total // 10) == 0 or epoch == self.total:
            self.line(f"epoch {epoch}/{self.total}: {figures}, {metrics['train_seconds']:.2f} s")
        limiter = metrics["limiter"].partition("(")[0]
        if limiter != self._limiter and metrics["train_seconds"] >= WORTH_SHORTENING:
            self._limiter = limiter
            note(f"epoch {epoch}: {metrics['limiter']}")
