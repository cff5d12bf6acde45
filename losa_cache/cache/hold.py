"""Who may write a cache: one process at a time, by a lock that dies with it; and the core it may write."""

import hashlib
import json
import os
import shutil
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from losa_cache.cache.core import LocalCore
from losa_cache.cache.location import Location
from losa_cache.cache.remote import RemotePath
from losa_cache.cache.remote_core import RemoteCore
from losa_cache.cache.store import receipts_of
from losa_cache.errors import UserError
from losa_cache.files import clear, write_whole
from losa_cache.folders import home
from losa_cache.lock import lock, unlock
from losa_cache.outside import UnreadableError, parse_json, read_file

TOKEN_BYTES = 32


class LocalHold:
    """A cache on a file system, held under ``flock``.

    Attributes:
        core: to be written.
        disk: a folder on the disk that shards are written to.

    Raises:
        UserError: if another process holds it.
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.core = LocalCore(path, receipts_of(path))
        self.disk = self.core.receipts
        self.disk.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_or_refuse(self.disk / "lock", path)

    def close(self) -> None:
        """Let others write it."""
        unlock(self._lock)


class RemoteHold:
    """A cache on a server, held by an object that says who writes it, and by ``flock`` on a scratch folder here.

    The object is made only where there is none, in one step if the server has such (HTTP has not). It outlives a
    process that is killed: the next one with the same ``$LOSA_CACHE_HOME`` takes it over, for it finds its own token
    there, and holds the lock that dies with its owner.

    Attributes:
        core: to be written.
        disk: the scratch folder, below ``$LOSA_CACHE_HOME``.

    Raises:
        UserError: if another process holds it, or the server fails.
    """

    def __init__(self, path: RemotePath) -> None:
        self.disk = home() / "uploads" / hashlib.sha256(str(path).encode()).hexdigest()[:16]
        try:
            self.disk.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"shards pass through {str(self.disk)!r} on their way to {str(path)!r}, and that folder cannot be made "
                f"({error.strerror}): set LOSA_CACHE_HOME to a folder that can be written."
            ) from error
        self._sign = receipts_of(path) / "lock"
        self._lock = _lock_or_refuse(self.disk / "lock", path)
        try:
            self._claim(path)
        except BaseException:
            unlock(self._lock)
            raise
        scratch = self.disk / "core.zarr"
        self.core = RemoteCore(path, receipts_of(path), LocalCore(scratch, receipts_of(scratch)))
        self.clear()

    def clear(self) -> None:
        """Remove what was left in the scratch folder."""
        for name in ("core.zarr", "core.zarr.receipts"):
            shutil.rmtree(self.disk / name, ignore_errors=True)
        for shard in self.disk.glob("c.*"):
            shard.unlink()

    def close(self) -> None:
        """Let others write it."""
        self.clear()
        with suppress(UserError, FileNotFoundError):  # the next to come takes it over
            self._sign.unlink()
        unlock(self._lock)

    def _claim(self, path: RemotePath) -> None:
        token = self._token()
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        mine = json.dumps({"token": token, "host": socket.gethostname(), "process": os.getpid(), "since": since})
        if self._sign.create(mine.encode()):
            return
        theirs = self._owner()
        if theirs.get("token") == token:
            self._sign.write_bytes(mine.encode())
            return
        raise UserError(
            f"another extraction is writing {str(path)!r} (on {theirs.get('host')}, process {theirs.get('process')}, "
            f"since {theirs.get('since')}): wait for it, or, if it was killed, delete {str(self._sign)!r}."
        )

    def _token(self) -> str:
        file = self.disk / "token"
        try:
            return read_file(file, at_most=TOKEN_BYTES).decode("ascii")
        except (UnreadableError, ValueError):  # none yet, or none that this process wrote
            token = uuid4().hex
            clear(file)
            write_whole(file, token.encode())
            return token

    def _owner(self) -> dict[str, Any]:
        try:
            return parse_json(self._sign.read_bytes(), dict[str, Any])
        except (FileNotFoundError, UnreadableError):
            return {}


def hold(path: Location) -> LocalHold | RemoteHold:
    """Hold a cache, to be closed again.

    Raises:
        UserError: if another process does, or the server fails.
        OSError: if its folder cannot be written.
    """
    return RemoteHold(path) if isinstance(path, RemotePath) else LocalHold(path)


def _lock_or_refuse(file: Path, store: Location) -> int:
    handle = lock(file)
    if handle is None:
        raise UserError(f"another extraction is writing {str(store)!r}: wait for it, or choose another --out.")
    return handle
