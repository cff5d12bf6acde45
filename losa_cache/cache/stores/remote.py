"""Places on object stores (S3, Google, Azure) and on HTTP servers. Credentials come from the environment alone."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from losa_cache.cache.object_store import ObjectPath
from losa_cache.errors import UserError
from losa_cache.extras import extra

if TYPE_CHECKING:
    from obstore import Bytes
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

CONTAINER_BEFORE_HOST = ("abfs", "abfss")  # abfss://container@account.dfs.core.windows.net
RETRY_SECONDS = (
    40  # with obstore's 30 seconds a request: one that stalls is sent again, a dead server is an error in 60
)
UPLOADS_AT_ONCE = 6  # parts of one file, 5 MiB each: all must be through within those 30 seconds
REQUEST = timedelta(seconds=30)
PATIENCE = timedelta(hours=1)  # HTTP has no parts: the upload of a whole shard is one request

# What obstore says, in a word; its own text names endpoints and keys.
REASONS = (
    (r"NoSuchBucket|ContainerNotFound", "there is no such bucket"),
    (r"range ?not ?supported", "the server does not serve parts of a file: it ignores HTTP range requests"),
    (r"BadScheme|builder error", "plain http is not allowed: set AWS_ALLOW_HTTP=true if that is meant"),
    (r"169\.254\.169\.254|metadata\.google|MissingAccount", "there are no credentials in the environment"),
    (r"ConnectionRefused", "the connection is refused"),
    (r"dns error", "the name of the host cannot be resolved"),
    (r"TimedOut|kind: Timeout", "the server does not answer in time"),
    (r"kind: (Connect|Request|Unknown)|error sending request", "the server cannot be reached"),
    (r"error decoding response body|IncompleteMessage", "the server broke off"),
)


@dataclass(frozen=True)
class RemotePath(ObjectPath):
    """A place on a server.

    Every method raises ``UserError`` where the server cannot be reached, refuses or fails, in words that hold neither
    credentials nor endpoint. Pickled, it is its URL: another process takes the credentials of its own environment.

    Attributes:
        store: obstore's, of ``root``.
    """

    schemes = ("s3", "gs", "az", "https", "http", "s3a", "adl", "azure", "abfs", "abfss")
    store: "ObjectStore" = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> "RemotePath":
        """Take a URL.

        Raises:
            UserError: for one that names no folder or carries credentials, or without obstore.
        """
        parts = urlsplit(text.rstrip("/"))
        if parts.password is not None or ("@" in parts.netloc and parts.scheme not in CONTAINER_BEFORE_HOST):
            raise UserError(
                f"the URL of {parts.hostname!r} carries a user name or a password: leave it out and set the "
                "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for example)."
            )
        if parts.query or parts.fragment:
            raise UserError(
                f"the URL of {parts.hostname!r} carries a query or a fragment, which a cache of many files cannot use: "
                "leave out what follows ? or #, and set credentials in the environment."
            )
        folder, _, name = parts.path.rpartition("/")
        if not name or "/" in unquote(name) or not parts.netloc:
            raise UserError(f"{text!r} names no cache: give {parts.scheme}://{parts.netloc or 'bucket'}/NAME.zarr.")
        root = f"{parts.scheme}://{parts.netloc}{folder}"
        return cls(root, unquote(name), _connect(root))

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (str(self), self.root)

    @property
    def lists(self) -> bool:
        """Whether the server can say what it has: HTTP cannot."""
        from obstore.store import HTTPStore

        return not isinstance(self.store, HTTPStore)

    def scan(self) -> Iterator[tuple[str, int]]:
        """Give every object below, as the server lists it."""
        prefix = f"{self.key}/"
        with reaching(self, "listed"):
            for part in self.store.list(prefix):
                for entry in part:
                    if entry["path"].startswith(prefix):
                        yield entry["path"].removeprefix(prefix), entry["size"]

    def size(self) -> int:
        """Bytes of the object."""
        with reaching(self, "read"):
            return self.store.head(self.key)["size"]

    def read(self) -> bytes:
        """Read the whole object."""
        with reaching(self, "read"):
            return bytes(self.store.get(self.key).bytes())

    def read_ranges(self, starts: Sequence[int], lengths: Sequence[int]) -> "Sequence[Bytes]":
        """Read parts of the object; what is no further than 1 MiB apart by one request."""
        with reaching(self, "read"):
            return self.store.get_ranges(self.key, starts=starts, lengths=lengths)

    def write(self, content: bytes) -> None:
        """Write an object: it appears whole or not at all."""
        with reaching(self, "written"):
            self.store.put(self.key, content, use_multipart=False)

    def create(self, content: bytes) -> bool:
        """Write an object if there is none of this name, and say whether. HTTP has no such step."""
        from obstore.exceptions import AlreadyExistsError

        try:
            with reaching(self, "written"):
                self.store.put(self.key, content, mode="create" if self.lists else "overwrite", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def upload(self, file: Path) -> None:
        """Write an object from a file, in parts where the server takes such: it appears whole or not at all."""
        with reaching(self, "written"):
            if self.lists:
                self.store.put(self.key, file, max_concurrency=UPLOADS_AT_ONCE)
            else:
                _patient(self.root).put(self.key, file, use_multipart=False)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        try:
            with reaching(self, "removed"):
                self.store.delete(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise


@contextmanager
def reaching(path: RemotePath, verb: str) -> Iterator[None]:
    """Say in a sentence why a server failed.

    Args:
        path: that is worked on.
        verb: what cannot be done.

    Raises:
        FileNotFoundError: for an object that is not there.
        UserError: for everything else.
        obstore.exceptions.AlreadyExistsError: as it is.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError

    try:
        yield
    except AlreadyExistsError:
        raise
    except FileNotFoundError as error:
        if re.search("NoSuchBucket|ContainerNotFound", str(error)):
            raise UserError(f"{str(path)!r} cannot be {verb} (there is no such bucket).") from None
        raise FileNotFoundError(errno.ENOENT, "there is no such object", str(path)) from None
    except (BaseError, OSError) as error:
        raise UserError(f"{str(path)!r} cannot be {verb} ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    text = str(error)
    for pattern, words in REASONS:
        if re.search(pattern, text, flags=re.IGNORECASE):
            return words
    status = re.search(r"status code: (\d{3}(?: [A-Z][A-Za-z]+)*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    named = [found[1] for found in (status, code) if found]
    return ", ".join(named) or type(error).__name__


def _connect(root: str, *, timeout: timedelta = REQUEST) -> "ObjectStore":
    """Open the folder that holds a cache, with what the environment says.

    Client options would replace those of the environment: only plain HTTP servers, which have none, are given any.
    """
    with extra("obstore", f"{root!r} is on a server", "remote"):
        from obstore.exceptions import BaseError
        from obstore.store import HTTPStore, from_url
    retry: RetryConfig = {"retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    try:
        if timeout == REQUEST and urlsplit(root).scheme != "http":
            return from_url(root, retry_config=retry)
        options: ClientConfig = {"allow_http": True, "timeout": timeout}
        return HTTPStore.from_url(root, retry_config=retry, client_options=options)
    except (BaseError, ValueError) as error:
        raise UserError(f"{root!r} cannot be opened ({_reason(error)}).") from None


@cache
def _patient(root: str) -> "ObjectStore":
    """Open an HTTP server for long uploads, once: it has no credentials that might change."""
    return _connect(root, timeout=PATIENCE)


def _reopen(url: str, root: str) -> RemotePath:
    return RemotePath(root, unquote(url.removeprefix(f"{root}/")), _connect(root))
