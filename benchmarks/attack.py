"""Attacks on everything that losa-cache reads, and what comes of each: a table, and a list of what went wrong.

    python benchmarks/attack.py [--only kills flips structure inputs] [--every N] [--out FILE]
    python benchmarks/attack.py --tiny                  # a few of each kind, in seconds
    python benchmarks/attack.py --case NAME [--keep]    # one case again, in full

kills      SIGKILL at steps on the file system and in the study's database, and at random moments, of extract, train,
           train --stage, verify --repair, eval and sweep; SIGTERM, SIGHUP, SIGINT and SIGUSR1 likewise; then the same
           again
flips      one random bit in every kind of file, then every verb that reads it
structure  valid checksums in the wrong place: shards, cores and receipts exchanged, metadata edited, links and pipes
inputs     options, files, folders and environments that cannot work, or that must work

A case is right if its result is that of the undisturbed command, byte by byte. Otherwise it may refuse, in one sentence
with exit code 2. ``other`` is a refusal where none is due, or a message that is not one plain sentence. A traceback, a
hang and a crash are one column; exit code 0 with another result is the last. The package is that on ``PYTHONPATH``.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy: children are forked
    os.environ[_name] = "1"

from attack_runner import (  # noqa: E402
    OTHER,
    OUTCOMES,
    RIGHT,
    SENTENCE,
    SILENT,
    TRACEBACK,
    Case,
    Result,
    Runner,
    Step,
    scratch,
    warm,
)

TINY = (
    *("kills/extract/moment 0", "kills/train/step", "kills/train/SIGTERM"),
    *("flips/cache/train/shard/", "flips/run/adapter/adapter.safetensors/", "flips/half/checkpoint.pt/"),
    *("structure/shards exchanged", "structure/labels as float64 in the store", "inputs/options/train --rank"),
    *("inputs/files/checkpoint: a list", "inputs/folders/loop to the root", "inputs/machine/home: a file"),
    *("inputs/pictures/grey: I;16 in PNG", "inputs/weights/pth: an LFS pointer"),
)
"""The first case that begins so, of each."""
KINDS = ("kills", "flips", "structure", "inputs")
HEADS = {
    RIGHT: "right",
    SENTENCE: "one sentence, exit 2",
    OTHER: "refused without need, or muddled",
    TRACEBACK: "traceback, hang or crash",
    SILENT: "silent",
}


def main() -> None:
    arguments = _arguments()
    warm()
    folder = arguments.folder or scratch()
    from attack_world import World

    results: list[Result] = []
    try:
        world = World(Runner(folder), _wanted(arguments))
        for case in _cases(world, arguments):
            if arguments.list:
                print(case.name)
                continue
            results.append(_tried(case))
            _told(results[-1], arguments)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(results))
    print(listed(results))
    if any(result.outcome in (TRACEBACK, SILENT) for result in results):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--case", help="only cases whose names begin so; of one case all is told")
    parser.add_argument("--every", type=int, default=1, help="only every N-th case")
    parser.add_argument("--tiny", action="store_true", help="a few cases of each kind")
    parser.add_argument("--out", type=Path, help="add a JSON line a case to this file")
    parser.add_argument("--folder", type=Path, help="to work in; emptied first")
    parser.add_argument("--keep", action="store_true", help="leave the folder as the last case left it")
    parser.add_argument("--list", action="store_true", help="only name the cases")
    return parser.parse_args()


def _wanted(arguments: argparse.Namespace) -> tuple[str, ...]:
    return TINY if arguments.tiny else (arguments.case,) if arguments.case else ()


def _cases(world: Any, arguments: argparse.Namespace) -> Iterator[Case]:
    wanted = list(_wanted(arguments))
    number = 0
    for kind in arguments.only:
        if not world.wants(f"{kind}/"):
            continue
        for case in __import__(f"attack_{kind}").cases(world):
            begun = next((own for own in wanted if case.name.startswith(own)), None)
            if (wanted or arguments.tiny) and begun is None:
                continue
            if arguments.tiny:
                wanted.remove(str(begun))
            number += 1
            if (number - 1) % arguments.every == 0:
                yield case


def _tried(case: Case) -> Result:
    started = time.perf_counter()
    try:
        steps = case.run()
    except Exception as error:
        steps = [Step("(the attack itself)", OTHER, f"{type(error).__name__}: {error}"[:500])]
    return Result(case.kind, case.group, case.name, steps, time.perf_counter() - started)


def _told(result: Result, arguments: argparse.Namespace) -> None:
    steps = [{"command": s.command, "outcome": s.outcome, "detail": s.detail} for s in result.steps]
    line: dict[str, Any] = {"kind": result.kind, "group": result.group, "name": result.name, "outcome": result.outcome}
    line |= {"seconds": round(result.seconds, 3), "steps": steps}
    if arguments.out is not None:
        with open(arguments.out, "a") as file:
            file.write(json.dumps(line) + "\n")
    if arguments.case == result.name:
        print(json.dumps(line, indent=2))
    if result.outcome in (OTHER, TRACEBACK, SILENT):
        print(f"{result.outcome:12} {result.name}", file=sys.stderr, flush=True)


def table(results: list[Result]) -> str:
    """Give a Markdown table: a row a group, a bold one a kind."""
    rows = ["| | tried | " + " | ".join(HEADS[outcome] for outcome in OUTCOMES) + " |", "|---" * 7 + "|"]
    for kind in KINDS:
        own = [result for result in results if result.kind == kind]
        if own:
            rows.append(_row(f"**{kind}**", own))
            groups = dict.fromkeys(result.group for result in own)
            rows += [_row(group, [result for result in own if result.group == group]) for group in groups]
    return "\n".join(rows)


def _row(name: str, results: list[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    return f"| {name} | {len(results)} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |"


def listed(results: list[Result]) -> str:
    """List what went wrong, with the command that repeats it."""
    lines = []
    for outcome in (SILENT, TRACEBACK, OTHER):
        found = [result for result in results if result.outcome == outcome]
        lines += [f"\n{HEADS[outcome]}: {len(found)}"] if found else []
        for result in found:
            step = next(step for step in result.steps if step.outcome == outcome)
            lines.append(f"* `python benchmarks/attack.py --case {json.dumps(result.name)}`")
            lines.append(f"  {step.command}\n  {step.detail}")
    return "\n".join(lines)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
