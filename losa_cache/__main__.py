"""Where a command begins and ends: signals are taken before anything large is imported, every end has its exit code."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from losa_cache.errors import UserError
from losa_cache.failures import sentence
from losa_cache.stop import Signals, by_default, interrupt
from losa_cache.text import say

INTERRUPTED = 130  # what typer turns Ctrl-C into


def main() -> None:
    """Run the command line."""
    command(_run)


def command(run: Callable[[], None]) -> None:
    """Run what a process is for: a user's mistake, or what the machine refuses, is one sentence on stderr and exit code
    2.

    A signal to stop ends it with 128 and its number.
    """
    signals = Signals(interrupt, warnings=True)
    try:
        with signals:
            try:
                run()
            except (Exception, KeyboardInterrupt, SystemExit) as end:
                _end(end, signals.received)
    finally:
        if signals.received is not None:
            by_default()  # a second signal finds an interpreter that ends its threads


def _run() -> None:
    from losa_cache.cli import app
    from losa_cache.terminal import prepare

    prepare()
    app()


def _end(end: BaseException, received: int | None) -> NoReturn:
    stopped = isinstance(end, KeyboardInterrupt) or (isinstance(end, SystemExit) and end.code == INTERRUPTED)
    if isinstance(end, SystemExit) and not stopped:
        raise end
    if isinstance(end, UserError) and not (received and isinstance(end.__cause__, ImportError)):
        say(f"error: {end}", sys.stderr)
        sys.exit(2)
    if stopped or received:  # an import that a signal ends may raise anything
        say(
            "stopped: what is finished is kept. Run the same command to go on; train and sweep go on with --resume.",
            sys.stderr,
        )
        sys.exit(128 + (received or signal.SIGINT))
    if (refused := sentence(end)) is not None:
        say(f"error: {refused}", sys.stderr)
        sys.exit(2)
    raise end


if __name__ == "__main__":
    main()
