"""The results of VTAB-1k: top-1 by task and rank, and the means of the paper's Table 1. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from losa_cache.data.sources.vtab import GROUPS, TASKS
from losa_cache.sweep.engine.record import ToBeat
from losa_cache.sweep.vtab.published import PUBLISHED, Published

PAPER_BACKBONE = "vit_base_patch16_224.orig_in21k"
PAPER = {
    16: "82.5 92.8 76.1 99.7 90.5 82.0 55.8 86.6 97.1 87.0 76.7 81.5 62.3 48.6 82.1 94.2 61.7 47.9 45.6",
    8: "82.2 92.7 76.7 99.7 90.7 81.0 55.4 86.9 97.1 87.4 76.5 79.9 61.8 48.6 82.4 92.3 61.1 48.7 47.3",
    4: "82.7 93.0 76.2 99.7 89.8 80.0 56.1 86.3 96.7 86.7 76.3 78.8 61.4 48.0 82.6 91.7 58.4 46.9 47.6",
}
"""The rows "LoSA, r = ..." of the paper's Table 1: top-1 in percent, by rank, in the order of the tasks."""
PAPER_MEANS = {16: "82.8 86.9 65.5 78.4", 8: "82.6 87.0 65.3 78.3", 4: "82.5 86.5 64.4 77.8"}
"""Means of the three groups and the mean of these, in the same rows, as printed: 86.85 would be rounded to 86.8
here."""
PAPER_PARAMETERS = {4: "0.05 M", 8: "0.10 M", 16: "0.19 M"}
"""Parameters of the side network, in the same rows."""


@dataclass(frozen=True)
class Result:
    """One task at one rank.

    Attributes:
        task: its name.
        rank: of the side network.
        top1: on the test images, in percent.
        samples: test images.
        val_top1: of the chosen trial on val200, in percent.
        chosen: its options.
        parameters: trained ones of the side network.
        folder: of the sweep.
        choice: how the trial was chosen, and how sure that is, as in the sweep's record; ``None``: of an earlier
            version.
    """

    task: str
    rank: int
    top1: float
    samples: int
    val_top1: float
    chosen: dict[str, Any]
    parameters: int
    folder: str
    choice: dict[str, Any] | None = None


@dataclass(frozen=True)
class LeftOut:
    """A cache that was found but cannot be used.

    Attributes:
        task: its name; ``None``: of a store that does not even open.
        reason: in a sentence without its end.
    """

    task: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.task or 'a store'}: {self.reason}"


@dataclass(frozen=True)
class Mean:
    """A mean over some or all tasks of a group.

    Attributes:
        value: in percent; ``None``: of nothing.
        count: tasks in it.
        full: tasks that it should have.
    """

    value: float | None
    count: int
    full: int


@dataclass(frozen=True)
class VtabRecord:
    """All tasks at all ranks. All of it is JSON.

    Attributes:
        fields: of the training caches, in what they agree: ``backbone``, ``input``, ``tap``, ``layers``, ``precision``.
        ranks: ascending.
        results: by rank and task.
        left_out: what was found and cannot be used.
        protocol: what was selected on what, in sentences.
        unlike: differences from the paper's setting, in words.
        machine: the machine that wrote the record.
        to_beat: for each task the tuned probe of its caches, fitted again to all training images and tested.
    """

    fields: dict[str, Any]
    ranks: list[int]
    results: list[Result]
    left_out: list[LeftOut]
    protocol: str
    unlike: list[str]
    machine: str
    to_beat: dict[str, ToBeat] = field(default_factory=dict)

    def top1(self, rank: int) -> dict[str, float]:
        """Top-1 by task, at a rank."""
        return {result.task: result.top1 for result in self.results if result.rank == rank}

    def probed(self) -> dict[str, dict[str, float]]:
        """Test top-1 by task, of each probe by its name."""
        tested: dict[str, dict[str, float]] = {}
        for task, probe in self.to_beat.items():
            for line in probe.lines:
                if line.test_top1 is not None:
                    tested.setdefault(line.name, {})[task] = line.test_top1
        return tested

    def parameters(self, rank: int) -> int:
        """Trained ones of the side network, the same for all tasks."""
        return next(result.parameters for result in self.results if result.rank == rank)

    def to_json(self) -> dict[str, Any]:
        """Give all fields, the means, the paper's figures of LoSA and the published ones of other methods as JSON."""
        top1 = {str(rank): self.top1(rank) for rank in self.ranks} | self.probed()
        means = {row: {name: asdict(mean) for name, mean in means_of(own).items()} for row, own in top1.items()}
        paper = {
            str(rank): {
                "top1": paper_top1(rank),
                "means": {name: mean.value for name, mean in paper_means(rank).items()},
                "parameters": PAPER_PARAMETERS[rank],
            }
            for rank in self.ranks
            if rank in PAPER
        }
        published = {
            row.label: {
                "top1": by_task(row.tasks),
                "means": {name: mean.value for name, mean in published_means(row).items()},
                "parameters": f"{row.parameters} M",
                "sources": row.sources,
            }
            for row in PUBLISHED
        }
        return asdict(self) | {"means": means, "paper": paper, "published": published}


