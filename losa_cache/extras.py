"""Packages that only some commands need: not installed, installed but broken, or interrupted while they load."""

from collections.abc import Generator
from contextlib import contextmanager

from losa_cache.errors import UserError


class MissingExtraError(UserError):
    """A package is missing, or broken: that is no fault of the sample which was to be decoded."""


@contextmanager
def extra(package: str, need: str, name: str) -> Generator[None, None, None]:
    """Import an optional package within this context.

    Args:
        package: that is imported.
        need: what needs it, as the beginning of a sentence.
        name: of losa-cache's extra that brings it.

    Raises:
        MissingExtraError: if it is not installed, or cannot be imported although it is.
        KeyboardInterrupt: if that is why: extension modules turn Ctrl-C into an ``ImportError``.
    """
    try:
        yield
    except ImportError as error:
        if _interrupted(error):
            raise KeyboardInterrupt from error
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package
        raise MissingExtraError(
            f"{need}: pip install 'losa-cache[{name}]'."
            if missing
            else f"{need}, and {package} cannot be imported although it is installed ({error}): install it again."
        ) from error


def _interrupted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
