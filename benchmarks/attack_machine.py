"""Machines and surroundings: homes, disks, limits, permissions, pipes, locales, other processes, odd paths."""

import ctypes
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

from attack_inputs import _clear, tried
from attack_kills import Steps
from attack_runner import OTHER, RIGHT, SILENT, TRACEBACK, Case, Done, Step, apart, judge, limit, remove, shown, tree
from attack_world import EXTRACT, World, run_difference, sweep_difference

NOBODY = 65534
NEW_NAMESPACE = 0x00020000  # CLONE_NEWNS
PRIVATE, READ_ONLY, REMOUNT = 0x44000, 1, 32  # MS_PRIVATE | MS_REC, MS_RDONLY, MS_REMOUNT


def cases(world: World) -> Iterator[Case]:
    """All surroundings."""
    for group, made in (
        ("home", _homes(world)),
        ("full disk", _full_disks(world)),
        ("read-only disk and no permission", _read_only(world)),
        ("limits", _limits(world)),
        ("no flock", _no_locks(world)),
        ("pipes and locales", _terminals(world)),
        ("odd paths", _paths(world)),
        ("two processes", _two(world)),
        ("secrets", _secrets(world)),
    ):
        for name, run in made:
            yield Case("inputs", group, f"inputs/machine/{group}: {name}", run)


Named = Iterator[tuple[str, Callable[[], list[Step]]]]


def _verbs(world: World) -> dict[str, tuple[tuple[str | Path, ...], Callable[[Done], str | None]]]:
    """Commands with what tells whether their result is right; they write below ``disk``."""
    disk = world.folder / "disk"
    store, out = disk / "tried.zarr", disk / "tried"
    trained, figures = world.trained("train"), world.figures
    wanted = world.known_tree("train")
    swept = world.swept

    def cached(done: Done) -> str | None:
        found = tree(store, store.with_name(store.name + ".receipts"))
        names = {name.replace("tried.zarr", "train.zarr", 1): value for name, value in found.items()}
        return apart({n: v for n, v in names.items() if "/c." in n}, {n: v for n, v in wanted.items() if "/c." in n})

    return {
        "extract": ((*EXTRACT, "--data-dir", world.data, "--out", store), cached),
        "train": (world.train_command(world.cache("train"), out), lambda done: run_difference(out, trained)),
        "stage": (
            world.train_command(world.cache("train"), world.folder / "tried", "--stage", disk / "near"),
            lambda done: run_difference(world.folder / "tried", trained),
        ),
        "sweep": (world.sweep_command(out), lambda done: sweep_difference(out, swept)),
        "eval": (
            ("eval", disk / "run", "--cache", world.tests, "--json", "--device", "cpu"),
            lambda done: apart({**done.json, "on": ""}, {**figures, "on": ""}),
        ),
    }


def _ready(world: World) -> Path:
    """An empty folder ``disk`` that holds a finished run."""
    _clear(world)
    world.fresh("train", "test", "run")
    disk = world.folder / "disk"
    remove(disk)
    remove(world.folder / "near")
    disk.mkdir()
    subprocess.run(["cp", "-r", world.run, disk / "run"], check=True)
    return disk


