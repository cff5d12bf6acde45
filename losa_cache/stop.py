"""Ctrl-C, SIGTERM and SIGHUP mean the same: stop at a clean point. Whoever asks twice does not want to wait for it.

So do SIGUSR1 and SIGUSR2, by which batch systems warn a job that its time is over, but only within a command, whose
process is ours: to a library's caller they may mean something else.
"""

import os
import signal
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
TOGETHER = 1.0  # s: a terminal that closes, timeout(1) and managers of services send one wish as two signals


class Signals:
    """Call ``first`` at the first of the signals; a later one ends the process at once, as it would by default.

    A signal that is ignored (``nohup``) stays ignored, and outside of the main thread, where Python takes no signals,
    nothing changes. What handled them before does again when the context ends.

    Args:
        first: is called on the main thread, between any two of its operations.
        warnings: also take ``WARNINGS``. Within a context that does, every other context takes them, too.

    Attributes:
        received: the first signal's number, if there was one.
    """

    def __init__(self, first: Callable[[], None], *, warnings: bool = False) -> None:
        self.received: int | None = None
        self._warnings = warnings
        self._first, self._at, self._process = first, 0.0, os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (*SIGNALS, *WARNINGS):
                if self._takes(number):
                    self._previous[number] = signal.signal(number, self._take)
        return self

    def _takes(self, number: int) -> bool:
        handler = signal.getsignal(number)
        if handler in (signal.SIG_IGN, None):  # None: a handler that Python cannot restore
            return False
        return number in SIGNALS or self._warnings or isinstance(getattr(handler, "__self__", None), Signals)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _take(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that has just been forked: its parent ends it
            return
        if self.received is None:
            self.received, self._at = number, monotonic()
            self._first()
        elif monotonic() - self._at > TOGETHER:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            os._exit(128 + number)  # where the default, for a first process of a container, is to ignore it


def by_default() -> None:
    """Have the signals end the process at once from now on, but for those that are ignored."""
    if threading.current_thread() is threading.main_thread():
        for number in (*SIGNALS, *WARNINGS):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)


def interrupt() -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt
