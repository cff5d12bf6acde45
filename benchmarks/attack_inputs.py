"""Bad inputs, one after the other for every option of every verb, and for every kind of file that an option names."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attack_runner import OTHER, SENTENCE, TRACEBACK, Case, Done, Step, judge, remove, shown
from attack_world import EXTRACT, TRAIN, World, result, run_difference

HUGE = "9" * 30
RED = "\x1b[31mred\x1b[0m"
NOT_UTF8 = os.fsdecode(b"\xff\xfe")
VALUES = {
    "integer": ("x", "", "1.5", "nan", "-1", "0", HUGE),
    "float": ("x", "", "nan", "inf", "-inf", "-1", "1e999"),
    "text": ("", "bogus", RED, NOT_UTF8, "a" * 5000, "one\ntwo", "-1", "nan"),
    "path": ("", "missing", RED, NOT_UTF8, "a" * 5000, "one\ntwo", "~nobody-of-this-name/x"),
}
ACCEPTED = {
    **{("out", value): "any name will do" for kind in ("text", "path") for value in VALUES[kind] if value},
    **{("stage", value): "any name will do" for value in VALUES["path"]},
    **{("seed", value): "any number will do" for value in ("-1", "0", HUGE)},
    ("recompute", "0"): "the default",
    ("recompute", HUGE): "all",
    ("clip_grad", "inf"): "does not clip",
    ("clip_grad", "1e999"): "does not clip",
    ("workers", HUGE): "as many as there is work for",
    ("limit", HUGE): "all",
    ("batch_size", HUGE): "all in one",
    ("concurrent", HUGE): "all at once",
    ("max_device_memory", HUGE): "all of it",
    ("stride", "0"): "spread over the video",
}
"""Values that are odd, but mean something."""
ENDLESS = {("epochs", HUGE), ("trials", HUGE), ("seeds", HUGE)}
"""What would work, but never end, is not tried; of seeds and trials the bound is the sweep's."""
VIDEO_ONLY, ONLINE = ("clips", "frames", "stride", "inflation"), ("augment", "mixup", "cutmix", "reprob", "mixed")


def cases(world: World) -> Iterator[Case]:
    """All bad inputs."""
    import attack_files
    import attack_folders
    import attack_limits
    import attack_machine
    import attack_pictures
    import attack_weights

    makers: list[tuple[str, Callable[[World], Iterator[Case]]]] = [
        ("options", options),
        ("named", named_files),
        ("files", attack_files.cases),
        ("folders", attack_folders.cases),
        ("machine", attack_machine.cases),
        ("limits", attack_limits.cases),
        ("pictures", attack_pictures.cases),
        ("weights", attack_weights.cases),
    ]
    for name, maker in makers:
        if world.wants(f"inputs/{name}/"):
            yield from maker(world)


def tried(
    world: World,
    *command: str | Path,
    what: str = "",
    right: Callable[[Done], str | None] | None = None,
    may_refuse: bool = True,
    **how: Any,
) -> Step:
    """Try a command that must refuse or, where ``right`` tells what is wrong with its result, may be right."""
    how.setdefault("cwd", world.empty())
    done = world.runner.run(*command, **how)
    said = f"{shown(command)}{f'  # {what}' if what else ''}"
    accepted = f"is accepted: {done.out.strip()[-150:]}"
    return judge(said, done, lambda: accepted if right is None else right(done), may_refuse=may_refuse)


def options(world: World) -> Iterator[Case]:
    """Every option of every verb, with values that it cannot take."""
    import typer

    from losa_cache.cli import app

    bases = _bases(world)
    for verb, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for parameter in command.params:
            kind = _kind(parameter)
            if verb not in bases or kind is None or (verb, parameter.name) == ("plan", "on_error"):
                continue
            for value in VALUES[kind][:: 3 if verb == "plan" else 1]:  # it takes the options of extract
                if (parameter.name, value) in ENDLESS:
                    continue
                name = f"inputs/options/{verb} {parameter.opts[-1]} {_short(value)}"
                run = partial(_option, world, verb, bases[verb], parameter.name, parameter.opts[-1], value)
                yield Case("inputs", f"options of {verb}", name, run)
        unknown = ("--no-such-option", "--", "-x", "surplus")
        for value in unknown if verb in bases else ():
            run = partial(_plain, world, (*bases[verb], value))
            yield Case("inputs", f"options of {verb}", f"inputs/options/{verb} {value}", run)


