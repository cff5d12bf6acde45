"""The record of a comparison: its options, and what came of each piece of work. All of it is JSON. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct, to_builtins

from losa_cache.errors import UserError
from losa_cache.files import without_seal
from losa_cache.outside import UnreadableError, fit, read_json, require
from losa_cache.pareto.entries import parse_entries

FILE, FORMAT = "pareto.json", "losa-cache pareto"
COST, TEST, CACHES = "cost", "test", ".zarr"
"""How names of pieces of work end that are no trainings."""
Amount = Annotated[float, Meta(ge=0, le=1e15)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Percent = Annotated[float, Meta(ge=0, le=100)]


class Extraction(Struct, frozen=True):
    """Figures of an extraction.

    Attributes:
        peak_gb: peak memory in 1e9 bytes; ``None``: no process was seen that did all of it.
    """

    peak_gb: Amount | None


class Training(Struct, frozen=True):
    """Figures of a training.

    Attributes:
        images: names the images that it learned of.
        images_per_second: of training steps, and what they wait for.
        peak_gb: peak memory in 1e9 bytes.
        parameters: trained ones, of the ``classifier`` and of the rest.
        joules: energy; ``None``: no meter could be read.
        macs: multiply-accumulates of one sample at inference, the backbone's among them.
        val_top1: on held-out samples, in percent; ``None``: there were none.
        val_loss: on these; ``None``, too, where it was not finite.
        epoch_seconds: of the training steps of all epochs, and what they wait for.
    """

    images: str
    images_per_second: Amount
    peak_gb: Amount
    parameters: dict[str, Count]
    joules: Amount | None
    macs: Count | None
    val_top1: Percent | None
    val_loss: Amount | None
    epoch_seconds: Amount

    def __post_init__(self) -> None:
        require("classifier" in self.parameters, "the parameters of the classifier are missing")

    @property
    def held_out(self) -> tuple[float, float] | None:
        """Top-1 and loss on held-out samples; ``None``: there were none, or the loss was not finite."""
        return None if self.val_top1 is None or self.val_loss is None else (self.val_top1, self.val_loss)


class Accuracy(Struct, frozen=True):
    """Figures of a test: top-1 in percent, and of how many samples."""

    top1: Percent
    samples: Count


class NoiseCost(Struct, frozen=True):
    """What a method costs on noise, or, without parameters, an extraction; fields as of a ``Row``."""

    images_per_second: Amount
    peak_gb: Amount
    gmacs: Amount
    parameters: Count | None = None
    classifier: Count | None = None


Result = Extraction | Training | Accuracy | NoiseCost
Kind = TypeVar("Kind", bound=Result)


def kind_of_result(name: str) -> type[Result]:
    """Say what figures a piece of work has."""
    if name.endswith(CACHES):
        return Extraction
    last = name.rpartition("/")[2]
    return NoiseCost if last == COST else Accuracy if last == TEST else Training


@dataclass(frozen=True)
class Work:
    """What came of a piece of work that is over: an extraction, a training, a test, or a measurement of costs.

    Attributes:
        result: figures; ``None``: it failed.
        error: why it failed, in a sentence.
        seconds: of the process that did all of it, from its start to its end; ``None``: there is none, since it was
            interrupted and went on, or its end was not seen.
    """

    result: Result | None = None
    error: str | None = None
    seconds: float | None = None

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.result is not None or self.error is not None


@dataclass(frozen=True)
class Study:
    """A comparison as far as it has come.

    Attributes:
        options: of all trainings (``losa_cache.pareto.config.stored``), where caches lie, the device, and whether it is
            of costs alone (``shape_only``).
        methods: as the user named them, in the order of the user.
        machine: that computes.
        works: by name (``losa_cache.pareto.plan``).
    """

    options: dict[str, Any]
    methods: list[str]
    machine: str
    works: dict[str, Work] = field(default_factory=dict)

    @property
    def shape_only(self) -> bool:
        """Whether costs alone are measured."""
        return bool(self.options["shape_only"])

    @property
    def title(self) -> str:
        """What is compared."""
        backbone = self.options["backbone"]
        if self.shape_only:
            return f"{backbone}: costs, on random weights and noise"
        seeds = "one seed" if self.options["seeds"] == 1 else f"{self.options['seeds']} seeds"
        return f"{Path(self.options['dataset']).name}, {self.options['test_split']}: {backbone}, {seeds}"

    def work(self, name: str) -> Work:
        """Give what came of a piece of work."""
        return self.works.get(name, Work())

    def result(self, name: str, kind: type[Kind]) -> Kind | None:
        """Give the figures of a piece of work of this kind; ``None``: there are none."""
        found = self.work(name).result
        return found if isinstance(found, kind) else None

    def ended(self, name: str, work: Work) -> "Study":
        """Note what came of a piece of work."""
        return replace(self, works={**self.works, name: work})

    def retried(self) -> "Study":
        """Forget what failed: it is tried again."""
        return replace(self, works={name: work for name, work in self.works.items() if work.error is None})

    def to_json(self) -> dict[str, Any]:
        """Give all of it as JSON, for :func:`losa_cache.files.with_seal`."""
        content: dict[str, Any] = to_builtins({"format": FORMAT, **vars(self)})
        return content


class _Work(Struct):
    """A piece of work in the file."""

    result: dict[str, Any] | None
    error: str | None
    seconds: Amount | None

    def work(self, name: str) -> Work:
        """Give it with its figures held to their kind."""
        result = None if self.result is None else fit(self.result, kind_of_result(name))
        return Work(result, self.error, self.seconds)


class _File(Struct):
    format: str
    options: dict[str, Any]
    methods: list[str]
    machine: str
    works: dict[str, _Work]


def load_study(folder: Path) -> Study | None:
    """Read the study that a folder holds; ``None`` where there is none.

    Raises:
        UserError: if it cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found = fit(without_seal(read_json(path, dict[str, Any])), _File)
        if found.format != FORMAT:
            raise UnreadableError(f"its format is {found.format!r:.60}")
        works = {name: work.work(name) for name, work in found.works.items()}
        parse_entries(",".join(found.methods))
    except (UnreadableError, UserError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read: {error}. Put the original back, or choose another --out."
        ) from error
    return Study(found.options, found.methods, found.machine, works)


def require_same(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse options that are not those of the study in a folder.

    Raises:
        UserError: naming the first that differs.
    """
    for name in {**theirs, **ours}:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{str(folder)!r} holds a comparison with {name.replace('_', '-')} {theirs.get(name)}, not "
                f"{ours.get(name)}: give the same options (other --methods may be added), or choose another --out."
            )
