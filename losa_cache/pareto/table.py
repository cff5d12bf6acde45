"""A comparison as a table, for the terminal and in Markdown, with notes on what the figures mean. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from losa_cache.pareto.entries import named_in
from losa_cache.pareto.plan import CACHE, EXTRACTION_COST
from losa_cache.pareto.record import Extraction, NoiseCost, Study
from losa_cache.pareto.rows import CACHED, SIDE, TRIALS, Row, on_any_front, rows
from losa_cache.text import NONE, columns, markdown_table, shown
from losa_cache.train.config import TrainConfig, of_recipe

PAPER_SPEED, PAPER_POINTS = 2.35, 0.4
"""By how much LoSA trains faster than LoRA and is better in the paper (section 4.2 and Fig. 4: ViT-g, iNaturalist 2018,
the backbone in every step)."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        head: its head.
        cell: gives a row's cell.
        costs_alone: whether it is also one of costs without accuracy.
    """

    head: str
    cell: Callable[[Row], str]
    costs_alone: bool = True


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _speed(value: float | None) -> str:
    return NONE if value is None else format(value, ",.0f" if value >= 100 else ".3g")


COLUMNS = (
    Column("method", lambda row: row.name),
    Column("trained", lambda row: row.kind),
    Column("rate", lambda row: _number(row.rate, "g"), costs_alone=False),
    Column("top-1 (%)", lambda row: _number(row.mean, ".2f"), costs_alone=False),
    Column("± seeds", lambda row: _number(row.deviation, ".2f"), costs_alone=False),
    Column("parameters", lambda row: _number(row.parameters, ",")),
    Column("of these, classifier", lambda row: _number(row.classifier, ",")),
    Column("images/s", lambda row: _speed(row.images_per_second)),
    Column("s in all", lambda row: _number(row.seconds(), ",.0f"), costs_alone=False),
    Column(f"s for {TRIALS}", lambda row: _number(row.seconds(TRIALS), ",.0f"), costs_alone=False),
    Column("peak GB", lambda row: _number(row.peak_gb, ".2f")),
    Column("GMACs", lambda row: _number(row.gmacs, ".4g")),
)
ENERGY = Column("kJ", lambda row: _number(None if row.joules is None else row.joules / 1e3, ".3g"), costs_alone=False)
"""A column where the machine has meters."""
FRONT = "on the Pareto front of"


def cells(study: Study) -> tuple[list[str], list[list[str]]]:
    """Give the head of the table and its rows; of a study with accuracies the best is on top."""
    found = rows(study)
    if study.shape_only:
        taken = [column for column in COLUMNS if column.costs_alone]
        return [column.head for column in taken], [[column.cell(row) for column in taken] for row in found]
    fronts = on_any_front(found)
    ranked = sorted(found, key=lambda row: -1.0 if row.mean is None else row.mean, reverse=True)
    taken = [*COLUMNS, ENERGY] if _metered(found) else [*COLUMNS]
    lines = [[*(column.cell(row) for column in taken), ", ".join(fronts[row.name]) or NONE] for row in ranked]
    return [*(column.head for column in taken), FRONT], lines


def _metered(found: Sequence[Row]) -> bool:
    return any(row.joules is not None for row in found)


def text(study: Study) -> str:
    """Lay it out for a terminal."""
    head, lines = cells(study)
    return "\n\n".join([shown(study.title), columns([head, *lines]), *map(shown, notes(study))])


def markdown(study: Study) -> str:
    """Lay it out in Markdown."""
    head, lines = cells(study)
    return (
        "\n\n".join([f"# {shown(study.title)}", markdown_table([head, *lines], left=2), *map(shown, notes(study))])
        + "\n"
    )


def notes(study: Study) -> list[str]:
    """Say how the figures came about, what they mean, and what is missing."""
    found, options = rows(study), study.options
    if study.shape_only:
        told = [_shapes(study)]
    else:
        told = [_protocol(study), *_classifiers(study), *_budget(study, found)]
        told += [*_interrupted(found), *_overhead(found), *_extraction(study, found)]
    told.append(
        "Parameters are those that are trained. Images/s are those of training steps. GMACs are counted on the modules "
        "of one sample at inference, in 1e9 multiply-accumulates, the backbone's among them; the paper calls them "
        "GFLOPs. Peak memory is that of the GPU where there is one, else that of the process, libraries among it."
    )
    if not study.shape_only and _metered(found):
        told.append("Energy is that of one training, read from the machine's own meters; others on it count, too.")
    elif not study.shape_only:
        told.append("Energy is not known: no meter of this machine could be read.")
    told += _paper(found)
    told += [f"{row.name} {failure}" for row in found for failure in row.failures]
    told += [f"{row.name}: {row.error}" for row in found if row.error is not None and row.error not in row.failures]
    if options["grad_checkpointing"]:
        told.append("Methods inside the backbone computed outputs of blocks again in the backward pass.")
    return [*told, f"Machine: {study.machine}."]


def _shapes(study: Study) -> str:
    told = (
        f"Costs without accuracy: random weights, noise, batches of {study.options['batch_size']}, "
        f"{study.options['classes']} classes. No image was decoded and nothing was read from a disk: side networks "
        "from a cache were trained on made-up outputs of blocks in memory."
    )
    if (extraction := study.result(EXTRACTION_COST, NoiseCost)) is None:
        return told
    return (
        f"{told} Their extraction runs the backbone once over each image, at {_speed(extraction.images_per_second)} "
        f"images/s and in {extraction.peak_gb:.2f} GB."
    )


def _protocol(study: Study) -> str:
    options = study.options
    tuned = (
        f"The learning rate of each method was chosen among {options['rates']}, half a decade apart around its "
        f"default, by top-1 on {options['val_fraction']:.0%} of the training samples, the same ones for all methods. "
        "With it the method"
        if options["rates"] > 1
        else "Each method, at its default learning rate,"
    )
    epochs = "one epoch" if options["epochs"] == 1 else f"{options['epochs']} epochs"
    seeds = "one seed" if options["seeds"] == 1 else f"each of {options['seeds']} seeds"
    return (
        f"{tuned} was trained on all training samples with {seeds}, and tested once on the "
        f"split {options['test_split']}. Every training took {epochs} in batches of "
        f"{options['batch_size']}, with the recipe {options['recipe']}."
    )


def _classifiers(study: Study) -> list[str]:
    """Say whose classifier is not the paper's."""
    recipe = study.options["recipe"]
    sides = [entry for entry in named_in(study.methods) if entry.side is not None]
    wide = [own.text for own in sides if TrainConfig(**of_recipe(recipe) | {"side": own.side}).reads_all]
    if not wide:
        return []
    return [
        f"The classifier of {', '.join(wide)} reads all layers (--head all of train, not from the paper), and a probe "
        "of all layers, fitted in closed form, is added to it; methods inside the backbone have a linear classifier on "
        "the last layer. With --recipe paper they have one, too, as in the paper."
    ]


