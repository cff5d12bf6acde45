"""The table of VTAB-1k for the terminal and in Markdown. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from losa_cache.data.sources.vtab import GROUPS, TASKS, VAL
from losa_cache.sweep.vtab.published import PUBLISHED
from losa_cache.sweep.vtab.record import (
    PAPER,
    PAPER_PARAMETERS,
    Mean,
    VtabRecord,
    by_task,
    means_of,
    paper_means,
    paper_top1,
    published_means,
)
from losa_cache.text import NONE, columns, markdown_table


@dataclass(frozen=True)
class Block:
    """Columns that are shown together.

    Attributes:
        columns: their heads.
        rows: their cells, a row for each of the table's.
    """

    columns: list[str]
    rows: list[list[str]]


def text(record: VtabRecord) -> str:
    """Lay the record out for a terminal: the groups one below the other."""
    labels, blocks = _table(record)
    parts = []
    for block in blocks:
        lines = [["", *block.columns], *([label, *row] for label, row in zip(labels, block.rows, strict=True))]
        parts.append(columns(lines))
    return "\n\n".join([*parts, *notes(record)])


def markdown(record: VtabRecord) -> str:
    """Lay the record out in Markdown: one table."""
    labels, blocks = _table(record)
    head = ["top-1, %", *(column for block in blocks for column in block.columns)]
    lines = [head]
    for at, label in enumerate(labels):
        lines.append([label, *(cell for block in blocks for cell in block.rows[at])])
    return "\n\n".join([markdown_table(lines), *notes(record)]) + "\n"


def notes(record: VtabRecord) -> list[str]:
    """Give notes on what the figures mean."""
    found = [record.protocol]
    known = [result.choice for result in record.results if result.choice is not None]
    if doubtful := [choice for choice in known if len(choice["level"]) > 1]:
        mean = sum(len(choice["level"]) for choice in doubtful) / len(doubtful)
        found.append(
            f"How sure the choices are: in {len(doubtful)} of {len(known)} sweeps several options were within one "
            f"standard error of the best ({mean:.1f} in the mean), so {VAL} cannot tell them apart by accuracy, and "
            "the loss decided. Each sweep's report gives the errors."
        )
    if probed := {probe.told for probe in record.to_beat.values() if probe.lines}:
        found += [f"The probes, which LoSA has to beat. {told}" for told in sorted(probed)]
    found += [f"{task}: {probe.told}" for task, probe in record.to_beat.items() if not probe.lines]
    missing = [task.title for name, task in TASKS.items() if name not in record.top1(record.ranks[0])]
    if missing:
        found.append(f"Missing, so in no mean: {', '.join(missing)}.")
    found += [f"Left out: {entry}." for entry in record.left_out]
    if record.unlike:
        found.append(
            "The paper's rows and the published ones (its Table 1, ViT-B of ImageNet-21k) are not comparable with "
            f"these: {'; '.join(record.unlike)}."
        )
    else:
        found.append(
            "The paper's rows are those of its Table 1. Its recipe is not published, nor is its checkpoint known to be "
            "this one: a difference may be due to either."
        )
    found.append(
        "Published rows are other methods' figures as the same table prints them, each from its own publication "
        "(vtab.json names it): none of them was measured here."
    )
    return found


def _table(record: VtabRecord) -> tuple[list[str], list[Block]]:
    """Give the rows' labels and the table's columns in blocks: three groups, what is over all, other tasks."""
    rows: list[tuple[str, Mapping[str, float], str]] = []
    means: list[Mapping[str, Mean]] = []
    for rank in record.ranks:
        rows.append((f"r = {rank}", record.top1(rank), f"{record.parameters(rank):,}"))
        means.append(means_of(record.top1(rank)))
        if rank in PAPER:
            rows.append((f"paper, r = {rank}", paper_top1(rank), PAPER_PARAMETERS[rank]))
            means.append(paper_means(rank))
    for name, top1 in record.probed().items():
        rows.append((name, top1, NONE))
        means.append(means_of(top1))
    for row in PUBLISHED:
        rows.append((f"published: {row.label}", by_task(row.tasks), f"{row.parameters} M"))
        means.append(published_means(row))
    blocks = []
    for group in GROUPS:
        names = [name for name, task in TASKS.items() if task.group == group]
        cells = [
            [*_figures(names, top1), _with_count(own[group])] for (_, top1, _), own in zip(rows, means, strict=True)
        ]
        blocks.append(Block([*(TASKS[name].title for name in names), group], cells))
    over_all = [[_with_count(own["average"]), parameters] for (_, _, parameters), own in zip(rows, means, strict=True)]
    blocks.append(Block(["average", "parameters"], over_all))
    if others := sorted({result.task for result in record.results} - TASKS.keys()):
        titles = [f"{name} (in no mean)" for name in others]
        blocks.append(Block(titles, [_figures(others, top1) for _, top1, _ in rows]))
    return [label for label, _, _ in rows], blocks


def _figures(names: Sequence[str], top1: Mapping[str, float]) -> list[str]:
    return [f"{top1[name]:.1f}" if name in top1 else NONE for name in names]


def _with_count(mean: Mean) -> str:
    if mean.value is None:
        return NONE
    return f"{mean.value:.1f}" if mean.count == mean.full else f"{mean.value:.1f} ({mean.count} of {mean.full})"
