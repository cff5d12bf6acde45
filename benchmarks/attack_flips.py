"""Flips: one random bit in every kind of file, then the verbs that read it."""

import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from attack_kills import Steps
from attack_runner import OTHER, SILENT, Case, Step, apart, judge, remove, shown, tree
from attack_world import World, run_difference, seeded, sweep_difference

FLIPS = 20  # a file kind
CACHED = ("train", "int8", "predict")
READERS = ("train", "eval", "inspect", "extract")


def flip(file: Path, some: random.Random) -> str:
    """Flip one bit; say which."""
    raw = bytearray(file.read_bytes())
    bit = some.randrange(8 * len(raw))
    raw[bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)
    return f"bit {bit} of {file}"


def kinds(store: Path) -> dict[str, list[Path]]:
    """Sort a cache's files, and those of its receipts, by what they are; what is new has a kind of its own."""
    receipts = store.with_name(store.name + ".receipts")
    found: dict[str, list[Path]] = {}
    for folder, beside in ((store, ""), (receipts, "receipts: ")):
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.stat().st_size and file.name != "lock":
                found.setdefault(beside + _kind(str(file.relative_to(folder))), []).append(file)
    return found


def _kind(name: str) -> str:
    if name.startswith("sources/"):
        return "sources"
    if re.fullmatch(r"\d{6}\..*", name):
        return "<shard>" + name[6:]
    copied, name = ("copy of ", name.removeprefix("core/")) if name.startswith("core/") else ("", name)
    if name.startswith("c.") or "/c." in name:
        return copied + "shard"
    for folder in ("labels", "sample_ids", "scales", "tail"):
        if re.match(rf"{folder}/(.*/)?c/", name):
            return copied + folder
    if name == "zarr.json" or not name.endswith("/zarr.json"):
        return copied + name
    return copied + (
        "zarr.json of a group"
        if name.split("/")[:-1] in (["activations"], ["scales"], ["tail"])
        else "zarr.json of an array"
    )


def cases(world: World) -> Iterator[Case]:
    """Flip bits in files of caches, notes of caches, runs and sweeps."""
    yield from _of_caches(world)
    for name, make in (("note", _note), ("run", _finished), ("half", _half), ("sweep", _half_sweep)):
        if world.wants(f"flips/{name}/"):
            yield from make(world, FLIPS)


def _of_caches(world: World) -> Iterator[Case]:
    number = 0
    for cache in CACHED:
        if not world.wants(f"flips/cache/{cache}/"):
            continue
        store = world.cache(cache)
        world.undisturbed(cache)
        world.fresh(cache)
        for kind, files in kinds(store).items():
            if cache != "train" and kind not in ("shard", "scales", "receipts: copy of scales"):
                continue  # of the others all files but these are alike
            names = [file.relative_to(world.folder) for file in files]
            for _ in range(FLIPS):
                name = f"flips/cache/{cache}/{kind}/{number}"
                group = f"cache: {kind}"
                yield Case("flips", group, name, partial(_cache, world, cache, names, name, READERS[number % 4]))
                number += 1


def _cache(world: World, cache: str, files: list[Path], name: str, reader: str) -> list[Step]:
    some = seeded(name)
    world.fresh(cache)
    store = world.folder / f"{cache}.zarr"
    what = flip(world.folder / some.choice(files), some)
    if "/sources/" in str(what):  # no checksum of what is cached: what extract compares the pictures with
        return [read(world, cache, each, what) for each in ("extract", "train")]
    steps = [_verified(world, store, what), read(world, cache, reader, what)]
    if reader == "extract":  # it does not read every byte, so what it leaves must be refused by what does
        if steps[-1].outcome == SILENT:
            steps[-1:] = [read(world, cache, "train", f"{what}, after extract")]
        world.fresh(cache)
        flip(world.folder / (some := seeded(name)).choice(files), some)
    return [*steps, repaired(world, cache, what)]


