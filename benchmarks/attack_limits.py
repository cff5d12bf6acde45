"""Few descriptors and little memory, no locks, odd terminals and paths, a second process, passwords."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attack_inputs import clear, tried
from attack_kills import Steps
from attack_machine import Named, ready, verbs
from attack_runner import OTHER, RIGHT, SILENT, TRACEBACK, Case, Done, Step, apart, judge, limit, remove, shown, tree
from attack_world import EXTRACT, World, run_difference, sweep_difference


def cases(world: World) -> Iterator[Case]:
    """All limits."""
    for group, made in (
        ("limits", _limits(world)),
        ("no flock", _no_locks(world)),
        ("pipes and locales", _terminals(world)),
        ("odd paths", _paths(world)),
        ("two processes", _two(world)),
        ("secrets", _secrets(world)),
    ):
        for name, run in made:
            yield Case("inputs", group, f"inputs/limits/{group}: {name}", run)


def _limits(world: World) -> Named:
    """Few descriptors, little memory: right, or a sentence."""

    def few(verb: str, count: int, may_refuse: bool) -> list[Step]:
        ready(world)
        command, right = verbs(world)[verb]
        before = limit(resource.RLIMIT_NOFILE, count)
        return [tried(world, *command, what=f"ulimit -n {count}", right=right, may_refuse=may_refuse, before=before)]

    for verb in ("extract", "train", "stage", "sweep", "eval"):
        for count, may_refuse in ((64, False), (32, True), (16, True)):
            yield f"{count} descriptors: {verb}", partial(few, verb, count, may_refuse)

    def many_shards(command_of: str) -> list[Step]:
        """A cache of 90 shards under ``ulimit -n 64``."""
        ready(world)
        store, out = world.folder / "many.zarr", world.folder / "disk" / "tried"

        def one_sample_a_shard() -> None:
            from losa_cache.extract.extract import extract

            assert extract.__kwdefaults__ is not None
            extract.__kwdefaults__["shard_bytes"] = 100_000

        if not store.exists():
            from attack_world import pictures

            remove(world.folder / "many")
            pictures(world.folder / "many", seed=9, counts={"train": 30})
            world.must(*EXTRACT, "--data-dir", world.folder / "many", "--out", store, before=one_sample_a_shard)
        before = limit(resource.RLIMIT_NOFILE, 64)
        commands: dict[str, tuple[str | Path, ...]] = {
            "train": world.train_command(store, out, "--residency", "disk"),
            "verify": ("verify", store),
            "inspect": ("inspect", store, "--full"),
            "stage": world.train_command(store, out, "--stage", world.folder / "near"),
        }
        command = commands[command_of]
        right: Callable[[Done], str | None] = lambda done: None  # noqa: E731
        if command_of in ("train", "stage"):
            remove(world.folder / "undisturbed")
            world.must(*world.train_command(store, world.folder / "undisturbed"))
            from attack_world import result

            wanted = result(world.folder / "undisturbed")
            right = lambda done: run_difference(out, wanted)  # noqa: E731
        return [tried(world, *command, what="90 shards, ulimit -n 64", right=right, may_refuse=False, before=before)]

    for name in ("train", "verify", "inspect", "stage"):
        yield f"90 shards with 64 descriptors: {name}", partial(many_shards, name)

    def little(verb: str, more: int) -> list[Step]:
        ready(world)
        command, right = verbs(world)[verb]

        def before() -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            amount = pages * resource.getpagesize() + more * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (amount, amount))

        return [tried(world, *command, what=f"{more} MiB more than it has", right=right, before=before)]

    for verb in ("extract", "train", "stage", "sweep", "eval"):
        for more in (40, 100, 300, 1000):
            yield f"{more} MiB more: {verb}", partial(little, verb, more)

    def stack(verb: str) -> list[Step]:
        ready(world)
        command, right = verbs(world)[verb]

        def few_threads() -> None:
            import threading

            def start(*_: Any, **__: Any) -> None:
                raise RuntimeError("can't start new thread")  # as CPython says it

            for name in ("_start_new_thread", "_start_joinable_thread"):  # of Python 3.12, of 3.13
                if hasattr(threading, name):
                    setattr(threading, name, start)

        return [
            tried(
                world,
                *command,
                what="no more threads",
                right=right,
                before=few_threads,
            )
        ]

    for verb in ("extract", "train"):
        yield f"no more threads: {verb}", partial(stack, verb)


def _no_locks(world: World) -> Named:
    """File systems without flock."""

    def run(verb: str, number: int) -> list[Step]:
        ready(world)
        command, right = verbs(world)[verb]

        def before() -> None:
            import fcntl

            def flock(*_: Any) -> None:
                raise OSError(number, os.strerror(number))

            fcntl.flock = flock

        return [tried(world, *command, what=f"flock: {os.strerror(number)}", right=right, before=before)]

    for verb in ("extract", "train", "stage", "sweep", "eval"):
        for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINTR, errno.EIO):
            yield f"{verb}, {errno.errorcode[number]}", partial(run, verb, number)


def _terminals(world: World) -> Named:
    """Output that nobody reads, cannot be written, or has no UTF-8."""

    def piped(*command: str | Path) -> list[Step]:
        """Needs an interpreter of its own: it is at its end that it flushes."""
        ready(world)
        code = "from losa_cache.cli import main; main()"
        whole = [sys.executable, "-c", code, *map(str, command)]
        environment = os.environ | world.runner.environment
        with subprocess.Popen(
            whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=world.empty()
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            err = process.stderr.read().decode("utf-8", "replace")
            code_ = process.wait()
        bad = "Traceback" in err or "Exception ignored" in err
        detail = f"exit code {code_}: {err.strip()[-200:]}"
        return [Step(f"{shown(command)} | true", TRACEBACK if bad else RIGHT, detail if bad else "")]

    cache = world.cache("train")
    for name, command in {
        "inspect": ("inspect", cache),
        "list": ("list",),
        "help": ("--help",),
        "verify": ("verify", cache),
    }.items():
        yield f"a broken pipe: {name}", partial(piped, *command)

    def full_output(verb: str, device: str) -> list[Step]:
        ready(world)
        commands: dict[str, tuple[str | Path, ...]] = {
            "inspect": ("inspect", cache),
            "list": ("list",),
            "eval": world.evaluation(),
            "plan": ("plan", *EXTRACT[1:], "--data-dir", world.data),
        }
        _ = world.figures

        def before() -> None:
            handle = os.open(device, os.O_WRONLY) if device != "closed" else -1
            os.close(1) if device == "closed" else os.dup2(handle, 1)

        return [tried(world, *commands[verb], what=f"stdout is {device}", right=lambda done: None, before=before)]

    for verb in ("inspect", "list", "eval"):
        for device in ("/dev/full", "closed"):
            yield f"stdout {device}: {verb}", partial(full_output, verb, device)

    def ascii_only(name: str) -> list[Step]:
        ready(world)
        store = world.folder / "disk" / f"{name}.zarr"

        def before() -> None:
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(encoding="ascii", errors="strict" if stream is sys.stdout else "backslashreplace")  # type: ignore[union-attr]

        command: tuple[str | Path, ...] = (*EXTRACT, "--data-dir", world.data, "--out", store)
        steps = [tried(world, *command, what="ASCII alone", right=lambda done: None, may_refuse=False, before=before)]
        for verb in (("inspect", store), ("list",), ("verify", store), ("inspect", store.with_name(f"no-{name}.zarr"))):
            steps.append(tried(world, *verb, what="ASCII alone", right=lambda done: None, before=before))
        out = world.folder / "disk" / name
        command = world.train_command(store, out)
        steps.append(
            tried(world, *command, what="ASCII alone", right=lambda done: None, may_refuse=False, before=before)
        )
        return steps

    for name in ("plain", "gr\u00fc\u00dfe", "\u6f22\u5b57", os.fsdecode(b"\xff")):
        yield f"an ASCII terminal and {name!a}", partial(ascii_only, name)

    def c_locale(*command: str | Path) -> list[Step]:
        ready(world)
        whole = [sys.executable, "-c", "from losa_cache.cli import main; main()", *map(str, command)]
        environment = (
            os.environ | world.runner.environment | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        )
        done = subprocess.run(whole, capture_output=True, env=environment, cwd=world.empty(), check=False)
        err = done.stderr.decode("utf-8", "replace")
        bad = "Traceback" in err or done.returncode not in (0, 2)
        return [Step(f"LC_ALL=C {shown(command)}", TRACEBACK if bad else RIGHT, err.strip()[-200:] if bad else "")]

    for name, command in {
        "list": ("list",),
        "extract": (*EXTRACT, "--data-dir", world.data, "--out", world.folder / "disk" / "gr\u00fc\u00dfe.zarr"),
        "inspect": ("inspect", "gr\u00fc\u00dfe.zarr"),
    }.items():
        yield f"LC_ALL=C: {name}", partial(c_locale, *command)


def _paths(world: World) -> Named:
    """One cache by many names: each is that cache."""
    trained = world.trained("train")
    store, out = world.cache("train"), world.folder / "disk" / "tried"

    def names() -> dict[str, tuple[str, Path]]:
        link = world.folder / "disk" / "link.zarr"
        link.symlink_to(store)
        folder = world.folder / "disk" / "folder"
        folder.symlink_to(world.folder)
        return {
            "a trailing slash": (f"{store}/", world.empty()),
            "a dot behind": (f"{store}/.", world.empty()),
            "dots in between": (f"{world.folder}/data/../train.zarr", world.empty()),
            "two slashes": (str(store).replace("/train", "//train"), world.empty()),
            "a relative name": ("train.zarr", world.folder),
            "a dot within": (".", store),
            "a dot and a slash within": ("./", store),
            "dots within": ("../train.zarr", store),
            "a link": (str(link), world.empty()),
            "a folder that is a link": (str(folder / "train.zarr"), world.empty()),
            "~": ("~/train.zarr", world.empty()),
        }

    def run(name: str, verb: str) -> list[Step]:
        ready(world)
        place, cwd = names()[name]
        commands: dict[str, tuple[tuple[str | Path, ...], Callable[[Done], str | None]]] = {
            "train": (world.train_command(place, out), lambda done: run_difference(out, trained)),
            "verify": (("verify", place), lambda done: None),
            "inspect": (("inspect", place), lambda done: None),
            "extract": (
                (*EXTRACT, "--data-dir", world.data, "--out", place),
                lambda done: None if "extracted_now      0" in done.out else f"extracts again: {done.out[:300]}",
            ),
        }
        command, right = commands[verb]
        before_it = {path.name for path in (*cwd.iterdir(), *world.folder.iterdir())}
        step = tried(
            world, *command, what=name, right=right, may_refuse=False, cwd=cwd, environment={"HOME": str(world.folder)}
        )
        new = {path.name for path in (*cwd.iterdir(), *world.folder.iterdir())} - before_it
        for path in new:
            remove(cwd / path)
        return [step if not new or step.outcome != RIGHT else Step(step.command, SILENT, f"leaves {sorted(new)}")]

    for name in (
        "a trailing slash",
        "a dot behind",
        "dots in between",
        "two slashes",
        "a relative name",
        "a dot within",
        "a dot and a slash within",
        "dots within",
        "a link",
        "a folder that is a link",
        "~",
    ):
        for verb in ("train", "verify", "inspect", "extract"):
            yield f"{name}: {verb}", partial(run, name, verb)

    def home(option: str) -> list[Step]:
        ready(world)
        cwd = world.empty()
        command: tuple[str | Path, ...] = (
            world.train_command(store, Path("~/tried"))
            if option == "train"
            else (*EXTRACT, "--data-dir", "~/data", "--out", "~/tried.zarr")
        )
        step = tried(
            world,
            *command,
            what="~",
            right=lambda done: "a folder named ~" if (cwd / "~").exists() else None,
            cwd=cwd,
            environment={"HOME": str(world.folder)},
        )
        remove(cwd / "~")
        return [step]

    for option in ("train", "extract"):
        yield f"~ as what is written: {option}", partial(home, option)


def _two(world: World) -> Named:
    """A second process while the first is at it: it is refused, and the first ends as if alone."""

    def pair(
        first: tuple[str | Path, ...],
        second: tuple[str | Path, ...],
        prepare: Callable[[], Any],
        right: Callable[[], str | None],
        share: float,
    ) -> list[Step]:
        prepare()
        steps = Steps(world.folder)
        world.must(*first, before=steps.watching())
        count = steps.count
        prepare()
        found: list[Step] = []

        def during(process: int) -> None:
            os.waitid(os.P_PID, process, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            found.append(tried(world, *second, what="while another process is at it", seconds=20))
            os.kill(process, signal.SIGCONT)

        watching = Steps(world.folder).watching(max(1, int(count * share)), signal.SIGSTOP)
        done = world.runner.run(*first, before=watching, during=during)
        return [*found, judge(shown(first), done, right, may_refuse=False)]

    out, store, also = world.folder / "tried", world.folder / "tried.zarr", world.folder / "also"
    half, sweep = world.stopped, world.folder / "sweep"
    whole, swept, wanted = world.whole, world.swept, world.known_tree("train")
    extract = (*EXTRACT, "--data-dir", world.data, "--out", store)
    # the link is one to the folder above: one to a cache that is not there yet is refused, whoever else is at it
    by_link = (*EXTRACT, "--data-dir", world.data, "--out", also / store.name)

    def none() -> None:
        clear(world)
        remove(also)
        remove(out)

    def linked() -> None:
        none()
        also.symlink_to(world.folder)

    def cached() -> str | None:
        found = tree(store, store.with_name(store.name + ".receipts"))
        names = {name.replace("tried.zarr", "train.zarr", 1): value for name, value in found.items()}
        return apart({n: v for n, v in names.items() if "/c." in n}, {n: v for n, v in wanted.items() if "/c." in n})

    def half_again() -> None:
        world.fresh("half", "train")

    def no_sweep() -> None:
        world.fresh("train", "test")
        remove(sweep)
        remove(sweep.with_name("sweep.partial"))

    resume = ("train", "--resume", half, "--device", "cpu")
    for share in (0.3, 0.6, 0.9):
        yield f"extract twice, at {share}", partial(pair, extract, extract, none, cached, share)
        yield f"extract by its name and by a link, at {share}", partial(pair, extract, by_link, linked, cached, share)
        yield f"extract by a link and by its name, at {share}", partial(pair, by_link, extract, linked, cached, share)
        yield (
            f"train --resume twice, at {share}",
            partial(pair, resume, resume, half_again, lambda: run_difference(half, whole), share),
        )
        again = ("sweep", "--resume", sweep, "--device", "cpu")
        yield (
            f"sweep and sweep --resume, at {share}",
            partial(pair, world.sweep_command(sweep), again, no_sweep, lambda: sweep_difference(sweep, swept), share),
        )


NAME = "s3cret-is-a-name-here.db"  # of a file, which a message may give


def _secrets(world: World) -> Named:
    """A password in ``--storage`` is neither written nor shown."""

    def run(address: str) -> list[Step]:
        ready(world)
        out = world.folder / "disk" / "tried"
        command = (*world.sweep_command(out), "--storage", address)
        done = world.runner.run(*command)
        step = judge(shown(command), done, lambda: None)
        written = (
            [p.name for p in out.rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()] if out.exists() else []
        )
        if "s3cret" in (done.out + done.err).replace(NAME, "") or written:
            return [Step(step.command, OTHER, f"shows or writes the password (in {written}): {done.err[-200:]}")]
        return [step]

    for address in (
        "postgresql://user:s3cret@127.0.0.1:9/x",
        "mysql://user:s3cret@127.0.0.1:9/x",
        "postgresql://127.0.0.1:9/x?user=a&password=s3cret",
        "nonsense://user:s3cret@host/x",
        f"sqlite:////nowhere/{NAME}?password=s3cret",
        "user:s3cret@host",
    ):
        yield address.partition(":")[0] + f" {len(address)}", partial(run, address)