def _short(value: str) -> str:
    text = value.encode("unicode_escape").decode() if value.isprintable() or value == RED else ascii(value)
    return f"'{text[:24]}'" if len(value) <= 24 else f"'{text[:6]}…' ({len(value)})"


def _bases(world: World) -> dict[str, tuple[str | Path, ...]]:
    """A command of each verb that works, and takes little time."""
    out = world.folder / "tried"
    extract = (*EXTRACT, "--data-dir", world.data, "--out", world.folder / "tried.zarr")
    cache = world.cache("train")
    world.undisturbed("train")
    small = ("--epochs", "1", "--batch-size", "8", "--device", "cpu")
    return {
        "extract": extract,
        "plan": ("plan", *EXTRACT[1:], "--data-dir", world.data),
        "train": ("train", "--cache", cache, "--out", out, "--rank", "2", *small),
        "sweep": ("sweep", "--cache", cache, "--out", out, "--rank", "2,3", *small, "--val-fraction", "0.2"),
        "eval": ("eval", world.finished, "--cache", world.tests, "--device", "cpu"),
        "inspect": ("inspect", cache),
        "verify": ("verify", cache, "--recompute", "1", "--device", "cpu"),
        "list": ("list",),
        "vtab": ("vtab", world.empty(), "--out", out, "--epochs", "1", "--device", "cpu"),
    }


def _kind(parameter: Any) -> str | None:
    if parameter.param_type_name == "argument" or getattr(parameter, "is_flag", False):
        return None
    kinds = {"int": "integer", "float": "float", "str": "text"}
    return kinds.get(str(parameter.bare_type()), "path")


def _option(world: World, verb: str, base: tuple[str | Path, ...], name: str, option: str, value: str) -> list[Step]:
    clear(world)
    command = base
    if verb == "train" and name in ("backbone", "dataset", "split", "data_dir", "weights", "img_size", "resize", "tap"):
        command = _online(world)
    elif verb == "train" and name in ("precision", "workers", *ONLINE, *VIDEO_ONLY):
        command = (*_online(world), *(("--mixed", "0.5", "--cache", world.cache("train")) if name == "mixed" else ()))
        command = tuple(part for part in command if name != "mixed" or part != "--online")
    if name == "trials":
        command = (*base, "--sampler", "random")
    if name == "augment" and verb in ("extract", "plan"):
        command = (*base, "--views", "2")
    accepted = ACCEPTED.get((name, value))
    if accepted is None and _harmless(verb, name, value):
        accepted = "means what it says"
    command = (*command, f"{option}={value}")
    right = (lambda done: None) if accepted else None
    step = tried(world, *command, right=right)
    if step.outcome == TRACEBACK and "no end after" in step.detail:
        return [step]
    left = world.folder / "tried.zarr"
    if step.outcome == SENTENCE and left.exists() and verb != "extract":
        return [Step(step.command, OTHER, f"refuses, but leaves {left}")]
    return [step]


def _harmless(verb: str, name: str, value: str) -> bool:
    zero_is_fine = ("lr", "weight_decay", "label_smoothing", "clip_grad", "val_fraction", "mixup", "cutmix", "reprob")
    return value in ("0", "-0") and (name in zero_is_fine or name == "seed")


def _online(world: World) -> tuple[str | Path, ...]:
    backbone = ("--backbone", "vit_digits", "--dataset", "folder", "--data-dir", world.data, "--workers", "1")
    return ("train", "--online", *backbone, "--out", world.folder / "tried", "--epochs", "1", *TRAIN)


def _plain(world: World, command: tuple[str | Path, ...]) -> list[Step]:
    clear(world)
    right = (lambda done: None) if command[-1] == "--" else None
    return [tried(world, *command, right=right)]


def clear(world: World) -> None:
    for name in ("tried", "tried.zarr", "tried.zarr.receipts", "tried.partial", "tried.zarr.partial"):
        remove(world.folder / name)
    remove(world.folder / "empty")
    world.fresh("train", "run")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 10)}]\n" for n in range(9)
)
CONTENTS: dict[str, bytes | None] = {
    "empty": b"",
    "a byte order mark alone": b"\xef\xbb\xbf",
    "UTF-16": "rank: [2, 4]\n".encode("utf-16"),
    "Latin-1": "gr\xfc\xdfe: 1\n".encode("latin-1"),
    "zero bytes": bytes(1000),
    "random bytes": bytes((7 * n * n + 13) % 256 for n in range(5000)),
    "deep JSON": b"[" * 200_000,
    "deep JSON objects": b'{"a":' * 100_000,
    "an alias bomb": BOMB.encode(),
    "one line of 3 MB": b"a" * 3_000_000,
    "a web page": b"<!doctype html><title>404</title>",
    "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 346284714\n",
    "escapes": b"\x1b[2Jrank: [2]\n\x1b]0;owned\x07",
    "commas": b"," * 10_000,
    "a FIFO": None,
    "a device": None,
    "an endless link": None,
    "a dangling link": None,
    "a folder": None,
    "nothing": None,
    "a file's inside": None,
    "100 GB of holes": None,
}