def means_of(top1: Mapping[str, float]) -> dict[str, Mean]:
    """Give the mean of each group, over the tasks that are there, and ``average``, the mean of these three.

    There is no average where a group has no task at all.
    """
    means = {}
    for group in GROUPS:
        members = [name for name, task in TASKS.items() if task.group == group]
        means[group] = _mean([top1[name] for name in members if name in top1], len(members))
    values = [mean.value for mean in means.values() if mean.value is not None]
    average = _mean(values, len(GROUPS)).value if len(values) == len(GROUPS) else None
    return means | {"average": Mean(average, sum(mean.count for mean in means.values()), len(TASKS))}


def by_task(figures: str) -> dict[str, float]:
    """Read top-1 by task, as a row of Table 1 prints it."""
    return dict(zip(TASKS, map(float, figures.split()), strict=True))


def paper_top1(rank: int) -> dict[str, float]:
    """Give the paper's top-1 by task, at a rank of :data:`PAPER`."""
    return by_task(PAPER[rank])


def paper_means(rank: int) -> dict[str, Mean]:
    """Give the means that the paper prints, at a rank of :data:`PAPER`, as :func:`means_of` gives ours."""
    return _printed(PAPER[rank], PAPER_MEANS[rank])


def published_means(row: Published) -> dict[str, Mean]:
    """Give the means that the paper prints of another method."""
    return _printed(row.tasks, row.means)


def unlike_paper(fields: Mapping[str, Any], depth: int) -> list[str]:
    """Say how the block outputs differ from those of the paper's Table 1, as far as the paper describes them.

    Args:
        fields: of a cache.
        depth: blocks of its backbone.
    """
    backbone, image = fields["backbone"], fields["input"]
    differences = []
    if backbone["name"] != PAPER_BACKBONE:
        differences.append(f"the backbone is {backbone['name']}")
    if backbone["weights"].startswith("random"):
        differences.append("its weights are random")
    if tuple(image["size"][1:]) != (224, 224) or image["crop_mode"] != "squash":
        size = "x".join(map(str, image["size"][1:]))
        differences.append(
            f"images come to {size} pixels by {image['crop_mode']}, not to 224x224 by squash (--resize exact)"
        )
    if fields["tap"] != "block" or len(fields["layers"]) != depth:
        differences.append(f"{len(fields['layers'])} of {depth} layers are tapped ({fields['tap']})")
    return differences


def _printed(tasks: str, means: str) -> dict[str, Mean]:
    own = means_of(by_task(tasks))
    return {
        name: replace(mean, value=float(value)) for (name, mean), value in zip(own.items(), means.split(), strict=True)
    }


def _mean(values: Sequence[float], full: int) -> Mean:
    return Mean(math.fsum(values) / len(values) if values else None, len(values), full)