def _overhead(found: Sequence[Row]) -> list[str]:
    """Name the methods whose seconds are mostly not those of training steps."""
    mostly = [
        row.name
        for row in found
        if row.train_seconds is not None and row.epoch_seconds is not None and 2 * row.epoch_seconds < row.train_seconds
    ]
    if not mostly:
        return []
    return [
        f"More than half of the seconds of {', '.join(mostly)} are not training steps: the process starts, opens the "
        "data and saves. Then the seconds, and the Pareto front of time, say little of a method; images/s do."
    ]


def _budget(study: Study, found: Sequence[Row]) -> list[str]:
    """State what the choice of the rates took."""
    if not (count := sum(row.choices for row in found)):
        return []
    seconds = sum(row.choice_seconds for row in found if row.choice_seconds is not None)
    left = count - sum(row.choices_timed for row in found)
    without = f", without the {left} that were interrupted" if left else ""
    told = [f"The choice of learning rates took {count} trainings and {seconds:,.0f} s{without}."]
    if edges := [f"{row.name} ({row.rate:g})" for row in found if row.edge]:
        told.append(
            f"The chosen rate is the least or the largest tried of {', '.join(edges)}: one beyond it may be better."
        )
    return told


def _interrupted(found: Sequence[Row]) -> list[str]:
    """Say whose seconds are those of some trainings, or of none."""
    some = [f"{row.name} ({row.trained - row.timed} of {row.trained})" for row in found if row.timed < row.trained]
    if not some:
        return []
    return [f"Trainings that were interrupted have no seconds and no energy: {', '.join(some)}."]


def _extraction(study: Study, found: Sequence[Row]) -> list[str]:
    cached = [row for row in found if row.kind == CACHED]
    if not cached:
        return []
    work, extraction = study.work(CACHE), study.result(CACHE, Extraction)
    took = f" ({work.seconds:,.0f} s)" if work.seconds is not None else ""
    told = f"Methods from a cache share one extraction{took}, which is counted once in the seconds of each."
    if extraction is not None and extraction.peak_gb is None:
        told += " Its peak memory is not known: that of these methods is of their trainings alone."
    elif extraction is not None:
        less = [row.name for row in cached if row.peak_gb == extraction.peak_gb]
        told += (
            f" Peak memory is that of the extraction for {', '.join(less)}, whose trainings take less." if less else ""
        )
    if extraction is not None and work.seconds is None:
        told += " The extraction was not seen from its start to its end: its seconds are not known."
    told += (
        f" Seconds for {TRIALS} trainings are of one after the other; losa-cache sweep trains many from one pass "
        "over a cache, in less."
    )
    return [told]


def _paper(found: Sequence[Row]) -> list[str]:
    """Put the paper's ratio of LoSA and LoRA beside those found here."""
    lora = next((row for row in found if row.name.split(":")[0].split("@")[0] == "lora"), None)
    if lora is None or not lora.images_per_second:
        return []
    ours: dict[bool, list[str]] = {True: [], False: []}
    for row in found:
        if row.name.split(":")[0].split("@")[0] == "losa" and row.images_per_second:
            points = "" if row.mean is None or lora.mean is None else f", at {row.mean - lora.mean:+.1f} points"
            ratio = row.images_per_second / lora.images_per_second
            ours[row.kind == SIDE].append(f"{row.name} {ratio:.2f} x{points}")
    told = []
    if ours[True]:
        told.append(
            f"The paper: LoSA trains {PAPER_SPEED} x as fast as LoRA, at +{PAPER_POINTS} points (Fig. 4: ViT-g, "
            f"iNaturalist 2018, the backbone in every step). Here, with the backbone in every step, against "
            f"{lora.name}: {'; '.join(ours[True])}."
        )
    if ours[False]:
        told.append(
            f"Training steps from the cache, without the extraction, against {lora.name}: {'; '.join(ours[False])}."
        )
    return told
