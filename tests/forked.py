"""Processes of their own that import nothing again: each is forked from one that has loaded what commands need.

A command that Python starts anew spends up to five seconds of CPU on imports. A process from here has its own memory,
streams, signals and exit code like any other; only a test of the imports themselves needs more than that.
"""

import contextlib
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
# CUDA does not survive a fork: where there is a GPU, each process begins from nothing.
CONTEXT = get_context("spawn" if torch.cuda.is_available() else "forkserver")
CONTEXT.set_forkserver_preload(["tests.loaded"])


class Forked:
    """``python ARGUMENTS``: ``-c CODE ...``, ``-m MODULE ...`` or ``FILE ...``. ``wait`` gives what it printed."""

    stdout: str
    stderr: str

    def __init__(self, *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        self._printed = [tempfile.NamedTemporaryFile("w+") for _ in range(2)]
        names = [file.name for file in self._printed]
        words = [os.fspath(own) for own in arguments]
        wanted = (words, str(cwd or Path.cwd()), dict(os.environ if env is None else env), *names)
        self._process = CONTEXT.Process(target=_run, args=wanted)
        with contextlib.chdir(ROOT):  # the first start loads the server, which finds the tests here
            self._process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> "Forked":
        """Wait for its end."""
        self._process.join()
        self.returncode = self._process.exitcode
        self.stdout, self.stderr = (file.read() for file in self._printed)
        for file in self._printed:
            file.close()
        return self


def _run(arguments: list[str], cwd: str, environment: dict[str, str], *streams: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    tempfile.tempdir = None  # read again from the environment
    for number, name in enumerate(streams, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    first, *rest = arguments
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = rest
        sys.modules.pop(f"{rest[0]}.__main__", None)  # it begins again, and runpy does not warn of it
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")
