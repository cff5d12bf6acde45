"""The object beside a cache in an object store that says who writes it: one process, or several that share it."""

import json
import os
import socket
from datetime import UTC, datetime
from typing import Any

from losa_cache.cache.members import Members
from losa_cache.cache.object_store import ObjectPath
from losa_cache.cache.storage import receipts_of
from losa_cache.errors import UserError
from losa_cache.outside import UnreadableError, parse_json


class Sign:
    """The object ``lock`` beside a cache. It stays when its process is killed.

    It is created only if there is none, in one step if the store can do that. A process with the same
    ``$LOSA_CACHE_HOME`` takes over what one that was alone has left: it finds its own token there. What processes that
    shared the cache have left is taken over by anybody, once they have all gone.

    Whoever comes alone writes the object, then looks for members. Whoever comes to share becomes a member, then looks
    at the object. So at least one of two that come at the same time sees the other.

    Args:
        path: of the cache.
        token: that all processes with this ``$LOSA_CACHE_HOME`` have.
    """

    def __init__(self, path: ObjectPath, token: str) -> None:
        self._path, self._token = path, token
        self._place, self._members = receipts_of(path) / "lock", Members(receipts_of(path))
        self._shared: bool | None = None

    def alone(self) -> None:
        """Sign for this process.

        Raises:
            UserError: if another one writes the cache, or the store fails.
        """
        if not self._place.create(self._content(shared=False)):
            theirs = self._read()
            if not theirs.get("shared") and theirs.get("token") != self._token:
                raise self._refusal(theirs)
            self._place.write(self._content(shared=False))
        self._shared = False
        if self._path.lists and self._members.remain():
            self._shared = None
            self._place.write(self._content(shared=True))
            raise UserError(
                f"other processes are writing the cache {str(self._path)!r} together: wait for them, or help them with "
                "--part auto."
            )

    def share(self) -> None:
        """Sign for this process, which is a member already, and others.

        Raises:
            UserError: as :meth:`alone`.
        """
        if not self._place.create(self._content(shared=True)):
            theirs = self._read()
            if not theirs.get("shared"):
                if theirs.get("token") != self._token:
                    raise self._refusal(theirs)
                self._place.write(self._content(shared=True))  # it was alone with this home's lock, and has ended
        self._shared = True

    def remove(self) -> None:
        """Remove the object, unless others share the cache, or it is not this process's."""
        if self._shared is False or (self._shared and not self._members.tokens):
            self._place.unlink()

    def _content(self, *, shared: bool) -> bytes:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        own = {"token": self._token, "host": socket.gethostname(), "process": os.getpid(), "since": since}
        return json.dumps(own | ({"shared": True} if shared else {})).encode()

    def _read(self) -> dict[str, Any]:
        try:
            return parse_json(self._place.read(), dict[str, Any])
        except (FileNotFoundError, UnreadableError):
            return {}

    def _refusal(self, theirs: dict[str, Any]) -> UserError:
        return UserError(
            f"another process is writing the cache {str(self._path)!r} (on {theirs.get('host')}, process "
            f"{theirs.get('process')}, since {theirs.get('since')}): wait for it, or, if it was killed, delete "
            f"{str(self._place)!r}."
        )