def _verified(world: World, store: Path, what: str) -> Step:
    """Find it."""
    command = ("verify", store)
    missed = "verify does not find it"
    return judge(f"{shown(command)}  # {what}", world.runner.run(*command), lambda: missed, damage=True)


def repaired(world: World, cache: str, what: str, *, may_refuse: bool = False) -> Step:
    """Mend it."""
    store = world.folder / f"{cache}.zarr"
    command = ("verify", store, "--repair", "--device", "cpu")
    done = world.runner.run(*command)
    if done.code == 1 and done.wreck is None:
        return Step(f"{shown(command)}  # {what}", OTHER, "verify --repair does not mend it")
    difference = partial(same_cache, world, cache)
    return judge(f"{shown(command)}  # {what}", done, difference, may_refuse=may_refuse)


def same_cache(world: World, cache: str) -> str | None:
    """Say how a cache differs from the pristine one."""
    store = world.folder / f"{cache}.zarr"
    return apart(tree(store, store.with_name(store.name + ".receipts")), world.known_tree(cache))


def read(world: World, cache: str, reader: str, what: str, *, at: str | Path | None = None) -> Step:
    """Use a cache, here or at another place, by a verb; what it gives must be as undisturbed, or nothing."""
    store = at or world.folder / f"{cache}.zarr"
    out = world.folder / "read"
    remove(out)
    command: tuple[str | Path, ...]
    if reader == "train":
        wanted = world.trained(cache)
        command = world.train_command(store, out)
        difference: Callable[[], str | None] = partial(run_difference, out, wanted)
    elif reader == "stage":
        wanted = world.trained(cache)
        remove(world.folder / "near")
        command = world.train_command(store, out, "--stage", world.folder / "near")
        difference = partial(run_difference, out, wanted)
    elif reader == "eval":
        figures = world.evaluated(cache)
        command = world.evaluation(store)
        done = world.runner.run(*command)
        return judge(f"{shown(command)}  # {what}", done, lambda: apart(done.json | {"on": ""}, figures | {"on": ""}))
    elif reader == "inspect":
        shown_before = world.inspected(cache) | {"path": ""}
        command = ("inspect", store, "--full", "--json")
        done = world.runner.run(*command)
        return judge(f"{shown(command)}  # {what}", done, lambda: apart(done.json | {"path": ""}, shown_before))
    else:
        command = world.extract(cache)
        difference = partial(same_cache, world, cache)
    return judge(f"{shown(command)}  # {what}", world.runner.run(*command), difference)


def _note(world: World, count: int) -> Iterator[Case]:
    """A damaged note is skipped and named; the rest works."""
    for name in ("int8", "train"):
        world.cache(name)
    home = world.runner.home / "known"
    before = {note.name: note.read_bytes() for note in home.iterdir()}  # of other cases' caches, too
    notes = {name: raw for name, raw in before.items() if b"/int8.zarr" in raw or b"/train.zarr" in raw}
    first = next(name for name, raw in notes.items() if b"/int8.zarr" in raw)

    def known(wanted: dict[str, bytes]) -> None:
        remove(home)
        home.mkdir()
        for note, raw in wanted.items():
            (home / note).write_bytes(raw)

    def tried(name: str) -> list[Step]:
        world.fresh("int8", "train")
        known(notes)
        what = flip(home / first, seeded(name))
        listing = ("list", "--json")
        done = world.runner.run(*listing)
        rest = {str(world.folder / f"{kept}.zarr") for kept in ("train",)}
        steps = [
            judge(
                f"{shown(listing)}  # {what}",
                done,
                lambda: (
                    None if rest <= {str(entry["path"]) for entry in done.json} else "the other caches are not listed"
                ),
                may_refuse=False,
            )
        ]
        out = world.folder / "read"
        remove(out)
        command = ("train", "--out", out, *world.train_command("", out)[5:])
        done = world.runner.run(*command)
        steps.append(judge(f"{shown(command)}  # {what}", done, lambda: _some_run(out, world), may_refuse=False))
        known(before)
        return steps

    for number in range(count):
        name = f"flips/note/{number}"
        yield Case("flips", "home: note of a cache", name, partial(tried, name))