def _homes(world: World) -> Named:
    """A home that cannot be written: the cache is finished, and one warning says that it is not listed."""
    odd = world.folder / "odd-home"

    def home(name: str, make: Callable[[], Path | None]) -> Callable[[], list[Step]]:
        def run() -> list[Step]:
            _ready(world)
            remove(odd)
            place = make()
            environment: dict[str, str | None] = {"LOSA_CACHE_HOME": None if place is None else str(place)}
            if place is None:
                environment["HOME"] = None
            before = partial(_become_nobody, world) if "nobody" in name or place is None else (lambda: None)
            command, right = _verbs(world)["extract"]
            steps = [
                tried(world, *command, what=name, right=right, may_refuse=False, environment=environment, before=before)
            ]
            again = tried(
                world,
                *command,
                what=f"{name}, again",
                right=right,
                may_refuse=False,
                environment=environment,
                before=before,
            )
            listed = tried(world, "list", what=name, right=lambda done: None, environment=environment, before=before)
            train = _verbs(world)["train"]
            steps += [again, listed]
            trained = tried(
                world, *train[0], what=name, right=train[1], may_refuse=False, environment=environment, before=before
            )
            latest = tried(
                world,
                "train",
                "--epochs",
                "1",
                what=f"{name}, no --cache",
                right=lambda done: None,
                environment=environment,
                before=before,
            )
            return [*steps, trained, latest]

        return run

    def file() -> Path:
        odd.write_text("x")
        return odd

    def below_a_file() -> Path:
        odd.write_text("x")
        return odd / "home"

    def known_is_a_file() -> Path:
        odd.mkdir()
        (odd / "known").write_text("x")
        return odd

    def loop() -> Path:
        odd.symlink_to(odd)
        return odd

    def note(content: bytes | None) -> Callable[[], Path]:
        def make() -> Path:
            (odd / "known").mkdir(parents=True)
            if content is None:
                os.mkfifo(odd / "known" / "0.json")
            else:
                (odd / "known" / "0.json").write_bytes(content)
            return odd

        return make

    homes: dict[str, Callable[[], Path | None]] = {
        "a file": file,
        "below a file": below_a_file,
        "its folder of notes is a file": known_is_a_file,
        "an endless link": loop,
        "/dev/null": lambda: Path("/dev/null"),
        "/proc": lambda: Path("/proc/losa-cache"),
        "not UTF-8": lambda: odd.with_name(os.fsdecode(b"home-\xff")),
        "escapes": lambda: odd.with_name("home-\x1b[31m"),
        "of somebody unknown": lambda: Path("~nobody-of-this-name/home"),
        "a name of 5000 letters": lambda: Path("/tmp") / ("a" * 5000),
        "no HOME and no entry of the user": lambda: None,
        "not to be written by nobody": lambda: Path("/root/nobody") if os.getuid() == 0 else Path("/nobody"),
        "a damaged note": note(b"{"),
        "an empty note": note(b""),
        "a note that is a list": note(b"[1]"),
        "a note without a path": note(b"{}"),
        "a note whose path is a number": note(b'{"path": 3}'),
        "a note with a zero byte": note(b'{"path": "/a\\u0000b"}'),
        "a deep note": note(b"[" * 200_000),
        "a note that is a FIFO": note(None),
        "a note of another encoding": note('{"path": "/a"}'.encode("utf-16")),
        "a note that names a file": note(b'{"path": "/etc/passwd"}'),
        "a note with escapes": note(b'{"path": "/nowhere/\\u001b[31mx.zarr"}'),
    }
    for name, make in homes.items():
        yield name, home(name, make)


def _become_nobody(world: World) -> None:
    """Give up root, within folders that anybody may write."""
    if os.getuid() == 0:
        for folder in (world.folder, world.folder / "disk", world.folder / "empty"):
            os.chmod(folder, 0o777)
        for folder in ("train.zarr", "train.zarr.receipts"):
            subprocess.run(["chmod", "-R", "a+rwX", world.folder / folder], check=True)
        os.setgid(NOBODY)
        os.setuid(NOBODY + 1000 if os.environ.get("HOME") is None else NOBODY)


