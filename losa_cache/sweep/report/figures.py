"""A sweep in figures: held-out values against parameters, learning curves, the effect of each option. PNGs."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from losa_cache.sweep.engine.record import (
    COMPLETE,
    Effect,
    Spread,
    SweepRecord,
    TrialRecord,
    completed,
    effects,
    pareto_front,
    seed_groups,
    seed_spread,
)
from losa_cache.sweep.report.drawing import (
    BLUE,
    DOT,
    INK,
    ORANGE,
    PALE,
    RED,
    STYLES,
    legend,
    metric_axis,
    number_axis,
    panels,
    plain,
    png,
    require_matplotlib,
)
from losa_cache.sweep.report.findings import say
from losa_cache.tasks import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 12
"""Values of a hyper-parameter that fit one panel."""
LETTERS = 80
"""Of labels that fit beside each other across a figure."""
_DOTS: dict[str, Any] = {"s": 14, "color": DOT, "linewidths": 0, "alpha": 0.8, "zorder": 5, "label": "complete trial"}
_ENDED = "not complete"


def draw(record: SweepRecord) -> dict[str, bytes]:
    """Draw the figures for which there are data.

    Returns:
        PNGs by name: ``accuracy``, ``curves``, ``effects``.

    Raises:
        UserError: without matplotlib.
    """
    require_matplotlib()
    figures = {"accuracy": accuracy(record), "curves": curves(record), "effects": effect_panels(record)}
    return {name: png(figure) for name, figure in figures.items() if figure is not None}


def accuracy(record: SweepRecord) -> "Figure | None":
    """Held-out value against trained parameters: a point for trials that differ in their seed alone."""
    groups = seed_groups(record.trials)
    if not groups:
        return None
    figure, (axes,) = panels(1, 1, 4.4)
    points = [(group.parameters, group.mean) for group in groups]
    repeated = [group for group in groups if group.deviation is not None]
    if repeated:
        axes.errorbar(
            [group.parameters for group in repeated],
            [group.mean for group in repeated],
            [group.deviation or 0.0 for group in repeated],
            fmt="none",
            ecolor=DOT,
            elinewidth=1,
            capsize=3,
            label="± one standard deviation over seeds",
        )
    name = "mean over seeds" if repeated else "trial"
    axes.scatter(*_xy(points), s=22, color=DOT, edgecolors="white", linewidths=0.5, label=name, zorder=3)
    front = [points[i] for i in pareto_front([(group.parameters, group.merit) for group in groups])]
    axes.step(*_xy(front), where="post", color=BLUE, linewidth=1.2, zorder=2)
    axes.plot(
        *_xy(front),
        "o",
        color=BLUE,
        markersize=6.5,
        markeredgecolor="white",
        label="Pareto front",
        zorder=4,
    )
    wanted = record.chosen_trial
    chosen = next((group for group in groups if wanted in group.trials), None)
    if chosen is not None:
        axes.plot(
            chosen.parameters,
            chosen.mean,
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor=RED,
            markeredgewidth=1.8,
            linestyle="none",
            label=f"chosen: trial {record.chosen}",
            zorder=5,
        )
    _levels(axes, record)
    number_axis(axes, [x for x, _ in points])
    axes.set_xlabel("trained side-network parameters")
    metric_axis(axes, record.metric)
    legend(figure)
    return figure


def curves(record: SweepRecord) -> "Figure | None":
    """Held-out value over epochs: the chosen trial and the best others in colour, all others in grey.

    If there are enough epochs, a second panel shows the last half of them enlarged.
    """
    from matplotlib.ticker import MaxNLocator

    drawn = [trial for trial in record.trials if _validated(trial)]
    if not drawn:
        return None
    ranked = sorted(completed(record.trials), key=lambda trial: -record.metric.merit(trial.value or 0.0))
    best = sorted(ranked, key=lambda trial: trial.number != record.chosen)[: len(STYLES)]
    last, last_of_best = _last_epoch(drawn), _last_epoch(best)
    figure, grid = panels(1, 2 if last_of_best > 3 else 1, 4.4)
    for axes in grid:
        for trial in sorted(drawn, key=lambda trial: trial.state != COMPLETE):
            if trial not in best:
                _grey_curve(axes, trial)
        for number, trial in reversed(list(enumerate(best))):
            _coloured_curve(axes, trial, *STYLES[number], chosen=trial.number == record.chosen, dots=last <= 10)
        _levels(axes, record)
        axes.set_xlim(*((0.5, 1.5) if last == 1 else (1 - last / 40, last + last / 40)))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    metric_axis(grid[0], record.metric)
    if len(grid) > 1:
        _close_up(grid[1], best, last_of_best)
    legend(figure, reverse=True)
    return figure


def _levels(axes: "Axes", record: SweepRecord) -> None:
    """Draw the lines to beat."""
    known = [] if record.to_beat is None else record.to_beat.judged_by(record.metric)
    for (line, value), style in zip(known, ("--", ":"), strict=False):
        name = f"{line.name}: {record.metric.show(value)}"
        axes.axhline(value, color=INK, linewidth=1.1, linestyle=style, label=name, zorder=2.5)


def _close_up(axes: "Axes", best: list[TrialRecord], last: int) -> None:
    """Cut a panel down to the last half of these curves."""
    half = math.ceil(last / 2)
    late = [value for trial in best for epoch, value in _validated(trial) if epoch >= half]
    room = max(10 * best[0].metric.resolution, (max(late) - min(late)) / 10)
    axes.set_xlim(half, last + last / 80)
    axes.set_ylim(min(late) - room, max(late) + room)
    axes.set_title("the best, close up", fontsize=9, color=INK)


def _grey_curve(axes: "Axes", trial: TrialRecord) -> None:
    done = trial.state == COMPLETE
    axes.plot(
        *_xy(_validated(trial)),
        color=DOT if done else PALE,
        alpha=0.6,
        linewidth=0.8,
        marker="." if done else "x",
        markevery=[-1],
        markersize=3.5,
        markeredgecolor=DOT if done else INK,
        markeredgewidth=0.6,
        label="other complete trials" if done else "not complete",
    )


def _coloured_curve(axes: "Axes", trial: TrialRecord, colour: str, style: Any, *, chosen: bool, dots: bool) -> None:
    axes.plot(
        *_xy(_validated(trial)),
        color=RED if chosen else colour,
        linestyle=style,
        linewidth=2.2 if chosen else 1.5,
        marker="o" if dots else None,
        markersize=3.5,
        label=f"trial {trial.number}: {trial.metric.show(trial.value or 0.0)}" + (" (chosen)" if chosen else ""),
    )


def effect_panels(record: SweepRecord) -> "Figure | None":
    """Held-out value by each value of each hyper-parameter, a panel each."""
    shown = [effect for effect in effects(record.trials) if any(level.values for level in effect.levels)]
    if not shown:
        return None
    columns = min(3, len(shown))
    figure, grid = panels(math.ceil(len(shown) / columns), columns, 2.7, share=True)
    done = [trial.value for trial in completed(record.trials) if trial.value is not None]
    mean, spread = math.fsum(done) / len(done), seed_spread(seed_groups(record.trials))
    for number, (effect, axes) in enumerate(zip(shown, grid, strict=False)):
        if spread is not None:
            _band(axes, mean, spread)
        if effect.continuous:
            _continuous(axes, effect)
        else:
            _discrete(axes, effect, columns, record.metric)
        axes.set_xlabel(plain(effect.name))
        metric_axis(axes, record.metric, label=number % columns == 0)
    for axes in grid[len(shown) :]:
        axes.remove()
    if any(level.ended for effect in shown for level in effect.levels):
        low, high = grid[0].get_ylim()
        grid[0].set_ylim(low - 0.1 * (high - low), high)  # room for what is told of trials without a final value
    legend(figure)
    return figure


def _band(axes: "Axes", mean: float, spread: Spread) -> None:
    axes.axhspan(
        mean - spread.deviation,
        mean + spread.deviation,
        color=ORANGE,
        alpha=0.25,
        linewidth=0,
        label="mean of all ± one standard deviation over seeds",
    )


def _continuous(axes: "Axes", effect: Effect) -> None:
    levels = effect.levels
    axes.scatter(*_xy([(level.value, y) for level in levels for y in level.values]), **_DOTS)
    ended = [level.value for level in levels for _ in range(level.ended)]
    if ended:
        axes.plot(ended, [0.04] * len(ended), "|", transform=axes.get_xaxis_transform(), color=DOT, label=_ENDED)
    number_axis(axes, [level.value for level in levels])


def _discrete(axes: "Axes", effect: Effect, columns: int, metric: Metric) -> None:
    levels = effect.levels
    if len(levels) > LEVELS:
        best = sorted(levels, key=lambda level: math.inf if level.mean is None else -metric.merit(level.mean))[:LEVELS]
        axes.set_title(f"the best {LEVELS} of {len(levels)} values", fontsize=9, color=INK)
        levels = [level for level in levels if level in best]
    points = [
        (place + 0.09 * (number % 5 - (min(5, len(level.values)) - 1) / 2), y)  # side by side, by a fixed pattern
        for place, level in enumerate(levels)
        for number, y in enumerate(level.values)
    ]
    axes.scatter(*_xy(points), **_DOTS)
    means = [(place, level.mean) for place, level in enumerate(levels) if level.mean is not None]
    axes.plot(*_xy(means), "_", color=BLUE, markersize=18, markeredgewidth=2.2, label="mean", zorder=4)
    for place, level in enumerate(levels):
        if level.ended:
            foot = axes.get_xaxis_transform()
            axes.plot(place, 0.04, "|", transform=foot, color=DOT, label=_ENDED)
            axes.annotate(
                str(level.ended),
                (place, 0.04),
                xycoords=foot,
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
    names = [plain(say(level.value)) for level in levels]
    axes.set_xticks(range(len(levels)), names)
    if sum(map(len, names)) + 2 * len(names) > LETTERS / columns:
        axes.tick_params("x", rotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(levels) - 0.5)


def _validated(trial: TrialRecord) -> list[tuple[int, float]]:
    name = trial.metric.held_out
    return [(epoch["epoch"], epoch[name]) for epoch in trial.curve if epoch.get(name) is not None]


def _last_epoch(trials: list[TrialRecord]) -> int:
    return max((epoch for trial in trials for epoch, _ in _validated(trial)), default=0)


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