def _some_run(out: Path, world: World) -> str | None:
    """Whichever known cache it took, it must have trained as that cache does."""
    found = [run_difference(out, world.trained(cache)) for cache in ("train", "int8")]
    return None if None in found else found[0]


def _finished(world: World, count: int) -> Iterator[Case]:
    files = _files(world.finished, "events.out", "checkpoint.pt")
    figures = world.figures
    world.must(*world.evaluation())
    (world.kept / "run" / "run" / "eval.json").write_bytes((world.finished / "eval.json").read_bytes())

    def tried(file: str, name: str) -> list[Step]:
        world.fresh("run", "test")
        what = flip(world.finished / file, seeded(name))
        command = world.evaluation()
        done = world.runner.run(*command)
        return [judge(f"{shown(command)}  # {what}", done, lambda: apart(done.json, figures))]

    for file in [*files, "eval.json"]:
        for number in range(count):
            name = f"flips/run/{file}/{number}"
            yield Case("flips", f"finished run: {file}", name, partial(tried, file, name))


def _half(world: World, count: int) -> Iterator[Case]:
    files = _files(world.stopped, "events.out")
    wanted = world.whole

    def tried(file: str, name: str) -> list[Step]:
        world.fresh("half", "train")
        what = flip(world.half / file, seeded(name))
        command = ("train", "--resume", world.half, "--device", "cpu")
        done = world.runner.run(*command)
        return [judge(f"{shown(command)}  # {what}", done, lambda: run_difference(world.half, wanted))]

    for file in files:
        for number in range(count):
            name = f"flips/half/{file}/{number}"
            yield Case("flips", f"run to resume: {file}", name, partial(tried, file, name))


def _half_sweep(world: World, count: int) -> Iterator[Case]:
    """A sweep killed between the epochs of its second pair of trials."""
    wanted, folder = world.swept, world.folder / "sweep"
    at = _where_a_sweep_is_half_done(world, folder)
    files = [
        str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size
    ]
    files = [file for file in files if not re.search(r"events\.out|lock|\.partial|-journal|-wal|-shm", file)]
    sorts: dict[str, list[str]] = {}
    for file in files:
        sorts.setdefault(re.sub(r"\d{4}", "<trial>", file), []).append(file)

    def tried(choice: list[str], name: str) -> list[Step]:
        world.fresh("half-sweep", "train", "test")
        some = seeded(name)
        what = flip(folder / some.choice(choice), some)
        command = ("sweep", "--resume", folder, "--device", "cpu")
        done = world.runner.run(*command)
        return [
            judge(f"{shown(command)}  # killed at step {at}, {what}", done, lambda: sweep_difference(folder, wanted))
        ]

    for sort, choice in sorts.items():
        for number in range(count):
            name = f"flips/sweep/{sort}/{number}"
            yield Case("flips", f"sweep to resume: {sort}", name, partial(tried, choice, name))


def _where_a_sweep_is_half_done(world: World, folder: Path) -> int:
    steps = Steps(world.folder)
    world.fresh("train", "test")
    remove(folder)
    world.must(*world.sweep_command(folder), before=steps.watching())
    for share in range(40, 90):
        at = steps.count * share // 100
        remove(folder)
        world.runner.run(*world.sweep_command(folder), before=Steps(world.folder).watching(at))
        finished = list(folder.glob("trials/*/adapter/adapter.safetensors"))
        if (
            len(finished) == 2
            and list(folder.glob("cohorts/*.pt"))
            and len(list(folder.glob("trials/*/metrics.jsonl"))) == 4
        ):
            world.keep("half-sweep", folder)
            return at
    raise RuntimeError("no step leaves a sweep half done")


def _files(run: Path, *but: str) -> list[str]:
    return [
        str(path.relative_to(run))
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.stat().st_size and not path.name.startswith(but)
    ]
