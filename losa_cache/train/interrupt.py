"""Ctrl-C at a step's end."""

import logging
import signal
import threading
from types import FrameType

log = logging.getLogger(__name__)


class Interrupt:
    """Note a first Ctrl-C, for the loop to end at a clean point; a second one ends it at once.

    Only the main thread can take signals: elsewhere nothing changes.

    Attributes:
        asked: whether Ctrl-C was pressed.
    """

    asked = False

    def __enter__(self) -> "Interrupt":
        self._here = threading.current_thread() is threading.main_thread()
        if self._here:
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._here:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, _: int, __: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._previous)
        log.warning("stopping after this batch, with a checkpoint; Ctrl-C again stops at once.")
