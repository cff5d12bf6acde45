"""The one error that a user is meant to read."""

from difflib import get_close_matches

LARGEST_SEED = 2**63 - 1


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, with which value, and what to do.

    The command line prints it without a traceback and exits with code 2; library callers may catch it.
    """


class BusyError(UserError):
    """Another process writes the cache."""


def nearest(name: str, known: list[str], shown: int = 5) -> str:
    """Return ``"; nearest: a, b"`` for the known names closest to ``name``, or an empty string.

    A single one is shown only if it is much like it: it reads as what was meant.
    """
    close = get_close_matches(name, known, n=shown, cutoff=0.4 if shown > 1 else 0.6)
    return f"; nearest: {', '.join(close)}" if close else ""


def require_counts(**counts: int | None) -> None:
    """Refuse counts below 1.

    Raises:
        UserError: naming the option.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"{name.replace('_', '-')} is {value}: it must be at least 1.")


def require_seed(seed: int) -> None:
    """Refuse seeds that not every generator of random numbers takes.

    Raises:
        UserError: naming the range.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed is {seed}: it must lie between 0 and {LARGEST_SEED}.")


def no_cache(place: object) -> UserError:
    """Say that there is no cache at a place, named as the user names it."""
    return UserError(f"there is no cache at {str(place)!r}: make one with losa-cache extract.")


def no_run_or_cache(place: object) -> UserError:
    """Say that there is nothing at a place where a run or a cache was expected."""
    return UserError(f"there is neither a run nor a cache at {str(place)!r}: name the directory of a run, or a cache.")


def no_training_cache() -> UserError:
    """Say that this user has no cache to train from."""
    return UserError("there is no complete training cache yet: make one with losa-cache extract, or pass --cache.")
