"""Which units of work a process takes of a cache that several extract. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from losa_cache.errors import UserError

AUTO = "auto"


@dataclass(frozen=True)
class Part:
    """The units that one of several processes may take.

    Attributes:
        number, count: it takes every ``count``-th unit, from the ``number``-th on (the first is 1).
        free: it takes whatever is free.
    """

    number: int = 1
    count: int = 1
    free: bool = False

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read ``auto`` or ``3/16``.

        Raises:
            UserError: for anything else.
        """
        if text == AUTO:
            return cls(free=True)
        number, _, count = text.partition("/")
        if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return cls(int(number), int(count))
        if number.isdecimal() and count.isdecimal():
            raise UserError(f"part is {text!r}: parts are numbered from 1, and there is no part {number} of {count}.")
        raise UserError(f"part is {text!r}: it must be auto, or a number and how many parts there are, such as 3/16.")

    def takes(self, unit: int) -> bool:
        """Whether a unit is one of these."""
        return unit % self.count == self.number - 1


def array_task(environment: Mapping[str, str]) -> str | None:
    """Name the task of a job array that this process is, as SLURM and LSF say in the environment; ``None``: of none."""
    if task := environment.get("SLURM_ARRAY_TASK_ID"):
        count = environment.get("SLURM_ARRAY_TASK_COUNT")
        return f"task {task} of a SLURM array" + (f" of {count}" if count else "")
    if (task := environment.get("LSB_JOBINDEX", "0")) != "0":
        return f"element {task} of an LSF job array"
    return None