def make(file: Path, what: str) -> Path:
    """Make a file of a kind; give the path to name."""
    remove(file)
    content = CONTENTS[what]
    if content is not None:
        file.write_bytes(content)
    elif what == "a FIFO":
        os.mkfifo(file)
    elif what == "a device":
        file.symlink_to("/dev/zero")
    elif what == "an endless link":
        file.symlink_to(file)
    elif what == "a dangling link":
        file.symlink_to(file.with_name("nowhere"))
    elif what == "a folder":
        file.mkdir()
    elif what == "a file's inside":
        file.write_bytes(b"x")
        return file / "inside"
    elif what == "100 GB of holes":
        with open(file, "wb") as handle:
            handle.truncate(100 * 10**9)
    return file


def named_files(world: World) -> Iterator[Case]:
    """Every option that names a file or folder, with every kind of file."""
    cache, out, odd = world.cache("train"), world.folder / "tried", world.folder / "odd"
    _ = world.finished
    small = ("--out", out, "--epochs", "1", "--rank", "2", "--batch-size", "8", "--device", "cpu")
    train = ("train", "--cache", cache, *small)
    held = ("--val-fraction", "0.3")
    sweep = ("sweep", "--cache", cache, "--out", out, *held, "--epochs", "1", "--batch-size", "8", "--device", "cpu")
    extract = (*EXTRACT, "--data-dir", world.data, "--out", world.folder / "tried.zarr")
    takers: dict[str, tuple[str, Callable[[Path], tuple[str | Path, ...]]]] = {
        "train --val-ids": ("txt", lambda file: (*train, "--val-ids", file)),
        "train --sampling": ("csv", lambda file: (*train, "--sampling", file)),
        "train --cache": ("zarr", lambda file: ("train", "--cache", file, *small)),
        "train --resume": ("run", lambda file: ("train", "--resume", file)),
        "train --stage": ("near", lambda file: (*train, "--stage", file)),
        "sweep --space YAML": ("yaml", lambda file: (*sweep, "--space", file)),
        "sweep --space TOML": ("toml", lambda file: (*sweep, "--space", file)),
        "sweep --val-ids": ("txt", lambda file: (*sweep, "--rank", "2,3", "--val-ids", file)),
        "sweep --sampling": ("csv", lambda file: (*sweep, "--rank", "2,3", "--sampling", file)),
        "sweep --val-cache": ("zarr", lambda file: (*sweep, "--rank", "2,3", "--val-cache", file)),
        "sweep --test-cache": ("zarr", lambda file: (*sweep, "--rank", "2,3", "--test-cache", file)),
        "sweep --resume": ("sweep", lambda file: ("sweep", "--resume", file)),
        "sweep --storage": ("db", lambda file: (*sweep, "--rank", "2,3", "--storage", f"sqlite:///{file}")),
        "eval RUN": ("run", lambda file: ("eval", file, "--cache", world.tests)),
        "eval --cache": ("zarr", lambda file: ("eval", world.run, "--cache", file)),
        "inspect": ("zarr", lambda file: ("inspect", file)),
        "verify": ("zarr", lambda file: ("verify", file)),
        "verify --repair": ("zarr", lambda file: ("verify", file, "--repair")),
        "vtab": ("vtab", lambda file: ("vtab", file, "--out", out)),
        "extract --weights": ("safetensors", lambda file: (*extract, "--weights", file)),
        "extract --data-dir": (
            "data",
            lambda file: (*EXTRACT, "--data-dir", file, "--out", world.folder / "tried.zarr"),
        ),
        "extract --dataset": ("data", lambda file: ("extract", "--backbone", "vit_digits", "--dataset", file)),
        "extract --out": ("zarr", lambda file: (*extract[:-1], file)),
    }
    makes_it = {"train --stage": ("nothing", "a folder", "a dangling link"), "extract --out": ("nothing",)}
    makes_it |= {"sweep --storage": ("nothing", "empty", "a dangling link")}
    for taker, (ending, command) in takers.items():
        for what in CONTENTS:
            file = odd.with_suffix(f".{ending}")

            def run(taker: str = taker, what: str = what, file: Path = file, command: Any = command) -> list[Step]:
                clear(world)
                right = (lambda done: None) if what in makes_it.get(taker, ()) else None
                step = tried(world, *command(make(file, what)), what=what, right=right)
                for end in ("", ".receipts", ".partial"):
                    remove(file.with_name(file.name + end))
                return [step]

            yield Case("inputs", "files that options name", f"inputs/named/{taker}: {what}", run)
    yield from _lists(world, train)


