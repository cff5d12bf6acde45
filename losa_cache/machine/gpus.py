"""Which GPUs of a machine are meant. This module imports no library, and asks no driver."""

from collections.abc import Mapping, Sequence

from losa_cache.errors import UserError

ALL = "all"
VISIBLE = "CUDA_VISIBLE_DEVICES"


def parse_gpus(gpus: str | int | Sequence[int]) -> list[int] | None:
    """Read the numbers of GPUs, such as ``0,2,3``; ``None`` for ``all``.

    Raises:
        UserError: if it is neither.
    """
    text = ",".join(map(str, gpus)) if isinstance(gpus, Sequence) and not isinstance(gpus, str) else str(gpus)
    if text.strip() == ALL:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isascii() and word.isdecimal() for word in words):
        raise UserError(f"gpus is {text!r}: write all, or numbers of GPUs, as in --gpus 0,2,3.")
    numbers = list(map(int, words))
    if len(set(numbers)) < len(numbers):
        raise UserError(f"gpus is {text!r}, which names a GPU twice: one process runs on each.")
    return numbers


def count_gpus(gpus: str | int | Sequence[int], there: int) -> int:
    """Give how many GPUs a forecast is asked for: by their number, or as an extraction names them.

    Args:
        gpus: a number of GPUs, ``all``, or a list of their numbers.
        there: how many there are here.

    Raises:
        UserError: for none, or what is neither.
    """
    if isinstance(gpus, int) or (isinstance(gpus, str) and gpus.strip().isdecimal()):
        if int(gpus) < 1:
            raise UserError(f"gpus is {gpus}: in a plan it is how many GPUs, at least 1.")
        return int(gpus)
    numbers = parse_gpus(gpus)
    return there if numbers is None else len(numbers)


def names_of_gpus(numbers: Sequence[int] | None, count: int, environment: Mapping[str, str]) -> dict[int, str]:
    """Give for each number the name by which ``CUDA_VISIBLE_DEVICES`` shows this GPU alone.

    Numbers are those of the GPUs that this process sees, as in ``cuda:1``. If the variable is set, as batch systems set
    it, it already chooses among the machine's GPUs, by number or by name.

    Args:
        numbers: of the GPUs; ``None`` for all.
        count: how many GPUs this process sees.
        environment: of this process.

    Raises:
        UserError: for a number that is not there, or without any GPU.
    """
    if not count:
        raise UserError("--gpus needs a GPU, and there is none here: leave it out, or pass --processes to use the CPU.")
    names = [name.strip() for name in environment.get(VISIBLE, "").split(",") if name.strip()][:count]
    names = names or list(map(str, range(count)))
    if absent := [number for number in numbers or () if number >= len(names)]:
        there = "0 is the only one" if len(names) == 1 else f"they are numbered from 0 to {len(names) - 1}"
        raise UserError(f"there is no GPU {absent[0]}: {there}; for all of them, --gpus all.")
    return {number: names[number] for number in (range(len(names)) if numbers is None else numbers)}
