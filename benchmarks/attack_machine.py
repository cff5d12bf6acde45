"""Homes that cannot be written, disks that are full or read-only, files that may not be read."""

import ctypes
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attack_inputs import clear, tried
from attack_runner import Case, Done, Step, apart, judge, limit, remove, shown, tree
from attack_world import EXTRACT, World, run_difference, sweep_difference

CAPABILITY_VERSION = 0x20080522
NEW_NAMESPACE = 0x00020000  # CLONE_NEWNS
PRIVATE, READ_ONLY, REMOUNT = 0x44000, 1, 32  # MS_PRIVATE | MS_REC, MS_RDONLY, MS_REMOUNT


def cases(world: World) -> Iterator[Case]:
    """All surroundings."""
    for group, made in (
        ("home", _homes(world)),
        ("full disk", _full_disks(world)),
        ("read-only disk and no permission", _read_only(world)),
    ):
        for name, run in made:
            yield Case("inputs", group, f"inputs/machine/{group}: {name}", run)


Named = Iterator[tuple[str, Callable[[], list[Step]]]]


def verbs(world: World) -> dict[str, tuple[tuple[str | Path, ...], Callable[[Done], str | None]]]:
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


def ready(world: World) -> Path:
    """An empty folder ``disk`` that holds a finished run."""
    clear(world)
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
            ready(world)
            remove(odd)
            place = make()
            environment: dict[str, str | None] = {"LOSA_CACHE_HOME": None if place is None else str(place)}
            if place is None:
                environment["HOME"] = None
            before = _unknown_user if place is None else drop_powers
            command, right = verbs(world)["extract"]
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
            train = verbs(world)["train"]
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

    def read_only(name: str = ".") -> Path:
        (odd / name).mkdir(parents=True)
        os.chmod(odd / name, 0o555)
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
        "read-only": read_only,
        "its folder of notes is read-only": partial(read_only, "known"),
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


def drop_powers() -> None:
    """Let the bits of permission hold for root, too: give up every capability."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
        if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
            raise OSError(ctypes.get_errno(), "capset")


def _unknown_user() -> None:
    """Take the user's entry in the list of users away."""
    import pwd

    def unknown(number: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    pwd.getpwuid = unknown


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
    """A disk too small at another moment each time; where mounting is forbidden, a limit on the size of files."""
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
            disk = ready(world)
            command, right = verbs(world)["extract" if verb == "home" else verb]
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
            refuses = verb != "home"
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
            disk = ready(world)
            command, right = verbs(world)[verb]
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
        disk = ready(world)
        command, right = verbs(world)[verb]

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
        ready(world)

        for folder in (world.cache("train"), world.cache("train").with_name("train.zarr.receipts")):
            for path in [folder, *folder.rglob("*")]:
                os.chmod(path, 0o555 if path.is_dir() else 0o444)
        environment = {"LOSA_CACHE_HOME": str(world.folder / "disk" / "home")}
        trained = world.trained("train")
        out = world.folder / "disk" / "tried"
        commands: dict[str, tuple[tuple[str | Path, ...], Callable[[Done], str | None]]] = {
            "train": (world.train_command(world.cache("train"), out), lambda done: run_difference(out, trained)),
            "verify": (("verify", world.cache("train")), lambda done: None),
            "inspect": (("inspect", world.cache("train")), lambda done: None),
            "extract": (world.extract("train"), lambda done: None),
        }

        command, right = commands[reader]
        may_refuse = reader == "extract"
        steps = [
            tried(
                world,
                *command,
                what="a cache that may not be written",
                right=right,
                may_refuse=may_refuse,
                before=drop_powers,
                environment=environment,
            )
        ]
        subprocess.run(["chmod", "-R", "u+rwX", world.cache("train"), f"{world.cache('train')}.receipts"], check=True)
        return steps

    for reader in ("train", "verify", "inspect", "extract"):
        yield f"a cache that may not be written: {reader}", partial(read_only_cache, reader)

    def unreadable(part: str, verb: str) -> list[Step]:
        ready(world)
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
        os.chmod(paths[part], 0)

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
            if verb == "train":
                return run_difference(out, trained)
            if verb == "again":  # it may write anew what it cannot read
                store = world.cache("train")
                return apart(tree(store, store.with_name(store.name + ".receipts")), world.known_tree("train"))
            return None if verb == "inspect" else "takes it as nothing"

        done = world.runner.run(
            *commands[verb],
            before=drop_powers,
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
