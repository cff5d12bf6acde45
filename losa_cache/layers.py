"""Which blocks to tap: ``all``, K evenly spaced ones, or a list."""

from collections.abc import Sequence

from losa_cache.errors import UserError

ALL = "all"


def choose_layers(choice: str | int | Sequence[int], available: Sequence[int]) -> list[int]:
    """Choose block numbers out of ``available`` (ascending, 1-based, the backbone's last block at the end).

    Args:
        choice: ``"all"``; K, for K evenly spaced ones with the last among them (Table 5); or block numbers, as a
            sequence or as ``"3,6,12"`` (``"12,"`` is the list of one).
        available: the blocks there are.

    Returns:
        block numbers, ascending.

    Raises:
        UserError: for anything else, K out of range, unknown blocks, or a list without the last block (y_0 = b_L).
    """
    last = available[-1]
    choice = _parsed(choice)
    if choice == ALL:
        return list(available)
    if isinstance(choice, int):
        if not 1 <= choice <= len(available):
            raise UserError(f"{choice} layers cannot be chosen: there are {len(available)}.")
        return [available[(i * len(available)) // choice - 1] for i in range(1, choice + 1)]
    chosen = sorted({int(number) for number in choice})
    if unknown := [number for number in chosen if number not in available]:
        raise UserError(f"there is no layer {unknown[0]}: choose among {_span(available)}.")
    if not chosen or chosen[-1] != last:
        raise UserError(f"layers {_span(chosen) or 'none'} lack the last block, {last}, where LoSA starts (y_0 = b_L).")
    return chosen


def require_layers(choice: str | int | Sequence[int]) -> None:
    """Refuse a choice that no backbone can have, before one is loaded.

    Args:
        choice: as of :func:`choose_layers`.

    Raises:
        UserError: naming what is wrong.
    """
    parsed = _parsed(choice)
    if isinstance(parsed, int) and parsed < 1:
        raise UserError(f"{parsed} layers cannot be chosen: write all, a number from 1, or a list like 3,6,12.")
    if not isinstance(parsed, str | int) and (below := [number for number in parsed if number < 1]):
        raise UserError(f"there is no layer {below[0]}: blocks are numbered from 1.")


def _parsed(choice: str | int | Sequence[int]) -> str | int | Sequence[int]:
    """Read text: ``"all"`` stays as it is, ``"3"`` is a number, ``"3,6,12"`` and ``"12,"`` are lists."""
    if not isinstance(choice, str) or choice == ALL:
        return choice
    try:
        numbers = [int(part) for part in choice.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"layers {choice!r} are neither 'all', nor a number, nor a list like 3,6,12.") from None
    return numbers[0] if len(numbers) == 1 and "," not in choice else numbers


def _span(numbers: Sequence[int]) -> str:
    whole = len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} ... {numbers[-1]}" if whole else ", ".join(map(str, numbers))
