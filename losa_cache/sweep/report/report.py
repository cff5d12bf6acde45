"""A sweep as one HTML file that needs nothing else: no script, no font, no network."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from losa_cache.errors import UserError
from losa_cache.files import write_whole
from losa_cache.machine.energy import CPU, GPU
from losa_cache.sweep.engine.record import (
    COMPLETE,
    FAILED,
    PRUNED,
    SweepRecord,
    TrialRecord,
    effects,
    pareto_front,
    seed_groups,
)
from losa_cache.sweep.report.figures import draw
from losa_cache.sweep.report.findings import count_states, findings, say
from losa_cache.sweep.report.html_page import render
from losa_cache.tasks import Metric

NAME = "report.html"
CAPTIONS = {
    "accuracy": "Validation {metric} against trained parameters. The Pareto front joins the options that no others "
    "beat with as few parameters; of options trained with several seeds it takes the mean. The level lines, if any, "
    "are the tuned probe of the same cache: the line to beat.",
    "curves": "Validation {metric} over epochs, of the chosen trial, the best others and, in grey, the rest.",
    "effects": "Validation {metric} by each value of each hyper-parameter. The others vary along, so a difference "
    "between two values may be theirs; one smaller than the spread over seeds may be nobody's. Strokes and numbers at "
    "the foot are trials that did not run to their end: they are in no mean.",
}


def write_report(record: SweepRecord, folder: str | Path) -> Path:
    """Write ``report.html`` and, beside it, the figures in it as PNGs; each whole or not at all, the HTML last.

    Returns:
        path of the HTML file.

    Raises:
        UserError: without matplotlib, or if the folder cannot be written.
    """
    figures = draw(record)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, png in figures.items():
            write_whole(folder / f"{name}.png", png)
        write_whole(folder / NAME, html(record, figures).encode())
    except OSError as error:
        raise UserError(f"report folder {str(folder)!r} cannot be written ({error.strerror}).") from error
    return folder / NAME


def html(record: SweepRecord, figures: Mapping[str, bytes]) -> str:
    """Lay a sweep out.

    Args:
        record: the sweep.
        figures: PNGs by name, as of :func:`losa_cache.sweep.report.figures.draw`.
    """
    metric, chosen = record.metric, record.chosen_trial
    others = [trial for trial in _front(record) if trial is not chosen]
    return render(
        "sweep.html",
        record.title,
        findings=findings(record),
        chosen=None if chosen is None else _words(chosen),
        others=[(f"Trial {one.number}, {one.parameters:,} parameters, {_shown(one)}:", _words(one)) for one in others],
        figures=[(name, png, CAPTIONS[name].format(metric=metric.title)) for name, png in figures.items()],
        trials=_trials(record),
        effects=_effects(record),
        circumstances=_circumstances(record),
    )


@dataclass(frozen=True)
class _Table:
    """A table of the report: a row is the name of its style, and its cells."""

    caption: str
    head: list[str]
    rows: list[tuple[str, list[str]]]


def _words(trial: TrialRecord) -> list[str]:
    """Split a command into words and the space between them."""
    return re.split(r"(\s+)", trial.command)


def _trials(record: SweepRecord) -> _Table:
    names = list(dict.fromkeys(name for trial in record.trials for name in trial.options))
    front = _front(record)
    head = ["trial", "state", record.metric.label, "parameters", "GMACs", *names, "epochs", "seconds"]
    rows = []
    for trial in sorted(record.trials, key=_standing):
        marks = ["chosen"] * (trial.number == record.chosen) + ["Pareto front"] * (trial in front)
        options = [say(trial.options[name]) if name in trial.options else "" for name in names]
        value = _value(trial.value, record.metric)
        state = ", ".join([trial.state, *marks])
        macs = "" if trial.macs is None else f"{trial.macs / 1e9:.3g}"
        cells = [str(trial.number), state, value, f"{trial.parameters:,}", macs, *options]
        style = "chosen" if trial.number == record.chosen else "" if trial.state == COMPLETE else "ended"
        rows.append((style, [*cells, str(len(trial.curve)), f"{trial.seconds:.1f}"]))
    by = f"their {record.metric.title} after their last epoch"
    caption = (
        f"Complete trials first, the best on top; the others by {by}. GMACs are what an adapter adds to one sample: "
        "billions of multiply-accumulates."
    )
    return _Table(caption, head, rows)


def _effects(record: SweepRecord) -> _Table:
    rows: list[tuple[str, list[str]]] = []
    metric = record.metric
    for effect in effects(record.trials):
        for level in [] if effect.continuous else effect.levels:
            ends = (level.low, level.high) if metric.higher else (level.high, level.low)
            figures = [_value(value, metric) for value in (level.mean, *ends)]
            rows.append(("", [effect.name, say(level.value), *figures, str(len(level.values)), str(level.ended)]))
    head = ["hyper-parameter", "value", f"mean {metric.label}", "worst", "best", "complete", "not complete"]
    return _Table("Means are over complete trials, whatever their other options.", head, rows)


def _circumstances(record: SweepRecord) -> dict[str, str]:
    seconds = record.finished - record.started
    ended = sum(trial.state in (COMPLETE, PRUNED, FAILED) for trial in record.trials)
    begun = datetime.fromtimestamp(record.started, UTC)
    return {
        "Cache": record.cache,
        "Identity": record.identity,
        "Data set": f"{record.dataset}: {record.training_samples:,} training and {record.validation_samples:,} "
        "validation samples",
        "Trials": count_states(record),
        **_measured(record),
        "Time": f"{_duration(seconds)} from {begun:%Y-%m-%d %H:%M} UTC"
        + (f", {ended * 3600 / seconds:,.0f} trials an hour" if seconds > 0 and ended else ""),
        "Machine": record.machine,
    }


def _measured(record: SweepRecord) -> dict[str, str]:
    """Say what the trials took of memory and energy, where it was measured."""
    epochs = [epoch for trial in record.trials for epoch in trial.curve]
    peaks = [epoch["train_peak_gb"] for epoch in epochs if "train_peak_gb" in epoch]
    joules = [epoch[f"train_{name}"] for epoch in epochs for name in (CPU, GPU) if f"train_{name}" in epoch]
    found = {"Peak memory": f"{max(peaks):.2f} GB"} if peaks else {}
    return found | ({"Energy": f"{math.fsum(joules) / 1000:,.1f} kJ in training steps"} if joules else {})


def _front(record: SweepRecord) -> list[TrialRecord]:
    """Trials of the groups on the Pareto front, by parameters."""
    groups = seed_groups(record.trials)
    front = pareto_front([(group.parameters, group.merit) for group in groups])
    return [trial for index in front for trial in groups[index].trials]


def _standing(trial: TrialRecord) -> tuple[bool, float, int]:
    value = trial.value
    order = math.inf if value is None else -trial.metric.merit(value)
    return trial.state != COMPLETE or value is None, order, trial.number


def _shown(trial: TrialRecord) -> str:
    return "" if trial.value is None else f"{trial.metric.title} {trial.metric.show(trial.value)}"


def _value(value: float | None, metric: Metric) -> str:
    return "" if value is None else f"{value:.{metric.digits + 1}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
