"""Sweeps that are killed at every step in turn, and what they come to: a process of its own, which forks for each.

``python kills.py FOLDER CASES``: ``CASES`` is JSON, a list of dictionaries with ``name``, ``config`` (of the sweep),
``train`` (options of its trials), and what is killed: ``part`` (``run``, the trials; ``end``, what comes after them),
``every`` (each how many steps), ``only`` (a pattern of the steps), ``again`` (also kill what goes on, so many steps
later; -1: not), ``full`` (in place of a kill: the disk is full). It prints a line of JSON a kill.

A step is anything that changes the sweep's folder or its database: a file opened to be written, renamed or removed, a
folder made or removed, and a commit, before and after it.
"""

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.engine.default import DefaultDialect

from losa_cache.sweep.engine.config import SweepConfig
from losa_cache.sweep.engine.run import resume_sweep
from losa_cache.sweep.engine.space import Choices, Range
from losa_cache.sweep.engine.sweep import Sweep, create_sweep
from losa_cache.train.config import TrainConfig
from losa_cache.train.placement import Placement

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")
SECONDS = 300  # of a child at most
TIMES = ("train_seconds", "train_read", "train_peak_gb", "train_images", "train_cpu", "train_gpu", "limiter")
FULL = 3  # exit code of a run that the full disk stopped with a sentence


def watch(folder: Path, log: Path | None, at: int | None, *, full: bool) -> None:
    """Count the steps of this process, write them to a log, and end it at one of them."""
    names, count = str(folder), 0

    def step(what: str) -> None:
        nonlocal count
        count += 1
        if log is not None:
            with open(log, "a") as file:
                file.write(what + "\n")
        if at is not None and (count == at or (full and count > at)):
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), names)
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name: str, arguments: tuple) -> None:
        if name == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES and str(path).startswith(names):
                step(f"open {brief(path)}")
        elif name in CHANGES and str(arguments[0]).startswith(names):
            step(f"{name} {brief(arguments[0])}")

    def brief(path: object) -> str:
        return re.sub(r"tfevents.*", "tfevents", str(path).removeprefix(names))

    sys.addaudithook(audit)
    event.listen(Engine, "commit", lambda connection: step("before commit"))
    commit = DefaultDialect.do_commit

    def then_step(self: DefaultDialect, connection: object) -> None:
        commit(self, connection)
        step("after commit")

    DefaultDialect.do_commit = then_step


def child(folder: Path, part: str, *, log: Path | None = None, at: int | None = None, full: bool = False) -> int:
    """Run a part of a sweep in a forked process; its exit code, negative for a signal."""
    if (process := os.fork()) == 0:
        code = 1
        try:
            signal.alarm(SECONDS)
            sys.stdout.flush()
            errors = os.open(folder.with_name("errors.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors, 2)
            watch(folder, log, at, full=full)
            if part == "run":
                run_trials(folder)
            else:
                resume_sweep(folder, device="cpu")
            code = 0
        except BaseException as error:
            traceback.print_exc()
            code = FULL if type(error).__name__ == "UserError" else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def run_trials(folder: Path) -> None:
    Sweep(folder, placement=Placement(torch.device("cpu")), report=lambda standing: None).run()


def outcome(folder: Path) -> dict:
    """What a sweep left, but for seconds: by options, each trial's number, end, metrics and adapter; and its record."""
    found: dict[str, list] = {}
    with sqlite3.connect(folder / "study.db") as base:
        states = dict(base.execute("select number, state from trials").fetchall())
    for path in sorted((folder / "trials").iterdir()):
        if states.get(int(path.name)) in (None, "RUNNING", "WAITING") or not (path / "config.json").exists():
            continue
        options = json.loads((path / "config.json").read_text())["train"]
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        adapter = path / "adapter/adapter.safetensors"
        found.setdefault(json.dumps(options, sort_keys=True), []).append(
            {
                "number": path.name,
                "state": states[int(path.name)],
                "metrics": [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in lines],
                "adapter": adapter.read_bytes().hex() if adapter.exists() else None,
            }
        )
    if (record := folder / "record.json").exists():
        content = json.loads(record.read_text())
        for trial in content["trials"]:
            trial["curve"] = len(trial["curve"])
        found["record"] = [{k: v for k, v in content.items() if k not in ("started", "finished")}]
        retrained = folder / "retrained" / "adapter/adapter.safetensors"
        found["retrained"] = [retrained.read_bytes().hex() if retrained.exists() else None]
        found["report"] = [(folder / "report.html").exists()]
    return found


def verdict(ours: dict, theirs: dict) -> str:
    """Say how a sweep that was killed differs from one that was not."""
    if ours.keys() != theirs.keys() or any(len(own) != 1 for own in theirs.values()):
        lost, twice = ours.keys() - theirs.keys(), [k for k, own in theirs.items() if len(own) > 1]
        return f"wrong: {len(lost)} lost, {len(twice)} twice, {len(theirs.keys() - ours.keys())} new"
    if ours == theirs:
        return "same"
    without = [
        {k: [{**o, "number": 0} if "number" in o else o for o in v] for k, v in d.items()} for d in (ours, theirs)
    ]
    return "other numbers" if without[0] == without[1] else "other results"


def prepare(place: Path, case: dict) -> Path:
    """Make the folder that every kill begins with."""
    options = dict(case["config"])
    options["space"] = {
        name: Choices(tuple(own)) if isinstance(own, list) else Range(**own) for name, own in options["space"].items()
    }
    folder = place / "base" / "sweep"
    folder.parent.mkdir(parents=True)
    create_sweep(folder, SweepConfig(**options, base=replace(TrainConfig(), **case["train"])))
    if case["part"] == "end":
        code = child(folder, "run")
        assert code == 0, (place / "base" / "errors.txt").read_text()
    return folder


def copied(base: Path, to: Path) -> Path:
    shutil.rmtree(to.parent, ignore_errors=True)
    shutil.copytree(base, to)
    return to


def main(place: Path, cases: list[dict]) -> None:
    torch.set_num_threads(1)
    for case in cases:
        here = place / case["name"]
        base = prepare(here, case)
        whole = copied(base, here / "whole" / "sweep")
        log = here / "steps.txt"
        code = child(whole, case["part"], log=log)
        assert code == 0, (here / "whole" / "errors.txt").read_text()
        expected, steps = outcome(whole), log.read_text().splitlines()
        for at, what in enumerate(steps, start=1):
            if at % case.get("every", 1) or not re.search(case.get("only", ""), what):
                continue
            folder, kills = copied(base, here / "killed" / "sweep"), [at]
            again = case.get("again", -1)
            if again >= 0:
                kills.append(max(1, again))
            codes = [child(folder, case["part"], at=kill, full=case.get("full", False)) for kill in kills]
            code = child(folder, case["part"])
            if code == 0:
                found = verdict(expected, outcome(folder))
                left = [p.name for p in (folder / "cohorts").iterdir()]
                found = found if not left else f"{found}, left {left}"
            else:
                found = "error: " + (folder.parent / "errors.txt").read_text().strip().splitlines()[-1]
            line = {"case": case["name"], "steps": len(steps), "at": at, "what": what, "codes": codes, "found": found}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
