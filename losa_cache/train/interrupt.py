"""A signal to stop, handled at the end of a step."""

import logging
import signal
from types import TracebackType

from losa_cache.stop import Signals

log = logging.getLogger(__name__)


class Interrupt:
    """Note the first signal to stop, so that the loop can end at a clean point; a second one ends the process at once.

    The signal is not lost: when the context ends, the previous handler receives it. Only the main thread can receive
        signals; in other threads nothing changes.
    """

    def __init__(self) -> None:
        self._signals = Signals(self._note)

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._signals.received is not None

    def __enter__(self) -> "Interrupt":
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.__exit__()
        if (number := self._signals.received) is not None and kind in (None, KeyboardInterrupt):
            signal.raise_signal(number)
            raise KeyboardInterrupt

    @staticmethod
    def _note() -> None:
        log.warning("stopping after this batch, with a checkpoint; a second signal stops at once.")
