"""An output and the files beside it: the journal of a run that is not over, and what is known of a finished one."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from losa_cache.apply.predict.formats.base import Format
from losa_cache.apply.predict.journal import Journal, Skipped
from losa_cache.apply.predict.known import Known
from losa_cache.apply.predict.table import Rows, Table, first
from losa_cache.errors import UserError
from losa_cache.files import reason, remedy, replacing
from losa_cache.folders import require_writable
from losa_cache.outside import UnreadableError, read_json

MOST_BYTES = 2**32  # of the file of what is known


class Info(msgspec.Struct):
    """What is known of a finished output.

    Attributes:
        of, adapters: as of ``Table.described()``.
        rows: inputs with an answer.
        skipped: inputs without one.
    """

    of: str
    adapters: list[dict[str, Any]]
    rows: int
    skipped: list[Skipped]


class Output:
    """A file of predictions or features, begun, resumed or added to.

    Every batch goes to the journal. In the end the output is written from it, whole, and the journal removed. What was
    done before is known, whether a kill or the end of a run came after it.

    Args:
        path: of the output.
        kind: how the table lies in it.
        table: what it holds.

    Attributes:
        known: ids of inputs that need no work: those in the output, and those that the journal answers or skips.
        rows, skipped: how many inputs have an answer, and how many of this run have none.

    Raises:
        UserError: for an output, or a journal, of another table; one that cannot be read or written; or one that
            another process is writing.
    """

    def __init__(self, path: Path, kind: Format, table: Table) -> None:
        self.path, self._kind, self._table = path, kind, table
        if refused := kind.refuse(table):
            raise UserError(f"--out is {str(path)!r}, but {refused}.")
        require_writable(path.parent)
        self.known, self.rows, self.skipped = Known(), 0, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(path.with_name(f"{path.name}.journal"), table)  # nobody else writes from here on
            try:
                self._take_journal(self._take_output())
            except BaseException:
                if self._journal.header is None:
                    self._journal.remove()
                else:
                    self._journal.close()
                raise
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be written ({reason(error)}): {remedy(error)}.") from error
        self._added, self._open = self.rows > self._base or not path.exists(), True

    @property
    def info(self) -> Path:
        """The file that says what made the output, and what was skipped."""
        return self.path.with_name(f"{self.path.name}.info.json")

    def add(self, rows: Rows, skipped: list[Skipped]) -> int:
        """Take a batch, and say how many bytes it takes.

        Raises:
            UserError: if it cannot be written.
        """
        try:
            size = self._journal.add(rows, skipped)
        except OSError as error:
            raise self._failed(error) from error
        self.rows += len(rows)
        self.skipped += len(skipped)
        self._added = self._added or len(rows) > 0
        return size

    def finish(self) -> None:
        """Write the output, unless there is nothing new in it, and remove the journal; no output without rows.

        Raises:
            UserError: if it cannot be written; the journal stays.
        """
        try:
            if self._added and self.rows:
                self._kind.write(self.path, self._table, self._all(), self.rows)
            if self.rows:
                self._tell()
            self._journal.remove()
            self._open = False
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Let go of it; without :meth:`finish` its journal stays for a later run, if it holds anything."""
        if not self._open:
            return
        self._open = False
        if self.skipped or self.rows > self._base:
            self._journal.close()
        else:
            self._journal.remove()

    def not_answered(self) -> Iterator[Skipped]:
        """Give the inputs that this run, and runs that it resumes, have skipped."""
        return self._journal.skipped()

    def _failed(self, error: OSError) -> UserError:
        return UserError(
            f"writing {str(self.path)!r} failed ({reason(error)}): what is done is kept; {remedy(error)} and run the "
            "same command again to go on."
        )

    def _all(self) -> Iterator[Rows]:
        before = first(self._kind.read(self.path, self._table), self._base) if self._base else iter(())
        return chain(before, self._journal.rows())

    def _take_output(self) -> int:
        """Read the ids of the output that is there, and count them.

        Raises:
            UserError: if it is another table.
        """
        self._kind.recover(self.path)
        if not self.path.exists():
            return 0
        if not (self.path.is_file() or self.path.is_dir()):
            raise UserError(f"{str(self.path)!r} is there, and is no file: choose another --out.")
        self._require_same()
        count = 0
        try:
            for part in self._kind.read(self.path, self._table):
                for name in part.ids:
                    self.known.add(name)
                count += len(part)
            if self._journal.header is None and not self.info.exists():
                raise ValueError(f"{self.info.name}, which says what it is from, is not there")
        except OSError:
            raise
        except Exception as error:  # whatever the readers of the formats make of a damaged file
            raise UserError(
                f"{str(self.path)!r} is there, and is no such output ({error}): choose another --out, or remove it."
            ) from error
        return count

    def _take_journal(self, there: int) -> None:
        header = self._journal.header
        if header is None:
            self._journal.begin(there)
            header = self._journal.header
            assert header is not None
        self._base = header.base
        if wrong := apart(header.table, self._table.described()):
            raise UserError(
                f"{str(self._journal.path)!r} is of a run that differs in {wrong}: finish that one, remove the file, "
                "or choose another --out."
            )
        if there < self._base:
            raise UserError(
                f"{str(self.path)!r} has lost rows since {str(self._journal.path)!r} was begun: put it back, or remove "
                "both."
            )
        self.rows = self._base
        if there not in (self._base, self._base + sum(map(len, self._journal.rows()))):
            raise UserError(
                f"{str(self.path)!r} has other rows than {str(self._journal.path)!r} was begun with: remove the one "
                "that you do not want."
            )
        for rows, skipped in self._journal.batches():
            self.rows += len(rows)
            self.skipped += len(skipped)
            for name in chain(rows.ids, (entry.id for entry in skipped)):
                self.known.add(name)

    def _require_same(self) -> None:
        """Refuse an output of other adapters, other images, or another number of classes."""
        info = self._info()
        if info and (wrong := apart({"of": info.of, "adapters": info.adapters}, self._table.described())):
            raise UserError(f"{str(self.path)!r} is there, and differs in {wrong}: choose another --out, or remove it.")

    def _info(self) -> Info | None:
        if not (self.path.exists() and self.info.exists()):
            return None
        try:
            return read_json(self.info, Info, at_most=MOST_BYTES)
        except UnreadableError as error:
            raise UserError(f"{str(self.info)!r} cannot be read ({error}): remove it.") from error

    def _tell(self) -> None:
        """Write what made the output, and what was skipped: also by earlier runs, if it has no answer since."""
        info = self._info()
        with replacing(self.info) as file:
            head = json.dumps({**self._table.described(), "rows": self.rows}, indent=2)
            file.write(head.removesuffix("\n}").encode("ascii") + b',\n  "skipped": [')
            between = b"\n    "
            earlier = [] if info is None else info.skipped
            kept = (entry for entry in earlier if entry.id not in self.known)
            for entry in chain(kept, self._journal.skipped()):
                line = json.dumps({"id": entry.id, "reason": entry.reason})
                file.write(between + line.encode("ascii"))
                between = b",\n    "
            file.write(b"\n  ]\n}\n")


def apart(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Say in what two tables differ (``Table.described``); empty where they are one."""
    if ours.get("of") != theirs["of"]:
        return f"what it is of ({ours.get('of')!r}, and {theirs['of']!r} is asked for)"
    there, here = _by_name(ours), _by_name(theirs)
    if list(there) != list(here):
        return f"its adapters ({', '.join(map(repr, there))}, and {', '.join(map(repr, here))} are asked for)"
    for name, own in here.items():
        for field in ("kind", "width", "classes", "digest"):
            if there[name].get(field) != own[field]:
                meant = {"width": "the columns (--top-k)", "kind": "what it holds (--embed)", "digest": "the weights"}
                return f"{meant.get(field, field)} of adapter {name!r}"
    return ""


def _by_name(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    adapters = described.get("adapters")
    rows = adapters if isinstance(adapters, list) else []
    return {str(own.get("name")): own for own in rows if isinstance(own, dict)}
