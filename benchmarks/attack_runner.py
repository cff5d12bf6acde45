"""The command line, run in children of one process that has imported everything, and what is thought of each run.

A child costs a fraction of a second, where a fresh interpreter takes several to import torch. So that forking is safe
the parent starts no thread: it makes files, forks, compares bytes.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

RIGHT, SENTENCE, OTHER, TRACEBACK, SILENT = "right", "one sentence", "other", "traceback", "silent"
OUTCOMES = (RIGHT, SENTENCE, OTHER, TRACEBACK, SILENT)
"""From the best to the worst. ``other``: refused where it should work, or a message that is not one plain sentence."""
SHARD_BYTES = 450_000  # four images of vit_digits in bfloat16: a cache of 24 images has six shards
HANG_SECONDS = 25
TIMES = ("train_seconds", "train_read", "train_peak_gb", "train_images", "train_cpu", "train_gpu", "limiter")
"""These parts of a line of metrics depend on the clock and on the machine."""


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        code: its exit code; -N where signal N ended it; ``None`` where it did not end.
        out, err: what it printed.
        seconds: that it took.
    """

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        """What it printed as JSON."""
        return json.loads(self.out)

    @property
    def wreck(self) -> str | None:
        """What no user should see: a traceback, a hang, a crash."""
        if self.code is None:
            return f"no end after {HANG_SECONDS} s"
        for sign in ("Traceback (most recent call last)", "Exception ignored in", "Exception in thread"):
            if sign in self.err:
                return self.err.strip().splitlines()[-1][:300]
        if self.code < 0:
            return f"ended by signal {-self.code}"
        return None

    @property
    def sentence(self) -> bool:
        """Whether it said what is wrong in one line, or as the parser of options does."""
        said = self.err.strip().rpartition("error: ")[2] if "error: " in self.err else ""
        usage = "Usage:" in self.err
        return self.code == 2 and (usage or (bool(said) and "\n" not in said)) and not _unsafe(self.err)


def _unsafe(text: str) -> bool:
    # of our own output to no terminal nothing may carry control characters but line ends
    return any((ord(letter) < 32 and letter not in "\n\t\r") or ord(letter) == 127 for letter in text)


@dataclass
class Step:
    """One command of a case, judged."""

    command: str
    outcome: str
    detail: str = ""


@dataclass
class Result:
    """A case, judged by the worst of its steps."""

    kind: str
    group: str
    name: str
    steps: list[Step]
    seconds: float

    @property
    def outcome(self) -> str:
        """The worst of all steps."""
        return max((step.outcome for step in self.steps), key=OUTCOMES.index, default=RIGHT)


@dataclass(frozen=True)
class Case:
    """Something to try.

    Attributes:
        kind: kills, flips, structure or inputs.
        group: row of the detailed table.
        name: unique; seeds what is random in it.
        run: does it.
    """

    kind: str
    group: str
    name: str
    run: Callable[[], list[Step]] = field(repr=False)


