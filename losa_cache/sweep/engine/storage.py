"""The database that shows a sweep's study. Its password is used and never written, printed or logged."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from losa_cache.errors import UserError
from losa_cache.text import shown

if TYPE_CHECKING:
    import optuna
    from sqlalchemy.engine import URL

OWN = "study.db"
_SECRET = re.compile("pass|pwd|secret|token|credential|key", re.IGNORECASE)  # names of a URL's options
_USERINFO = re.compile(r"(?<=://)([^\s/@:]*):[^\s/]*@")


def without_password(url: str) -> str:
    """Give a database's URL without its password and other secrets.

    Raises:
        UserError: if it is no URL of a database.
    """
    parsed = _parsed(url)
    public = {name: value for name, value in parsed.query.items() if not _SECRET.search(name)}
    return str(parsed.set(query=public)._replace(password=None).render_as_string(hide_password=False))


def same_database(stored: str, given: str | None) -> str:
    """Give the URL to connect to: the one given again, which may have a password, or the stored one.

    Raises:
        UserError: if they name two databases.
    """
    if given is None:
        return stored
    if (public := without_password(given)) != stored:
        raise UserError(f"storage is {public!r}, but the sweep's study is in {stored!r}: give the same again.")
    return given


def open_storage(folder: Path, url: str | None) -> "optuna.storages.RDBStorage":
    """Open the database; by default SQLite in the sweep's folder.

    Raises:
        UserError: if it cannot be opened.
    """
    from losa_cache.sweep.engine.search import optuna  # takes 0.3 s, which other commands need not spend

    with telling(url):
        if url is not None:
            if url.startswith("redis"):
                raise ValueError("Redis is no database that SQLAlchemy opens")
            return optuna.storages.RDBStorage(url)
        path = folder / OWN  # not as a URL: a path may have a question mark in it, or a brace
        return optuna.storages.RDBStorage(
            f"sqlite:///{OWN}", engine_kwargs={"creator": lambda: sqlite3.connect(path, check_same_thread=False)}
        )


@contextmanager
def telling(url: str | None) -> Iterator[None]:
    """Turn any error of a database or its driver into one sentence.

    Raises:
        UserError: in place of it, without a password.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of SQLAlchemy and its drivers, which have no common base
        cause: BaseException = error
        while (own := cause.__cause__ or getattr(cause, "orig", None)) is not None and own is not cause:
            cause = own  # Optuna's says only that there was an error
        reason = hidden((str(cause).strip() or type(cause).__name__).splitlines()[0], url).rstrip(".")
        if url is None:
            raise UserError(
                f"the study's database {OWN!r} cannot be used ({reason}). It only shows the sweep: if it is damaged, "
                "delete it, and --resume writes it again."
            ) from None
        where, advice = without_password(url), "--resume goes on once it answers"
        if not url.startswith("sqlite") and _parsed(url).password is None:
            advice = "if it asks for a password, give --storage with it again, or set PGPASSWORD"
        raise UserError(f"storage {where!r} cannot be used ({reason}): {advice}.") from None  # the cause has it


def hidden(text: str, url: str | None = None) -> str:
    """Give a message without the passwords of URLs in it, those of one URL among them."""
    text = _USERINFO.sub(r"\1:***@", text)
    if url is not None:
        for secret in _secrets(url):
            text = text.replace(secret, "***")
    return shown(text)


def _secrets(url: str) -> list[str]:
    parsed = _parsed(url)
    found = [] if parsed.password is None else [str(parsed.password)]
    for name, value in parsed.query.items():
        if _SECRET.search(name):
            found += [value] if isinstance(value, str) else value
    return [secret for secret in found if secret]


def _parsed(url: str) -> "URL":
    from sqlalchemy.engine import make_url

    try:
        return make_url(url)
    except Exception:
        raise UserError(
            "storage is no database's URL: write it as SQLAlchemy does, for example postgresql://user@host/name or "
            "sqlite:////path/to/study.db."
        ) from None
