"""Around all routes: bounds of a request's body, headers of every response, and what is counted."""

from asyncio import timeout
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any

from losa_cache.apply.serve.metrics import Metrics
from losa_cache.apply.serve.refused import RefusedError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LINGER = 2.0  # s
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """An ASGI application around another.

    A response that refuses a request is sent when the client has sent its body, or two seconds later: closing a
    connection while data comes in would make most clients report a broken connection, and not the response.

    Args:
        app: inside.
        metrics: are told of every request.
        max_body: bytes.
        seconds: that a body may take.
    """

    def __init__(self, app: App, metrics: Metrics, *, max_body: int, seconds: float) -> None:
        self._app, self._metrics, self._max_body, self._seconds = app, metrics, max_body, seconds

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = monotonic(), 500
        body = _Body(scope, receive, self._max_body, self._seconds)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
                if status >= 400:
                    await body.discard()
            await send(message)

        try:
            await self._app(scope, body.receive, answer)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(path, status, monotonic() - started)


class _Body:
    """The body of a request, within bounds."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, most: int, seconds: float) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self._declared = int(length) if length.isdigit() else 0
        self._waits = b"expect" in headers  # for a sign that the body is wanted
        self._receive, self._most, self._end, self._seconds = receive, most, monotonic() + seconds, seconds
        self._size, self._ended = 0, False

    async def receive(self) -> Message:
        """Receive a part.

        Raises:
            RefusedError: if the body is too large, or too slow.
        """
        if self._ended:
            return await self._receive()  # a disconnection, at some time
        if max(self._declared, self._size) > self._most:
            raise self._too_large()
        try:
            async with timeout(self._end - monotonic()):
                message = await self._next()
        except TimeoutError as error:
            raise RefusedError(
                408, f"the request was not there after {self._seconds:g} seconds: send it again."
            ) from error
        if self._size > self._most:
            raise self._too_large()
        return message

    async def discard(self) -> None:
        """Receive what is left, for a while, and drop it."""
        if self._ended or (self._waits and not self._size):
            return
        try:
            async with timeout(LINGER):
                while not self._ended:
                    await self._next()
        except TimeoutError:
            return

    async def _next(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body has more than {self._most} bytes: send a smaller image.")
