"""Processes that this one starts: what they tell, what they say, and that none of them outlives it.

A child tells what its parent counts on its standard output, a JSON object a line, and says the rest on its standard
error. Its standard input is a pipe on which nothing is ever written. The pipe ends when the parent wants the child to
stop, or when the parent is gone, even by SIGKILL. This module imports no library, so that a child watches it from the
beginning.
"""

import json
import math
import os
import selectors
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, Self

GRACE = 60.0  # s that a child has to reach a clean point: a forward pass and the end of a shard take less
POLL = 0.5  # s until the end of a child is seen whose own children still hold its pipes

Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Command:
    """A process to start.

    Attributes:
        words: its command line.
        environment: variables beside, or in place of, those of this process.
        handles: open files of this process that it gets, too: of locks that it is to hold as long as it lives.
    """

    words: Sequence[str]
    environment: Mapping[str, str]
    handles: Sequence[int] = ()


@dataclass(frozen=True)
class Message:
    """A line of a child.

    Attributes:
        child: its number, from 0.
        told: the object that it told; ``None`` for a line that it said.
        line: the line.
    """

    child: int
    told: dict[str, Any] | None
    line: str


@dataclass
class _Stream:
    child: int
    tells: bool
    rest: bytes = b""
    lines: list[bytes] = field(default_factory=list)

    def take(self, handle: int) -> bool:
        """Read what there is, and say whether more may follow."""
        more = True
        try:
            while chunk := os.read(handle, 1 << 16):
                self.rest += chunk
            more = False
        except BlockingIOError:
            pass
        *self.lines, self.rest = self.rest.split(b"\n")
        return more

    def messages(self) -> Iterator[Message]:
        """Give the lines that were read whole. What else is printed before the child tells something is said."""
        for line in self.lines:
            text = line.decode(errors="backslashreplace")
            told = json.loads(text) if self.tells and text.startswith("{") else None
            yield Message(self.child, told, text)


class Children:
    """Processes that are started when a context begins, and have ended when it ends.

    Args:
        commands: to start, in their order.
    """

    def __init__(self, commands: Sequence[Command]) -> None:
        self._commands = commands
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes = selectors.DefaultSelector()

    @property
    def codes(self) -> list[int | None]:
        """Their exit codes, negative for a signal; ``None`` for those that run."""
        return [process.poll() for process in self._processes]

    def __enter__(self) -> Self:
        try:
            for number, command in enumerate(self._commands):
                process = subprocess.Popen(  # noqa: S603 - words of our own
                    command.words,
                    env=os.environ | command.environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=command.handles,
                )
                self._processes.append(process)
                for pipe in (process.stdout, process.stderr):
                    assert pipe is not None
                    os.set_blocking(pipe.fileno(), False)
                    self._pipes.register(pipe, selectors.EVENT_READ, _Stream(number, pipe is process.stdout))
        except BaseException:
            self.__exit__()
            raise
        return self

    def messages(self, *, patience: float = math.inf) -> Iterator[Message]:
        """Give what children tell and say, until all of them have ended.

        Args:
            patience: seconds after which those that still run are killed.
        """
        began = monotonic()
        while self._pipes.get_map():
            if monotonic() - began > patience:
                for process in self._processes:
                    process.kill()
            ended = [code is not None for code in self.codes]  # asked first: what such a child wrote is all there
            ready = {key.fd for key, _ in self._pipes.select(POLL)}
            for key in list(self._pipes.get_map().values()):
                stream: _Stream = key.data
                if key.fd in ready or ended[stream.child]:
                    if not stream.take(key.fd) or ended[stream.child]:
                        self._pipes.unregister(key.fileobj)
                    yield from stream.messages()
        for process in self._processes:
            process.wait()

    def __exit__(self, *_: object) -> None:
        """Have those stop that still run."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        deque(self.messages(patience=2 * GRACE), maxlen=0)  # read on: a child that cannot write could not end
        for process in self._processes:
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()
        self._pipes.close()


def end_with_parent() -> None:
    """In a child: stop as at SIGTERM when the parent wants it or is gone, and end without mercy a minute later."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def begin_child() -> Tell:
    """In a child: follow the parent (:func:`end_with_parent`) and talk to it (:func:`teller`), ready to compute."""
    end_with_parent()
    tell = teller()
    from losa_cache.terminal import prepare

    prepare()
    return tell


def teller() -> Tell:
    """In a child: give a function that tells the parent something.

    Whatever else writes to standard output says it from now on.
    """
    handle = os.dup(1)
    os.dup2(2, 1)

    def tell(content: Mapping[str, Any]) -> None:
        line = json.dumps(content).encode() + b"\n"
        with suppress(BrokenPipeError):  # of a parent that is gone
            while line:
                line = line[os.write(handle, line) :]

    return tell
