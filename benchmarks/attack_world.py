"""What is attacked: caches, runs and a sweep, made once, undisturbed; and the right results, taken from them."""

import json
import os
import random
import signal
from collections.abc import Callable
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from attack_runner import Done, Runner, apart, copy, digest, metrics, remove, tree
from PIL import Image

EXTRACT = ("extract", "--backbone", "vit_digits", "--dataset", "folder", "--workers", "1", "--batch-size", "4")
TRAIN = ("--rank", "2", "--batch-size", "8", "--device", "cpu")


def pictures(root: Path, *, seed: int, counts: dict[str, int], classes: str = "abc", size: int = 16) -> None:
    """Make class folders of noise, each class a little brighter than the one before."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 150, (size, size, 3)) + 35 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


class World:
    """Everything that a case may need, below ``runner.folder``; pristine copies lie in ``kept``.

    Commands name absolute paths, so a pristine copy is put back (:meth:`fresh`) where it was made.

    Args:
        runner: of commands.
        only: beginnings of the names of the cases that are wanted; empty: all.
    """

    def __init__(self, runner: Runner, only: tuple[str, ...] = ()) -> None:
        self.runner, self.folder, self._only = runner, runner.folder, only
        self.kept = self.folder / "kept"
        self.data, self.run, self.half = self.folder / "data", self.folder / "run", self.folder / "half"
        pictures(self.data, seed=0, counts={"train": 8, "test": 4})
        self.kinds: dict[str, tuple[str | Path, ...]] = {
            "train": (),
            "test": ("--split", "test"),
            "int8": ("--precision", "int8"),
            "predict": ("--bits", "1"),
        }
        self._made: set[str] = set()

    def wants(self, prefix: str) -> bool:
        """Whether cases whose names begin so are wanted: others need not be prepared."""
        return not self._only or any(own.startswith(prefix) or prefix.startswith(own) for own in self._only)

    def cache(self, name: str) -> Path:
        """Make a cache, once; give its path."""
        path = self.folder / f"{name}.zarr"
        if name not in self._made:
            self.must(*self.extract(name))
            self.keep(name, path, path.with_name(path.name + ".receipts"))
        return path

    def extract(self, name: str) -> tuple[str | Path, ...]:
        """Give the command that makes a cache."""
        options = self.kinds[name]
        data = () if "--data-dir" in options else ("--data-dir", self.data)
        return (*EXTRACT, *data, "--out", self.folder / f"{name}.zarr", *options)

    def fresh(self, *names: str) -> None:
        """Put pristine copies in place of what is there."""
        for name in names:
            if name not in self._made:
                self._make(name)
            for part in (self.kept / name).iterdir():
                copy(part, self.folder / part.name)

    def empty(self) -> Path:
        """Give an empty folder to run in."""
        folder = self.folder / "empty"
        if not folder.exists():
            folder.mkdir()
        return folder

    def _make(self, name: str) -> Any:
        """Make what is not there yet."""
        if name in self.kinds:
            return self.cache(name)
        return getattr(self, {"run": "finished", "half": "stopped", "sweep": "swept"}[name])

    def must(self, *arguments: str | Path, **how: Any) -> Done:
        """Run a command that has to work.

        Raises:
            RuntimeError: if it does not.
        """
        done = self.runner.run(*arguments, **how)
        if done.code != 0:
            raise RuntimeError(f"{arguments} ended with {done.code}: {done.err[-2000:]}")
        return done

    def keep(self, name: str, *parts: Path) -> None:
        """Keep pristine copies under a name for :meth:`fresh`."""
        for part in parts:
            copy(part, self.kept / name / part.name)
        self._made.add(name)

    @cached_property
    def tests(self) -> Path:
        """The test cache."""
        return self.cache("test")

    def train_command(self, cache: str | Path, out: Path, *more: str | Path) -> tuple[str | Path, ...]:
        """Give the command that trains two epochs."""
        return ("train", "--cache", cache, "--out", out, "--epochs", "2", "--val-fraction", "0.2", *TRAIN, *more)

    def undisturbed(self, *names: str) -> None:
        """Make caches, and learn what every verb gives on them, before they are attacked."""
        for name in names:
            self.trained(name)
            self.evaluated(name)
            self.inspected(name)

    def trained(self, name: str) -> dict[str, Any]:
        """Train from a cache undisturbed: its result."""
        return self._once(f"trained-{name}", lambda out: self.train_command(self.cache(name), out))

    def evaluated(self, name: str) -> dict[str, Any]:
        """Evaluate the finished run on a cache undisturbed: its figures."""
        return self._said(f"evaluated-{name}", lambda: self.evaluation(self.cache(name)))

    def inspected(self, name: str) -> dict[str, Any]:
        """Inspect a cache undisturbed."""
        return self._said(f"inspected-{name}", lambda: ("inspect", self.cache(name), "--full", "--json"))

    def _said(self, name: str, command: Callable[[], tuple[str | Path, ...]]) -> dict[str, Any]:
        kept = self.kept / f"{name}.json"
        if not kept.exists():
            self._mended()
            said = self.must(*command()).out
            kept.write_text(said)
        found: dict[str, Any] = json.loads(kept.read_text())
        return found

    def _mended(self) -> None:
        """Put all back that an earlier case may have damaged."""
        for name in ("run", *self.kinds):
            if name in self._made:
                self.fresh(name)

    def _once(self, name: str, command: Callable[[Path], tuple[str | Path, ...]]) -> dict[str, Any]:
        kept = self.kept / f"{name}.json"
        if not kept.exists():
            self._mended()
            remove(out := self.folder / "undisturbed")
            self.must(*command(out))
            kept.write_text(json.dumps(result(out)))
            remove(out)
        found: dict[str, Any] = json.loads(kept.read_text())
        return found

    @cached_property
    def finished(self) -> Path:
        """A finished run from the ``train`` cache, with files for what is held out and how often samples come."""
        cache = self.cache("train")
        self.ids()
        self._mended()
        self.must(*self.file_options(self.train_command(cache, self.run)[:7]))
        self.keep("run", self.run)
        return self.run

    def file_options(self, command: tuple[str | Path, ...], epochs: int = 2) -> tuple[str | Path, ...]:
        """Give a training command with options that name files."""
        files = ("--val-ids", self.folder / "ids.txt", "--sampling", self.folder / "weights.csv")
        return (*command[:5], "--epochs", str(epochs), *TRAIN, *files)

    def ids(self) -> list[str]:
        """Write the files of ids and weights; give the ids."""
        names = sorted(str(p.relative_to(self.data / "train")) for p in (self.data / "train").rglob("*.png"))
        (self.folder / "ids.txt").write_text("\n".join(names[::5]) + "\n")
        rows = (f"{name},{1 + number % 3}\n" for number, name in enumerate(names))
        (self.folder / "weights.csv").write_text("id,weight\n" + "".join(rows))
        return names

    @cached_property
    def whole(self) -> dict[str, Any]:
        """What the half-done run ends as."""
        self.ids()
        return self._once(
            "whole", lambda out: self.file_options(("train", "--cache", self.cache("train"), "--out", out), 4)
        )

    @cached_property
    def stopped(self) -> Path:
        """A run of four epochs, killed with a checkpoint in the middle of the third."""
        self.ids()
        command = self.file_options(("train", "--cache", self.cache("train"), "--out", self.half), 4)
        self._mended()

        def before() -> None:
            from losa_cache.display import TrainingBar

            advance = TrainingBar.advance

            def stopping(bar: Any, done: float) -> None:
                advance(bar, done)
                if 2.4 < done < 3:
                    os.kill(os.getpid(), signal.SIGINT)

            TrainingBar.advance = stopping  # type: ignore[method-assign, assignment]

        done = self.runner.run(*command, before=before)
        if done.code != 130 or not (self.half / "checkpoint.pt").exists():
            raise RuntimeError(f"the half-done run ended with {done.code}: {done.err[-2000:]}")
        self.keep("half", self.half)
        return self.half

    @cached_property
    def figures(self) -> dict[str, Any]:
        """What ``eval`` says of the finished run on the test cache."""
        _ = self.finished, self.tests
        self._mended()
        found: dict[str, Any] = self.must(*self.evaluation()).json
        remove(self.finished / "eval.json")
        return found

    def evaluation(self, cache: str | Path | None = None) -> tuple[str | Path, ...]:
        """Give the command that evaluates the finished run."""
        return ("eval", self.finished, "--cache", cache or self.tests, "--json", "--device", "cpu")

    def sweep_command(self, out: Path) -> tuple[str | Path, ...]:
        """Give the command of a sweep of four trials, two at a time."""
        space = ("--rank", "2,4", "--lr", "1e-2,1e-3", "--epochs", "2", "--batch-size", "8", "--concurrent", "2")
        held = ("--val-fraction", "0.3")  # of 24 images: fewer than 5 would not choose
        return ("sweep", "--cache", self.cache("train"), *space, *held, "--test-cache", self.tests, "--out", out)

    @cached_property
    def swept(self) -> dict[str, Any]:
        """What an undisturbed sweep finds."""
        out = self.folder / "sweep"
        command = self.sweep_command(out)
        self._mended()
        self.must(*command)
        self.keep("sweep", out)
        found = trials(out)
        remove(out)
        return found

    def known_tree(self, name: str) -> dict[str, str]:
        """Hashes of a pristine cache and of its receipts."""
        self.cache(name)
        return tree(*(self.kept / name).iterdir())


def result(run: Path) -> dict[str, Any]:
    """Give what a run ended as: its metrics and its adapter's tensors."""
    return {"metrics": metrics(run), "adapter": tensors(run)}