class Runner:
    """Runs commands in forked children, within a folder of its own.

    Args:
        folder: everything happens below it; emptied first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "said").mkdir(parents=True)
        self._depth = 0
        self.home = folder / "home"
        self.environment = {"LOSA_CACHE_HOME": str(self.home), "COLUMNS": "200"}

    def run(
        self,
        *arguments: str | Path,
        environment: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        before: Callable[[], None] = lambda: None,
        during: Callable[[int], None] = lambda process: None,
        call: Callable[[], Any] | None = None,
        seconds: float = HANG_SECONDS,
    ) -> Done:
        """Run ``losa-cache`` with these arguments, or ``call``, in a child.

        Args:
            arguments: of the command line.
            environment: variables to set or, with ``None``, to unset.
            cwd: working directory; by default the runner's folder.
            before: called in the child before it begins.
            during: called in the parent, with the child's process id.
            call: to run in place of the command line.
            seconds: after which it is killed.
        """
        self._depth += 1  # a second command may run while the first one waits
        out, err = (self.folder / "said" / f"{name}-{self._depth}" for name in ("out", "err"))
        sys.stdout.flush()
        sys.stderr.flush()
        started = time.perf_counter()
        process = os.fork()
        if not process:
            self._child([str(a) for a in arguments], environment or {}, cwd or self.folder, before, call, (out, err))
        during(process)
        self._depth -= 1
        status = _wait(process, started + seconds)
        with contextlib.suppress(ProcessLookupError):  # what it left: decoding processes
            os.killpg(process, signal.SIGKILL)
        if status is None:
            os.waitpid(process, 0)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        printed, told = (file.read_bytes().decode("utf-8", "replace") for file in (out, err))
        return Done(code, printed, told, time.perf_counter() - started)

    def _child(
        self,
        arguments: list[str],
        environment: Mapping[str, str | None],
        cwd: Path,
        before: Callable[[], None],
        call: Callable[[], Any] | None,
        files: tuple[Path, Path],
    ) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            for number, file in ((0, Path(os.devnull)), (1, files[0]), (2, files[1])):
                handle = os.open(file, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0))
                os.dup2(handle, number)
                os.close(handle)
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(encoding="utf-8", errors="strict" if stream is sys.stdout else "backslashreplace")  # type: ignore[union-attr]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for name, value in (self.environment | dict(environment)).items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            os.chdir(cwd)
            sys.argv = ["losa-cache", *arguments]
            from losa_cache.cli import main

            try:
                before()
                (call or main)()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
        except BaseException:
            with contextlib.suppress(BaseException):
                traceback.print_exc()
            code = 1
        finally:
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(code & 255)


def _wait(process: int, until: float) -> int | None:
    pause = 0.001
    while time.perf_counter() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status
        time.sleep(pause)
        pause = min(pause * 1.2, 0.02)
    os.killpg(process, signal.SIGKILL)
    return None


def warm(modules: Iterable[str] = ()) -> None:
    """Import all that the verbs import, and nothing that starts a thread.

    Raises:
        RuntimeError: if there is more than one thread, which a fork would lose.
    """
    import torch

    torch.set_num_threads(1)
    import losa_cache
    from losa_cache.extract.extract import extract

    for found in pkgutil.walk_packages(losa_cache.__path__, "losa_cache."):
        if "kernels" not in found.name:
            importlib.import_module(found.name)
    for name in (*_LAZY, *modules):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if extract.__kwdefaults__ is not None:
        extract.__kwdefaults__["shard_bytes"] = SHARD_BYTES
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise RuntimeError(f"{threads} threads run before the first fork")


_LAZY = (
    *(
        "timm",
        "sklearn.datasets",
        "dask.threaded",
        "distributed",
        "yaml",
        "av",
        "optuna",
        "obstore",
        "torch.utils.tensorboard",
    ),
    *("matplotlib.pyplot", "matplotlib.figure", "matplotlib.backends.backend_agg", "sqlalchemy.dialects.sqlite"),
    *("torch._dynamo", "torchvision.datasets", "zarr.core.sync", "zarr.codecs", "optuna.storages._rdb.storage"),
    *("tensorboard.summary.writer.event_file_writer", "safetensors.torch", "PIL.PngImagePlugin", "PIL.JpegImagePlugin"),
)


def shown(arguments: Iterable[str | Path]) -> str:
    """Give a command as a shell takes it."""
    return "losa-cache " + shlex.join(os.fsencode(str(a)).decode("utf-8", "backslashreplace")[:200] for a in arguments)


def judge(
    command: str,
    done: Done,
    difference: Callable[[], str | None],
    *,
    may_refuse: bool = True,
    damage: bool = False,
) -> Step:
    """Judge a command.

    Args:
        command: as shown.
        done: how it ended.
        difference: says how its result differs from the right one; asked where it ended well.
        may_refuse: whether a sentence is an answer, too.
        damage: whether exit code 1 (``verify``: something is wrong) is the right one.
    """
    if (wreck := done.wreck) is not None:
        return Step(command, TRACEBACK, wreck)
    if done.code == 0:
        try:
            found = difference()
        except Exception as error:  # a result that cannot be read is none
            found = f"its result cannot be read ({type(error).__name__}: {error})"[:300]
        return Step(command, RIGHT) if found is None else Step(command, SILENT, found)
    if done.code == 1 and damage:
        return Step(command, RIGHT)
    said = done.err.strip()[-300:]
    if done.sentence:
        return Step(command, SENTENCE if may_refuse else OTHER, said)
    return Step(command, OTHER if done.code == 2 else TRACEBACK, f"exit code {done.code}: {said}")


def digest(path: Path) -> str:
    """Hash a file."""
    return sha256(path.read_bytes()).hexdigest()


def tree(*folders: Path) -> dict[str, str]:
    """Hash every file below folders, but for locks, time stamps, and what a kill leaves that nothing reads.

    Links to folders are followed, as those who read a cache do.
    """
    return {
        str(file.relative_to(folder.parent)): digest(file)
        for folder in folders
        for here, _, names in os.walk(folder, followlinks=True)
        for file in (Path(here, name) for name in sorted(names))
        if file.is_file() and file.name != "lock" and not any(map(_left_over, file.relative_to(folder).parts))
    }


def _left_over(name: str) -> bool:
    return name.endswith(".partial") or name in ("core.old", "sources")  # of sources: time stamps of the pictures


def apart(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Say in which entries two mappings differ."""
    wrong = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    return None if not wrong else f"{len(wrong)} differ, among them " + ", ".join(map(str, wrong[:3]))


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder in place of what is there."""
    remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Read a run's metrics, but for those of time.

    Raises:
        ValueError: if they are not JSON.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(TIMES)} for line in lines]


def limit(what: int, amount: int) -> Callable[[], None]:
    """Give a function that limits a child's resource."""
    return lambda: resource.setrlimit(what, (amount, amount))


def scratch() -> Path:
    """Give the folder that all happens in: always the same for a user, so that commands can be repeated."""
    return Path(tempfile.gettempdir()) / f"losa-cache-attack-{os.getuid()}-{os.getpid()}"
