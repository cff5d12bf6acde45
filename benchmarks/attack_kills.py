"""Kills: SIGKILL at steps on the file system and in the study's database, and at random moments; signals that ask."""

import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from attack_runner import OTHER, RIGHT, TRACEBACK, Case, Done, Step, apart, judge, remove, shown, tree
from attack_world import World, run_difference, seeded, sweep_difference

EVENTS = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "shutil.copyfile",
    "shutil.rmtree",
)
ASKING = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGUSR1: 138}


class Steps:
    """Counts a child's steps within a folder, and sends it a signal before one of them.

    A step is what another process could see: a file opened to be written, renamed, removed, a folder made, an fsync;
    of a database every commit, before and after.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self._count = mmap.mmap(-1, 8)

    @property
    def count(self) -> int:
        """Steps of the last child."""
        return int.from_bytes(self._count[:8], "little")

    def watching(self, at: int | None = None, send: int = signal.SIGKILL) -> Callable[[], None]:
        """Give a function for a child to call: from then on it counts, and is sent a signal before step ``at``."""

        def install() -> None:
            self._count[:8] = bytes(8)

            def step() -> None:
                count = self.count + 1
                self._count[:8] = count.to_bytes(8, "little")
                if count == at:
                    os.kill(os.getpid(), send)

            def heard(event: str, arguments: tuple[Any, ...]) -> None:
                if event == "open":
                    path, _, flags = arguments
                    wanted = isinstance(path, str | bytes | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR)
                else:
                    wanted, path = event in EVENTS, arguments[0] if arguments else ""
                if wanted and isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self.folder):
                    step()

            sys.addaudithook(heard)
            _before(os, "fsync", step)
            from sqlalchemy.engine.default import DefaultDialect

            _before(DefaultDialect, "do_commit", step, after=True)

        return install


def _before(owner: Any, name: str, step: Callable[[], None], *, after: bool = False) -> None:
    plain = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        step()
        found = plain(*arguments, **named)
        if after:
            step()
        return found

    setattr(owner, name, wrapped)


@dataclass
class Victim:
    """A command to be killed.

    Attributes:
        name: of its row.
        prepare: puts the state before it in place.
        command: to kill.
        again: gives the command that goes on.
        difference: how the end differs from the undisturbed one.
    """

    name: str
    world: World
    prepare: Callable[[], None]
    command: tuple[str | Path, ...]
    again: Callable[[], tuple[str | Path, ...]]
    difference: Callable[[], str | None]

    @cached_property
    def measured(self) -> tuple[int, float]:
        """Steps and seconds of the undisturbed command."""
        steps = Steps(self.world.folder)
        self.prepare()
        done = self.world.must(*self.command, before=steps.watching())
        if (found := self.difference()) is not None:
            raise RuntimeError(f"{self.name} differs even undisturbed: {found}")
        return steps.count, done.seconds

    def at_step(self, at: int, send: int = signal.SIGKILL) -> list[Step]:
        """Kill it at a step, then go on."""
        self.prepare()
        done = self.world.runner.run(*self.command, before=Steps(self.world.folder).watching(at, send))
        return self.ended(done, send, f"{shown(self.command)}  # {signal.Signals(send).name} at step {at}")

    def at_moment(self, share: float) -> list[Step]:
        """Kill it after a share of its time, then go on."""
        self.prepare()

        def kill(process: int) -> None:
            time.sleep(share * self.measured[1])
            os.kill(process, signal.SIGKILL)

        done = self.world.runner.run(*self.command, during=kill)
        what = f"{shown(self.command)}  # SIGKILL after {share * self.measured[1]:.3f} s"
        return self.ended(done, signal.SIGKILL, what)

    def ended(self, done: Done, send: int, what: str) -> list[Step]:
        """Judge how it ended, and that it goes on to the same end."""
        steps = [self._first(done, send, what)]
        again = self.again()
        following = self.world.runner.run(*again)
        steps.append(judge(shown(again), following, self.difference, may_refuse=False))
        return steps

    def _first(self, done: Done, send: int, what: str) -> Step:
        if send == signal.SIGKILL:
            fine = done.code in (0, -signal.SIGKILL)
            return Step(what, RIGHT if fine else TRACEBACK, "" if fine else f"exit code {done.code}: {done.err[-300:]}")
        if done.code == 0:  # it came when all was done
            return Step(what, RIGHT)
        if done.code == -send:
            return Step(
                what, OTHER, f"ends by signal {send} without a sentence, exit code {128 + send} by the shell alone"
            )
        if done.wreck is not None:
            return Step(what, TRACEBACK, done.wreck)
        if done.code != ASKING[signal.Signals(send)] or "stopped" not in done.err:
            return Step(what, OTHER, f"exit code {done.code}: {done.err[-300:]}")
        return Step(what, RIGHT)


def _extract(world: World, name: str = "train") -> Victim:
    path = world.folder / f"{name}.zarr"
    command = world.extract(name)

    def prepare() -> None:
        for end in ("", ".receipts", ".partial"):
            remove(path.with_name(path.name + end))

    def difference() -> str | None:
        return apart(tree(path, path.with_name(path.name + ".receipts")), world.known_tree(name))

    world.cache(name)
    return Victim(
        "extract" if name == "train" else "extract --bits 1", world, prepare, command, lambda: command, difference
    )


def _train(world: World) -> Victim:
    out, wanted = world.folder / "killed", world.whole
    command = world.file_options(("train", "--cache", world.cache("train"), "--out", out), 4)

    def prepare() -> None:
        remove(out)
        world.fresh("train")
        world.ids()

    def again() -> tuple[str | Path, ...]:
        if not (out / "config.json").exists():  # nothing was begun: a user clears the path, and begins
            remove(out)
            return command
        return ("train", "--resume", out, "--device", "cpu")

    return Victim("train", world, prepare, command, again, lambda: run_difference(out, wanted))


def _stage(world: World) -> Victim:
    out, near, wanted = world.folder / "killed", world.folder / "near", world.trained("train")
    command = world.train_command(world.cache("train"), out, "--stage", near)
    source = world.known_tree("train")

    def prepare() -> None:
        remove(out)
        remove(near)
        world.fresh("train")

    def again() -> tuple[str | Path, ...]:
        remove(out)
        return command

    def difference() -> str | None:
        copies = {path.name: path for path in near.glob("*.zarr*")}
        name = next(name for name in copies if name.endswith(".zarr"))
        found = {key.replace(name, "train.zarr", 1): value for key, value in tree(*copies.values()).items()}
        return run_difference(out, wanted) or apart(found, source)

    return Victim("train --stage", world, prepare, command, again, difference)


def _repair(world: World) -> Victim:
    path = world.cache("train")
    command = ("verify", path, "--repair", "--device", "cpu")

    def prepare() -> None:
        world.fresh("train")
        shards = sorted((path / "activations" / "block").glob("c.*"))
        for shard, place in ((shards[1], 1000), (shards[4], -40)):  # values of one, the index of another
            raw = bytearray(shard.read_bytes())
            raw[place] ^= 1
            shard.write_bytes(raw)
        (path / "labels" / "c" / "0").unlink()
        receipt = path.with_name(path.name + ".receipts") / "000002.json"
        receipt.write_bytes(receipt.read_bytes()[:-1])

    def difference() -> str | None:
        return apart(tree(path, path.with_name(path.name + ".receipts")), world.known_tree("train"))

    return Victim("verify --repair", world, prepare, command, lambda: command, difference)


def _eval(world: World) -> Victim:
    run, wanted = world.finished, world.figures
    command = world.evaluation()
    others = {name: value for name, value in tree(*(world.kept / "run").iterdir()).items() if "eval.json" not in name}

    def prepare() -> None:
        world.fresh("run", "test", "train")

    def difference() -> str | None:
        import json

        found = json.loads((run / "eval.json").read_text())
        wrong = {key for key in wanted if found.get(key) != wanted[key]}
        now = {name: value for name, value in tree(run).items() if "eval.json" not in name}
        return f"eval.json says otherwise in {sorted(wrong)}" if wrong else apart(now, others)

    return Victim("eval", world, prepare, command, lambda: command, difference)


def _sweep(world: World) -> Victim:
    out = world.folder / "sweep"
    command, wanted = world.sweep_command(out), world.swept

    def prepare() -> None:
        remove(out)
        remove(out.with_name("sweep.partial"))
        world.fresh("train", "test")

    def again() -> tuple[str | Path, ...]:
        return ("sweep", "--resume", out, "--device", "cpu") if (out / "sweep.json").exists() else command

    return Victim("sweep", world, prepare, command, again, lambda: sweep_difference(out, wanted))


VICTIMS: dict[str, Callable[[World], Victim]] = {
    "extract": _extract,
    "extract --bits 1": partial(_extract, name="predict"),
    "train": _train,
    "train --stage": _stage,
    "verify --repair": _repair,
    "eval": _eval,
    "sweep": _sweep,
}


def cases(world: World) -> Iterator[Case]:
    """All kills: every step of a sweep; of the others steps and moments, enumerated or drawn; signals that ask."""
    for name, make in VICTIMS.items():
        if not world.wants(f"kills/{name}/"):
            continue
        victim = make(world)
        steps, _ = victim.measured
        some = seeded(f"kills/{victim.name}")
        every = range(1, steps + 1)
        chosen = list(every) if victim.name == "sweep" else sorted(some.sample(every, min(len(every), 24)))
        moments = [some.uniform(0.02, 1) for _ in range(10)]
        group = f"{victim.name}: SIGKILL"
        for at in chosen:
            yield Case("kills", group, f"kills/{victim.name}/step {at}", partial(victim.at_step, at))
        for number, share in enumerate(moments):
            yield Case("kills", group, f"kills/{victim.name}/moment {number}", partial(victim.at_moment, share))
        for send in ASKING:
            for at in some.sample(every, min(len(every), 5)):
                case = f"kills/{victim.name}/{send.name} at step {at}"
                group = f"{victim.name}: SIGTERM, SIGHUP, SIGINT, SIGUSR1"
                yield Case("kills", group, case, partial(victim.at_step, at, send))