def tensors(run: Path) -> dict[str, str]:
    """Hash an adapter's tensors, read without torch."""
    raw = (run / "adapter/adapter.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    parts = {name: [start + place for place in entry["data_offsets"]] for name, entry in header.items()}
    return {name: sha256(raw[first:last]).hexdigest() for name, (first, last) in parts.items()}


def run_difference(run: Path, wanted: dict[str, Any]) -> str | None:
    """Say how a run's end differs from the undisturbed one."""
    found = result(run)
    if found["metrics"] != wanted["metrics"]:
        pairs = zip(found["metrics"], wanted["metrics"], strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        if first is None:
            return f"{len(found['metrics'])} epochs in metrics.jsonl, {len(wanted['metrics'])} undisturbed"
        wrong = {
            key: (first[0].get(key), first[1].get(key)) for key in first[1] if first[0].get(key) != first[1].get(key)
        }
        return f"metrics differ: {wrong}"[:300]
    return apart(found["adapter"], wanted["adapter"])


def trials(folder: Path) -> dict[str, Any]:
    """Give what a sweep found: every trial by its options, the choice, its test."""
    record = json.loads((folder / "record.json").read_text())
    found: dict[str, Any] = {}
    for trial in record["trials"]:
        key = json.dumps(trial["options"], sort_keys=True)
        path = folder / "trials" / f"{trial['number']:04d}"
        times = found.get(key, {"times": 0})["times"] + 1
        found[key] = {"state": trial["state"], "times": times, **result(path)}
    chosen = next((trial["options"] for trial in record["trials"] if trial["number"] == record["chosen"]), None)
    test = {name: value for name, value in (record["test"] or {}).items() if name != "on"}
    return {"trials": found, "chosen": chosen, "test": test}


def sweep_difference(folder: Path, wanted: dict[str, Any]) -> str | None:
    """Say how a sweep's end differs from the undisturbed one."""
    found = trials(folder)
    if found["trials"].keys() != wanted["trials"].keys():
        return f"combinations {sorted(found['trials'])} in place of {sorted(wanted['trials'])}"
    for options, trial in wanted["trials"].items():
        own = found["trials"][options]
        if own["times"] != 1 or own["state"] != trial["state"]:
            return f"{options}: {own['times']} times, {own['state']}"
        if own["metrics"] != trial["metrics"]:
            far = (
                max(
                    abs(mine[key] - theirs[key]) / max(abs(theirs[key]), 1e-12)
                    for mine, theirs in zip(own["metrics"], trial["metrics"], strict=True)
                    for key in theirs
                )
                if len(own["metrics"]) == len(trial["metrics"])
                else float("inf")
            )
            return f"{options}: metrics differ by {far:.1e}"
        if own["adapter"] != trial["adapter"]:
            return f"{options}: the adapter differs"
    if found["chosen"] != wanted["chosen"] or found["test"] != wanted["test"]:
        return f"chosen {found['chosen']}, {found['test']} in place of {wanted['chosen']}, {wanted['test']}"
    return None


def seeded(name: str, seed: int = 0) -> random.Random:
    """Give the random numbers of a case: the same whichever other cases run."""
    return random.Random(f"{seed}/{name}")


def same_file(path: Path, wanted: str) -> str | None:
    """Say if a file is not what it was."""
    return None if path.exists() and digest(path) == wanted else f"{path.name} is another one"
