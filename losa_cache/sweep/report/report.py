"""A sweep as one HTML file that needs nothing else: no script, no font, no network."""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from losa_cache.errors import UserError
from losa_cache.files import write_whole
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
from losa_cache.sweep.report.html_page import facts, page, picture, table, text
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
    body = [
        "<h2>What was chosen, and on what evidence</h2>",
        facts(findings(record)),
        *_commands(record),
        "<h2>Figures</h2>",
        *(picture(name, png, CAPTIONS[name].format(metric=record.metric.title)) for name, png in figures.items()),
        *([] if figures else ["<p>No trial has a validation result: there is nothing to draw.</p>"]),
        "<h2>Trials</h2>",
        _trials(record),
        *_effects(record),
        "<h2>The sweep</h2>",
        facts(_circumstances(record)),
    ]
    return page(record.title, body)


def _commands(record: SweepRecord) -> Iterable[str]:
    if (chosen := record.chosen_trial) is not None:
        yield "<p>This command trains it alone:</p>"
        yield _command(chosen)
    others = [trial for trial in _front(record) if trial is not chosen]
    if others:
        yield "<details><summary>Commands of the other trials on the Pareto front</summary>"
        for trial in others:
            yield f"<p>Trial {trial.number}, {trial.parameters:,} parameters, {_shown(trial)}:</p>"
            yield _command(trial)
        yield "</details>"


def _command(trial: TrialRecord) -> str:
    """A command as it is, whose lines are broken between words alone: not inside ``--rank``."""
    words = re.split(r"(\s+)", trial.command)
    return "<pre><code>" + "".join(f"<span>{text(w)}</span>" if w.strip() else w for w in words) + "</code></pre>"


def _trials(record: SweepRecord) -> str:
    names = list(dict.fromkeys(name for trial in record.trials for name in trial.options))
    front = _front(record)
    head = ["trial", "state", record.metric.label, "parameters", *names, "epochs", "seconds"]
    rows = []
    for trial in sorted(record.trials, key=_standing):
        marks = ["chosen"] * (trial.number == record.chosen) + ["Pareto front"] * (trial in front)
        options = [say(trial.options[name]) if name in trial.options else "" for name in names]
        value = _value(trial.value, record.metric)
        state = ", ".join([trial.state, *marks])
        cells = [str(trial.number), state, value, f"{trial.parameters:,}", *options]
        style = "chosen" if trial.number == record.chosen else "" if trial.state == COMPLETE else "ended"
        rows.append((style, [*cells, str(len(trial.curve)), f"{trial.seconds:.1f}"]))
    by = f"their {record.metric.title} after their last epoch"
    caption = f"Complete trials first, the best on top; the others by {by}."
    return table(caption, head, rows)


def _effects(record: SweepRecord) -> Iterable[str]:
    rows, metric = [], record.metric
    for effect in effects(record.trials):
        for level in [] if effect.continuous else effect.levels:
            ends = (level.low, level.high) if metric.higher else (level.high, level.low)
            figures = [_value(value, metric) for value in (level.mean, *ends)]
            rows.append(("", [effect.name, say(level.value), *figures, str(len(level.values)), str(level.ended)]))
    if rows:
        yield "<h2>Effect of each hyper-parameter</h2>"
        head = ["hyper-parameter", "value", f"mean {metric.label}", "worst", "best", "complete", "not complete"]
        yield table("Means are over complete trials, whatever their other options.", head, rows)


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
        "Time": f"{_duration(seconds)} from {begun:%Y-%m-%d %H:%M} UTC"
        + (f", {ended * 3600 / seconds:,.0f} trials an hour" if seconds > 0 and ended else ""),
        "Machine": record.machine,
    }


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
