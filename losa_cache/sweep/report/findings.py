"""The findings of a sweep, in sentences for a report and a terminal: its choice, the data behind it, and how sure it
is.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from losa_cache.probe.record import strength
from losa_cache.sweep.engine.record import (
    COMPLETE,
    STATES,
    Group,
    ProbeLine,
    SweepRecord,
    ToBeat,
    key,
    seed_groups,
    seed_spread,
    without_seed,
)
from losa_cache.tasks import Metric, get_task


def findings(record: SweepRecord) -> dict[str, str]:
    """Give sentences by heading: the choice, the samples of validation and test, the comparison with others, and the
    noise.
    """
    groups = seed_groups(record.trials)
    found = {"Chosen": _chosen(record, groups), "Selected on": _selected(record), "Tested on": _tested(record)}
    if record.choice is not None:
        found["How sure"] = record.choice["sure"]
    if record.to_beat is not None:
        found["Line to beat"] = _to_beat(record, record.to_beat)
    ours, rival = _rivals(record, groups)
    if ours is not None and rival is not None:
        found["Next best"] = _difference(record, ours, rival, groups)
    if groups:
        found["Noise"] = _noise(record, groups)
    return found


def say(value: Any) -> str:
    """Write an option's value as one would on a command line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ",".join(map(say, value))
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def say_options(options: Mapping[str, Any]) -> str:
    """Write options as ``rank 8, lr 0.001``."""
    return ", ".join(f"{name} {say(value)}" for name, value in options.items()) or "no options"


def count_states(record: SweepRecord) -> str:
    """Say how many trials there are, and how they ended."""
    states = Counter(trial.state for trial in record.trials)
    told = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    return f"{len(record.trials)} ({told})" if record.trials else "none"


def _chosen(record: SweepRecord, groups: list[Group]) -> str:
    trial = record.chosen_trial
    if trial is None:
        return (
            "No trial was chosen." if groups else "No trial was chosen: none ran to its end with a validation result."
        )
    metric, value = trial.metric, "no validation result"
    if trial.value is not None:
        value = f"validation {metric.title} {metric.show(trial.value)}"
    ours, _ = _rivals(record, groups)
    over = ""
    if ours is not None and len(ours.values) > 1:
        spread = metric.show_around(ours.mean, ours.deviation or 0.0)
        over = f" ({spread} over {len(ours.values)} seeds"
        over += f", {ours.ended} more not complete)" if ours.ended else ")"
    epochs = f"{len(trial.curve)} epoch{'' if len(trial.curve) == 1 else 's'}"
    return (
        f"Trial {trial.number}: {say_options(trial.options)}. It trains {trial.parameters:,} parameters and reached "
        f"{value}{over} after {epochs}."
    )


def _selected(record: SweepRecord) -> str:
    told = f"{record.validated_on}. {record.protocol}"
    done = sum(trial.state == COMPLETE for trial in record.trials)
    if record.chosen is not None and done > 1:
        told += f" As the pick of {done} complete trials its validation figure is rather too high than too low."
    return told


def _tested(record: SweepRecord) -> str:
    test = record.test
    if test is None:
        return "No test set was read."
    trained = "trained again by itself for it" if test["retrained"] else "as the sweep trained it"
    return (
        f"Split {test['split']} of {test['on']}, {test['samples']:,} samples, once, with the chosen trial alone, "
        f"{trained}: {get_task(record.task).choosing(record.chosen_by).say(test, errors=test['samples'])}."
    )


def _to_beat(record: SweepRecord, probe: ToBeat) -> str:
    trial, metric = record.chosen_trial, record.metric
    known = probe.judged_by(metric)
    if not known:
        return probe.told
    best = max((value for _, value in known), key=metric.merit)
    values = "; ".join(f"{line.name}: {_figures(line, value, metric)}" for line, value in known)
    told = f"{values[0].upper()}{values[1:]}."
    if trial is not None and trial.value is not None:
        ahead = trial.value - best
        told += f" The chosen trial is {_place(ahead, metric)} the better of these"
        error = metric.error(best, record.validation_samples)
        if error is not None:
            told += (
                f"; one standard error of a {metric.title} on these {record.validation_samples:,} samples is "
                f"{metric.show_difference(error)}"
            )
        told += "."
    return f"{told} {probe.told}"


def _place(ahead: float, metric: Metric) -> str:
    """Say how far above another value one is."""
    if abs(ahead) < metric.resolution:
        return "level with"
    return f"{metric.show_difference(abs(ahead))} {'above' if ahead > 0 else 'below'}"


def _figures(line: ProbeLine, value: float, metric: Metric) -> str:
    test = "" if line.test_top1 is None else f", test top-1 {line.test_top1:.1f} %"
    chosen = strength(line.method, line.c)
    return f"{metric.title} {metric.show(value)} held out{test} ({line.method}, rows: {line.rows}, {chosen})"


def _rivals(record: SweepRecord, groups: list[Group]) -> tuple[Group | None, Group | None]:
    """The chosen trial's group, and the best of the others."""
    if (trial := record.chosen_trial) is None:
        return None, None
    wanted = key(without_seed(trial.options))
    ours = next((group for group in groups if key(group.options) == wanted), None)
    return ours, next((group for group in groups if group is not ours), None)


def _difference(record: SweepRecord, ours: Group, rival: Group, groups: list[Group]) -> str:
    ahead, metric = ours.mean - rival.mean, record.metric
    names = ", ".join(str(trial.number) for trial in rival.trials[:5]) + (", ..." if len(rival.trials) > 5 else "")
    changed = {name: value for name, value in rival.options.items() if ours.options.get(name) != value}
    told = (
        f"Trial{'s' if len(rival.trials) > 1 else ''} {names}, with {say_options(changed)}, at "
        f"{metric.show(rival.mean)}: {_place(-ahead, metric)} the chosen options."
    )
    if (spread := seed_spread(groups)) is None:
        if record.choice is not None:
            return f"{told} How much of that another seed would give is not known."
        return f"{told} Without trials of other seeds nothing says whether that is more than noise."
    error = spread.deviation * math.sqrt(1 / len(ours.values) + 1 / len(rival.values))
    if abs(ahead) <= 2 * error:
        return f"{told} Seeds alone give differences of that size: the sweep does not tell the two apart."
    return (
        f"{told} Seeds alone seldom give that much: one standard error of such a difference is "
        f"{metric.show_difference(error, 1)}."
    )


def _noise(record: SweepRecord, groups: list[Group]) -> str:
    spread, metric = seed_spread(groups), record.metric
    if spread is None:
        told = "No options were trained with two seeds, so how far a seed alone moves a trial is not known."
    else:
        settings = "one setting" if spread.groups == 1 else f"{spread.groups} settings"
        told = (
            f"Trials that differ in their seed alone have a standard deviation of "
            f"{metric.show_difference(spread.deviation, 1)} "
            f"({spread.trials} trials of {settings})."
        )
    samples = record.validation_samples
    error = metric.error(groups[0].mean, samples) if samples else None
    if error is not None:
        told += (
            f" One standard error of a {metric.title} on {samples:,} samples is {metric.show_difference(error)}; "
            "between trials, which were validated on the same samples, it is somewhat less."
        )
    return told