def mount(disk: Path, size: int, *, flags: int = 0) -> None:
    """Mount a small disk in a namespace of this process alone.

    Raises:
        OSError: where that is forbidden.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    steps = [
        lambda: libc.unshare(NEW_NAMESPACE),
        lambda: libc.mount(b"none", b"/", None, PRIVATE, None),
        lambda: libc.mount(b"none", os.fsencode(disk), b"tmpfs", 0, f"size={size},mode=777".encode()),
    ]
    for step in steps if not flags else steps[:0]:
        if step() != 0:
            raise OSError(ctypes.get_errno(), "mount")
    if flags and libc.mount(b"none", os.fsencode(disk), None, flags, None) != 0:
        raise OSError(ctypes.get_errno(), "remount")


def may_mount() -> bool:
    """Whether this user may."""
    process = os.fork()
    if not process:
        try:
            mount(Path("/tmp"), 4096)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1] == 0


def _full_disks(world: World) -> Named:
    """A disk of some size, too small at another moment each time; a limit on the size of files where it is forbidden."""
    mounts = may_mount()
    kilo = 1024
    sizes: dict[str, tuple[int, ...]] = {
        "extract": (4, 16, 64, 256, 600, 1200, 2000, 2400),
        "train": (4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 256),
        "stage": (4, 64, 600, 1600, 2400),
        "sweep": (4, 32, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896),
        "eval": (0,),
        "home": (0,),
    }

    def full(verb: str, size: int) -> Callable[[], list[Step]]:
        def run() -> list[Step]:
            disk = _ready(world)
            command, right = _verbs(world)["extract" if verb == "home" else verb]
            holds = subprocess.run(["du", "-sk", disk / "run"], capture_output=True, check=True).stdout.split()[0]
            run_size = sum(-(-f.stat().st_size // 4096) * 4096 for f in world.run.rglob("*") if f.is_file()) + 4096
            environment = {"LOSA_CACHE_HOME": str(disk / "home")} if verb == "home" else {}
            if verb == "home":
                command = (*command[:-1], world.folder / "tried.zarr")

            def before() -> None:
                if not mounts:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (max(1, size) * kilo, resource.RLIM_INFINITY))
                    return
                keeps = world.folder / "run"
                mount(disk, (run_size if verb == "eval" else max(4, size) * kilo))
                if verb == "eval":
                    subprocess.run(["cp", "-r", keeps, disk / "run"], check=False)
                if verb in ("eval", "home"):
                    with open(disk / "ballast", "wb", buffering=0) as file:
                        try:
                            while True:
                                file.write(bytes(4096))
                        except OSError:
                            pass

            assert holds
            refuses = verb not in ("eval", "home")
            if verb == "home":
                right = lambda done: None  # noqa: E731
            return [
                tried(
                    world,
                    *command,
                    what=f"{size} kB",
                    right=_unless_gone(right, disk, mounts),
                    may_refuse=refuses,
                    before=before,
                    environment=environment,
                )
            ]

        return run

    for verb, kilobytes in sizes.items():
        for size in kilobytes:
            yield f"{verb}, {size} kB", full(verb, size)

    def kept(verb: str, size: int) -> Callable[[], list[Step]]:
        """After the refusal, with room again, it goes on to the same end: by a limit on the size of files."""

        def run() -> list[Step]:
            disk = _ready(world)
            command, right = _verbs(world)[verb]
            before = limit(resource.RLIMIT_FSIZE, size * kilo)
            steps = [tried(world, *command, what=f"files of at most {size} kB", right=right, before=before)]
            out = disk / "tried"
            again = {
                "train": ("train", "--resume", out) if (out / "config.json").exists() else command,
                "sweep": ("sweep", "--resume", out) if (out / "sweep.json").exists() else command,
            }.get(verb, command)
            if again == command and verb in ("train", "sweep"):
                remove(out)
            if verb == "stage":
                remove(world.folder / "tried")
            return [*steps, tried(world, *again, what="with room again", right=right, may_refuse=False)]

        return run

    for verb, kilobytes in {
        "extract": (1, 3, 100, 300),
        "train": (1, 10, 40, 80),
        "sweep": (1, 20, 60, 100, 120),
        "stage": (1, 100),
        "eval": (0,),
    }.items():
        for size in kilobytes:
            yield f"{verb}, files of {size} kB, then room", kept(verb, size)


def _unless_gone(right: Callable[[Done], str | None], disk: Path, mounts: bool) -> Callable[[Done], str | None]:
    """What lay on a disk of its own is gone with its namespace: then the exit code is all there is to judge."""

    def judged(done: Done) -> str | None:
        if mounts and not any(path.name != "run" for path in disk.iterdir()) and not done.out.lstrip().startswith("{"):
            return None
        return right(done)

    return judged


def _read_only(world: World) -> Named:
    mounts = may_mount()

    def run(verb: str) -> list[Step]:
        disk = _ready(world)
        command, right = _verbs(world)[verb]

        def before() -> None:
            if mounts:
                keeps = world.folder / "run"
                mount(disk, 4_000_000)
                subprocess.run(["cp", "-r", keeps, disk / "run"], check=True)
                mount(disk, 0, flags=REMOUNT | READ_ONLY)
            else:
                os.chmod(disk, 0o555)
                os.chmod(disk / "run", 0o555)

        prints = verb == "eval"  # and says that it cannot be stored
        return [
            tried(
                world, *command, what="read-only", right=right if prints else None, may_refuse=not prints, before=before
            )
        ]

    for verb in ("extract", "train", "stage", "sweep", "eval"):
        yield f"read-only: {verb}", partial(run, verb)

    def read_only_cache(reader: str) -> list[Step]:
        """Reading needs no right to write."""
        _ready(world)

        def before() -> None:
            _become_nobody(world)

        for folder in (world.cache("train"), world.cache("train").with_name("train.zarr.receipts")):
            for path in [folder, *folder.rglob("*")]:
                os.chmod(path, 0o555 if path.is_dir() else 0o444)
        os.chmod(world.folder, 0o777)
        os.chmod(world.folder / "disk", 0o777)
        os.chmod(world.folder / "disk" / "run", 0o777)
        environment = {"LOSA_CACHE_HOME": str(world.folder / "disk" / "home")}
        trained = world.trained("train")
        out = world.folder / "disk" / "tried"
        commands: dict[str, tuple[tuple[str | Path, ...], Callable[[Done], str | None]]] = {
            "train": (world.train_command(world.cache("train"), out), lambda done: run_difference(out, trained)),
            "verify": (("verify", world.cache("train")), lambda done: None),
            "inspect": (("inspect", world.cache("train")), lambda done: None),
            "extract": (world.extract("train"), lambda done: None),
        }

        def drop() -> None:
            if os.getuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)

        command, right = commands[reader]
        may_refuse = reader == "extract"
        return [
            tried(
                world,
                *command,
                what="a cache that may not be written",
                right=right,
                may_refuse=may_refuse,
                before=drop,
                environment=environment,
            )
        ]

    for reader in ("train", "verify", "inspect", "extract"):
        yield f"a cache that may not be written: {reader}", partial(read_only_cache, reader)

    def unreadable(part: str, verb: str) -> list[Step]:
        _ready(world)
        paths = {
            "cache": world.cache("train"),
            "zarr.json": world.cache("train") / "zarr.json",
            "a shard": world.cache("train") / "activations" / "block" / "c.2.0.0.0",
            "receipts": world.cache("train").with_name("train.zarr.receipts"),
            "files.json": world.cache("train").with_name("train.zarr.receipts") / "core" / "files.json",
            "pictures": world.folder / "pictures",
            "a class": world.folder / "pictures" / "train" / "b",
        }
        remove(world.folder / "pictures")
        subprocess.run(["cp", "-r", world.data, world.folder / "pictures"], check=True)
        subprocess.run(["chmod", "-R", "a+rwX", world.folder], check=True)
        os.chmod(paths[part], 0)

        def drop() -> None:
            if os.getuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)

        trained = world.trained("train")
        out = world.folder / "disk" / "tried"
        commands: dict[str, tuple[str | Path, ...]] = {
            "train": world.train_command(world.cache("train"), out),
            "verify": ("verify", world.cache("train")),
            "inspect": ("inspect", world.cache("train")),
            "again": world.extract("train"),
            "extract": (
                *EXTRACT,
                "--data-dir",
                world.folder / "pictures",
                "--out",
                world.folder / "disk" / "tried.zarr",
            ),
        }

        def right(done: Done) -> str | None:
            return (
                run_difference(out, trained)
                if verb == "train"
                else "takes it as nothing"
                if verb != "inspect"
                else None
            )

        done = world.runner.run(
            *commands[verb],
            before=drop,
            cwd=world.empty(),
            environment={"LOSA_CACHE_HOME": str(world.folder / "disk" / "home")},
        )
        os.chmod(paths[part], 0o755)
        command = f"{shown(commands[verb])}  # as somebody who may not read {part}"
        return [judge(command, done, lambda: right(done), damage=verb == "verify")]

    for part in ("cache", "zarr.json", "a shard", "receipts", "files.json"):
        for verb in ("train", "verify", "inspect", "again"):
            yield f"unreadable {part}: {verb}", partial(unreadable, part, verb)
    for part in ("pictures", "a class"):
        yield f"unreadable {part}: extract", partial(unreadable, part, "extract")


def _limits(world: World) -> Named:
    """Few descriptors, little memory: right, or a sentence."""

    def few(verb: str, count: int, may_refuse: bool) -> list[Step]:
        _ready(world)
        command, right = _verbs(world)[verb]
        before = limit(resource.RLIMIT_NOFILE, count)
        return [tried(world, *command, what=f"ulimit -n {count}", right=right, may_refuse=may_refuse, before=before)]

    for verb in ("extract", "train", "stage", "sweep", "eval"):
        for count, may_refuse in ((64, False), (32, True), (16, True)):
            yield f"{count} descriptors: {verb}", partial(few, verb, count, may_refuse)

    def many_shards(command_of: str) -> list[Step]:
        """A cache of 90 shards under ``ulimit -n 64``."""
        _ready(world)
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
        _ready(world)
        command, right = _verbs(world)[verb]

        def before() -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            amount = pages * resource.getpagesize() + more * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (amount, amount))

        return [tried(world, *command, what=f"{more} MiB more than it has", right=right, before=before)]

    for verb in ("extract", "train", "stage", "sweep", "eval"):
        for more in (1, 8, 40, 100, 300):
            yield f"{more} MiB more: {verb}", partial(little, verb, more)

    def stack(verb: str) -> list[Step]:
        _ready(world)
        command, right = _verbs(world)[verb]
        before = limit(resource.RLIMIT_NPROC, 1)

        def few_threads() -> None:
            if os.getuid() == 0:
                _become_nobody(world)
            before()

        return [
            tried(
                world,
                *command,
                what="no more threads",
                right=right,
                before=few_threads,
                environment={"LOSA_CACHE_HOME": str(world.folder / "disk" / "home")},
            )
        ]

    for verb in ("extract", "train"):
        yield f"no more threads: {verb}", partial(stack, verb)


def _no_locks(world: World) -> Named:
    """File systems without flock."""

    def run(verb: str, number: int) -> list[Step]:
        _ready(world)
        command, right = _verbs(world)[verb]

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
        _ready(world)
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
        _ready(world)
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
        _ready(world)
        store = world.folder / "disk" / f"{name}.zarr"

        def before() -> None:
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(encoding="ascii", errors="strict" if stream is sys.stdout else "backslashreplace")  # type: ignore[union-attr]

        command = (*EXTRACT, "--data-dir", world.data, "--out", store)
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
        _ready(world)
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
        _ready(world)
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
        _ready(world)
        cwd = world.empty()
        command: tuple[str | Path, ...] = (
            world.train_command(store, "~/tried")
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

    out, store, link = world.folder / "tried", world.folder / "tried.zarr", world.folder / "tried-link.zarr"
    half, sweep = world.stopped, world.folder / "sweep"
    whole, swept, wanted = world.whole, world.swept, world.known_tree("train")
    extract = (*EXTRACT, "--data-dir", world.data, "--out", store)
    by_link = (*EXTRACT, "--data-dir", world.data, "--out", link)

    def none() -> None:
        _clear(world)
        remove(link)
        remove(out)

    def linked() -> None:
        none()
        link.symlink_to(store)

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


def _secrets(world: World) -> Named:
    """A password in ``--storage`` is neither written nor shown."""

    def run(address: str) -> list[Step]:
        _ready(world)
        out = world.folder / "disk" / "tried"
        command = (*world.sweep_command(out), "--storage", address)
        done = world.runner.run(*command)
        step = judge(shown(command), done, lambda: None)
        written = (
            [p.name for p in out.rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()] if out.exists() else []
        )
        if "s3cret" in done.out + done.err or written:
            return [Step(step.command, OTHER, f"shows or writes the password (in {written}): {done.err[-200:]}")]
        return [step]

    for address in (
        "postgresql://user:s3cret@127.0.0.1:9/x",
        "mysql://user:s3cret@127.0.0.1:9/x",
        "postgresql://127.0.0.1:9/x?user=a&password=s3cret",
        "nonsense://user:s3cret@host/x",
        "sqlite:////nowhere/s3cret-is-a-name-here.db?password=s3cret",
        "user:s3cret@host",
    ):
        yield address.partition(":")[0] + f" {len(address)}", partial(run, address)
