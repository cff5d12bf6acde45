"""The progress of a sweep: one sealed file that is replaced as a whole. Only what it says has happened counts."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import time
from typing import Any

from losa_cache.errors import UserError
from losa_cache.files import unsealed, write_sealed
from losa_cache.outside import UnreadableError, fit, read_file
from losa_cache.sweep.engine.record import COMPLETE, FAILED, PRUNED, RUNNING

FILE = "progress.json"
LOST = "lost"  # of a trial that a sweep of an earlier version began and a kill took: its options are drawn again
STATES = (COMPLETE, PRUNED, FAILED, RUNNING, LOST)


@dataclass
class Trial:
    """A trial that was begun.

    Attributes:
        options: the searched options.
        state: one of :data:`STATES`.
        values: selection metric on the held-out samples after each epoch (top-1 in percent); there is none for the
            epoch in which a trial failed.
        files: CRC-32C, by name, of each file in its directory that the sweep relies on; for the file of metrics, that
            of the lines of its epochs. Empty if an earlier version began it.
    """

    options: dict[str, Any]
    state: str = RUNNING
    values: list[float] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Epochs that it has trained."""
        return len(self.values) + (self.state == FAILED)


@dataclass
class Group:
    """Trials that train together.

    Attributes:
        file: of their checkpoint, in the folder ``cohorts``.
        numbers: of the trials.
    """

    file: str
    numbers: list[int]


@dataclass
class Progress:
    """The progress of a sweep, and what its results depend on beside its options.

    Attributes:
        config: checksum of the sweep's options file; ``None``: of a folder that an earlier version made.
        files: CRC-32C of each file that options name, of which the folder keeps a copy, by the name of that copy.
        sweep: a name that no other sweep has.
        study: name of its study in the database.
        started: in seconds since 1970.
        caches: identity of the training cache and of the validation cache, by option, once they were opened.
        most: trials that train at the same time, once that was measured.
        together: largest number of them that train in one pass, if a cluster decided it.
        turn: place of the group that trains the next epoch; behind the last: new trials are begun first.
        trials: by number.
        groups: under way, in their order.
        record: checksum of the sweep's record, once it is over.
    """

    config: int | None
    files: dict[str, int] = field(default_factory=dict)
    sweep: str = field(default_factory=lambda: uuid.uuid4().hex)
    study: str = "losa-cache"
    started: float = field(default_factory=time)
    caches: dict[str, str] = field(default_factory=dict)
    most: int | None = None
    together: int | None = None
    turn: int = 0
    trials: list[Trial] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    record: int | None = None

    def count(self, *states: str) -> int:
        """Count trials by state."""
        return sum(trial.state in states for trial in self.trials)

    def save(self, folder: Path) -> None:
        """Write it to a sweep's folder: from then on it counts."""
        write_sealed(folder / FILE, asdict(self))


def load_progress(folder: Path, names: Mapping[str, Any]) -> Progress | None:
    """Read it back; ``None``: the folder was made by an earlier version, which kept no such file.

    Args:
        folder: of the sweep.
        names: of the options that are searched, in their order.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found = fit(unsealed(read_file(path), "it"), Progress)
    except (UnreadableError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read: {error}. Bring it back from a copy, or begin the sweep again."
        ) from error
    for trial in found.trials:  # sealed JSON is sorted
        trial.options = {name: trial.options[name] for name in names if name in trial.options}
    return found