def _lists(world: World, train: tuple[str | Path, ...]) -> Iterator[Case]:
    """Lists of ids and weights that are nearly right; two of them must be."""
    names = world.ids()
    file, out = world.folder / "list.csv", world.folder / "tried"
    whole = "".join(f"{name},1\n" for name in names)
    weights: dict[str, tuple[bytes, bool]] = {
        "as it should be": (f"id,weight\n{whole}".encode(), True),
        "with a byte order mark": (f"\ufeffid,weight\n{whole}".encode(), True),
        "with CRLF": (f"id,weight\n{whole}".replace("\n", "\r\n").encode(), True),
        "without its head": (whole.encode(), False),
        "half of the samples": (("id,weight\n" + whole[: whole.index("\n", len(whole) // 2) + 1]).encode(), False),
        "a sample twice": (f"id,weight\n{whole}{names[0]},2\n".encode(), False),
        "a weight NaN": (f"id,weight\n{whole}".replace(",1\n", ",nan\n", 1).encode(), False),
        "a weight infinite": (f"id,weight\n{whole}".replace(",1\n", ",inf\n", 1).encode(), False),
        "a weight negative": (f"id,weight\n{whole}".replace(",1\n", ",-1\n", 1).encode(), False),
        "a weight empty": (f"id,weight\n{whole}".replace(",1\n", ",\n", 1).encode(), False),
        "all weights zero": (f"id,weight\n{whole}".replace(",1\n", ",0\n").encode(), False),
        "equal weights whose sum overflows": (f"id,weight\n{whole}".replace(",1\n", ",1e308\n").encode(), True),
        "three columns": (f"id,weight\n{whole}".replace(",1\n", ",1,2\n").encode(), False),
        "a quote that does not end": (f'id,weight\n"{whole}'.encode(), False),
    }
    equal: list[Any] = []  # what all that works must end as: every sample weighs the same
    for what, (content, works) in weights.items():

        def run(content: bytes = content, what: str = what, works: bool = works) -> list[Step]:
            clear(world)
            if works and not equal:
                file.write_bytes(weights["as it should be"][0])
                world.must(*train, "--sampling", file)
                equal.append(result(out))
                remove(out)
            file.write_bytes(content)

            def right(done: Done) -> str | None:
                return run_difference(out, equal[0])

            command = (*train, "--sampling", file)
            return [tried(world, *command, what=what, right=right if works else None, may_refuse=not works)]

        yield Case("inputs", "files that options name", f"inputs/named/weights: {what}", run)
    held = "\n".join(names[::5]) + "\n"
    ids: dict[str, tuple[bytes, bool]] = {
        "as it should be": (held.encode(), True),
        "with a byte order mark": (f"\ufeff{held}".encode(), True),
        "with CRLF": (held.replace("\n", "\r\n").encode(), True),
        "an id that is not there": (f"{held}nobody.png\n".encode(), False),
        "an id twice": (f"{held}{names[0]}\n".encode(), True),  # what is held out is a set
        "all ids": (("\n".join(names) + "\n").encode(), False),
        "no ids": (b"\n\n", False),
    }
    wanted: list[Any] = []
    for what, (content, works) in ids.items():

        def held_out(content: bytes = content, what: str = what, works: bool = works) -> list[Step]:
            clear(world)
            if works and not wanted:
                file.write_bytes(held.encode())
                world.must(*train, "--val-ids", file)
                wanted.append(result(out))
                remove(out)
            file.write_bytes(content)

            def right(done: Done) -> str | None:
                return run_difference(out, wanted[0])

            step = tried(
                world, *train, "--val-ids", file, what=what, right=right if works else None, may_refuse=not works
            )
            return [step]

        yield Case("inputs", "files that options name", f"inputs/named/ids: {what}", held_out)
