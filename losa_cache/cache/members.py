"""Which processes write a cache together, and which of them have gone.

Each keeps a file beside the store, with a number that it raises every few seconds. It has gone if the file is gone, if
the system says that its process has ended, or if an observer has seen no new number for a while, by its own clock: the
clocks of two machines are never compared.
"""

import json
import logging
import re
import threading
from contextlib import suppress
from dataclasses import asdict
from time import monotonic, sleep
from typing import TypedDict
from uuid import uuid4

from losa_cache.cache.storage import StorePath
from losa_cache.errors import UserError
from losa_cache.machine.process import Process, this_process
from losa_cache.outside import UnreadableError, parse_json

FOLDER, SUFFIX = "claims", ".member"
BEAT = 10.0  # s between two numbers
STALE = 90.0  # s without a new one: network file systems may show a file's old content for a minute
TOKEN = re.compile("[0-9a-f]{16}")
PAUSE = 0.2  # s between two looks at what another process has to do first

log = logging.getLogger(__name__)


class Content(TypedDict):
    """What a member's file holds: its process, whether it has begun to write shards, and the number."""

    process: Process
    begun: bool
    beat: int


class Members:
    """The processes that write a cache together, as others see them.

    Args:
        receipts: the folder beside the store.
    """

    def __init__(self, receipts: StorePath) -> None:
        self.folder = receipts / FOLDER
        self._seen: dict[str, tuple[bytes, float]] = {}

    @property
    def names(self) -> list[str]:
        """The names of all files in the folder."""
        return [name for name, _ in self.folder.scan()]

    @property
    def tokens(self) -> list[str]:
        """The tokens of all members, gone or not."""
        return [name.removesuffix(SUFFIX) for name in self.names if name.endswith(SUFFIX)]

    def look(self, token: str) -> Content | None:
        """Read a member's file; ``None`` if it has gone, as far as is known, or no member can have this token: a power
        cut may leave zero bytes.
        """
        if not TOKEN.fullmatch(token):
            return None
        try:
            content = self.file(token).read()
            member = parse_json(content, Content)
        except (FileNotFoundError, UnreadableError):
            return None
        before, since = self._seen.get(token, (b"", 0.0))
        if content != before:
            since = monotonic()
            self._seen[token] = content, since
        return None if member["process"].ended or monotonic() - since > STALE else member

    def remain(self) -> bool:
        """Whether any member is left. Of those on other machines this waits for a new number, or until that is late."""
        first: dict[str, int] = {}
        while there := {token: member for token in self.tokens if (member := self.look(token)) is not None}:
            for token, member in there.items():
                if member["process"].ended is False or first.setdefault(token, member["beat"]) != member["beat"]:
                    return True
            log.info("waiting up to %.0f s to see whether other machines still write %s.", STALE, self.folder)
            while all(self.look(token) == member for token, member in there.items()):
                sleep(PAUSE)
        return False

    def file(self, token: str) -> StorePath:
        """The file of a member."""
        return self.folder / f"{token}{SUFFIX}"


class Member(Members):
    """One of them: the process itself. Threads may share it.

    Attributes:
        token: its own.

    Raises:
        UserError, OSError: if its file cannot be written.
    """

    def __init__(self, receipts: StorePath) -> None:
        super().__init__(receipts)
        self.token = uuid4().hex[:16]
        self._content = Content(process=this_process(), begun=False, beat=0)
        self._guard, self._left = threading.Lock(), threading.Event()
        self._write()
        threading.Thread(target=self._beat, name="member", daemon=True).start()

    @property
    def others(self) -> bool:
        """Whether another member that is not known to have gone has begun."""
        return any(token != self.token and (seen := self.look(token)) and seen["begun"] for token in self.tokens)

    def begin(self) -> None:
        """Tell others that this process has found or made the cache, and writes shards."""
        self._content["begun"] = True
        self._write()

    def leave(self) -> None:
        """Let others have what is not finished."""
        self._left.set()
        with self._guard, suppress(UserError, OSError):  # then others see no new number
            self.file(self.token).unlink(missing_ok=True)

    def _write(self) -> None:
        with self._guard:
            if not self._left.is_set():
                content = {**self._content, "process": asdict(self._content["process"])}
                encoded = json.dumps(content).encode()
                try:
                    self.file(self.token).write(encoded)
                except FileNotFoundError:  # another process has just removed the empty folder
                    self.file(self.token).write(encoded)

    def _beat(self) -> None:
        while not self._left.wait(BEAT):
            self._content["beat"] += 1
            try:
                self._write()
            except (UserError, OSError) as error:
                log.warning("%s cannot be written (%s): others may take over.", self.folder, error)
