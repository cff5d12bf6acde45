"""The record of a comparison: its options, and what came of each piece of work. All of it is JSON. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from losa_cache.errors import UserError
from losa_cache.files import without_seal
from losa_cache.outside import UnreadableError, fit, read_json

FILE, FORMAT = "pareto.json", "losa-cache pareto"


@dataclass(frozen=True)
class Work:
    """What came of a piece of work: an extraction, a training, a test, or a measurement of costs.

    Attributes:
        attempts: how often a process began it.
        timed: how many of these processes were seen to end.
        seconds: that these took, from their start to their end.
        result: figures by name; ``None``: it is not done.
        error: why it failed, in a sentence.
    """

    attempts: int = 0
    timed: int = 0
    seconds: float = 0.0
    result: dict[str, Any] | None = None
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.result is not None or self.error is not None

    @property
    def whole_seconds(self) -> float | None:
        """What it took in all; ``None`` where a process ended unseen, together with the one that watched it."""
        return self.seconds if self.attempts == self.timed else None


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
        return f"{Path(self.options['dataset']).name}, {self.options['test_split']}: {backbone}"

    def work(self, name: str) -> Work:
        """Give what came of a piece of work so far."""
        return self.works.get(name, Work())

    def result(self, name: str) -> dict[str, Any] | None:
        """Give the figures of a piece of work; ``None``: there are none."""
        return self.work(name).result

    def begun(self, name: str) -> "Study":
        """Note that a process begins a piece of work."""
        work = self.work(name)
        return self._with(name, replace(work, attempts=work.attempts + 1))

    def ended(self, name: str, seconds: float, **outcome: Any) -> "Study":
        """Note that the process ended after so many seconds, and its ``result`` or ``error`` where it has one."""
        work = self.work(name)
        return self._with(name, replace(work, timed=work.timed + 1, seconds=work.seconds + seconds, **outcome))

    def found(self, name: str, result: dict[str, Any]) -> "Study":
        """Note the figures of a piece of work whose end was not seen."""
        return self._with(name, replace(self.work(name), result=result))

    def retried(self) -> "Study":
        """Forget what failed: it is tried again."""
        return replace(self, works={name: replace(work, error=None) for name, work in self.works.items()})

    def _with(self, name: str, work: Work) -> "Study":
        return replace(self, works={**self.works, name: work})

    def to_json(self) -> dict[str, Any]:
        """Give all of it as JSON, for :func:`losa_cache.files.with_seal`."""
        return {"format": FORMAT, **asdict(self)}


@dataclass(frozen=True)
class _File:
    format: str
    options: dict[str, Any]
    methods: list[str]
    machine: str
    works: dict[str, Work]


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
    except (UnreadableError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read: {error}. Put the original back, or choose another --out."
        ) from error
    return Study(found.options, found.methods, found.machine, found.works)


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
