"""The command line's ``data``: parse, call, print."""

import json
from collections.abc import Iterator
from typing import Any

import typer

from losa_cache.cli_common import Json
from losa_cache.cli_options import takes_options
from losa_cache.data.survey_config import SurveyConfig
from losa_cache.errors import UserError
from losa_cache.text import say

CLASSES = 20  # lines of classes
FEW = 5  # names or groups in the text; JSON has all


@takes_options
def data(config: SurveyConfig, as_json: Json = False) -> None:
    """Say what extract would read of a data set, and what is odd about it: sizes, duplicates, leaks; no backbone."""
    from losa_cache.data.survey import survey
    from losa_cache.display import PassBar

    with PassBar("looking", 1) as bar:
        found = survey(config=config, progress=bar.advance)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for line in _lines(found):
            say(line)
    unreadable = found.get("unreadable", [])
    if unreadable and len(unreadable) == found["images"]:
        raise UserError(
            f"data set {found['dataset']!r}, split {found['split']!r}: none of its {len(unreadable)} "
            f"{'videos' if found['videos'] else 'images'} can be read, as the report says: mend or convert them."
        )


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """Write a survey for people."""
    kind = "videos" if found["videos"] else "images"
    yield f"{found['dataset']}, split {found['split']}: {_many(found['images'])} {kind}"
    yield from _classes(found["classes"], kind)
    if found["targets"]:
        yield f"target sets: {', '.join(found['targets'])}"
    if "modes" in found:
        for side in ("width", "height"):
            if spread := found[side]:
                yield f"{side}: {spread['min']} to {spread['max']}, median {spread['median']:g} pixels"
        yield f"modes: {_counted(found['modes'])}"
        yield f"formats: {_counted(found['formats'])}"
        yield from _listed(f"unreadable {kind}", [f"{one['id']}: {one['reason']}" for one in found["unreadable"]])
        yield from _duplicates(found, kind)
        yield from _leaks(found, kind)
    for title in ("left_out", "kept"):
        for one in found[title]:
            more = ", ..." if one["count"] > len(one["names"]) else ""
            names = ", ".join(map(repr, one["names"]))
            yield f"{title.replace('_', ' ')} {one['what']}: {_many(one['count'])} ({names}{more})"


def _classes(classes: dict[str, int], kind: str) -> Iterator[str]:
    counts = classes.values()
    spread = _many(min(counts)) if min(counts) == max(counts) else f"{_many(min(counts))} to {_many(max(counts))}"
    yield f"classes: {len(classes)}; {kind} in each: {spread}"
    by_count = sorted(classes, key=classes.__getitem__, reverse=True)
    if len(classes) <= CLASSES:
        yield from (f"  {name}: {_many(classes[name])}" for name in classes)
    else:
        yield from (f"  {name}: {_many(classes[name])}" for name in by_count[:FEW])
        yield "  ..."
        yield from (f"  {name}: {_many(classes[name])}" for name in by_count[-FEW:])


def _duplicates(found: dict[str, Any], kind: str) -> Iterator[str]:
    groups = found["duplicates"]
    copies = sum(len(group["ids"]) - 1 for group in groups)
    across = sum(len(group["classes"]) > 1 for group in groups)
    ordered = sorted(groups, key=lambda group: len(group["classes"]) < 2)
    lines = [
        _few(group["ids"], " = ") + (f" in {len(group['classes'])} classes" if len(group["classes"]) > 1 else "")
        for group in ordered
    ]
    more = f" (groups of them that lie in several classes: {_many(across)})" if across else ""
    yield from _listed(f"{kind} that equal another one in this split", lines, copies, more)


def _leaks(found: dict[str, Any], kind: str) -> Iterator[str]:
    for split, images in found["other_splits"].items():
        if isinstance(images, str):
            yield f"split {split} was not compared: {images}"
            continue
        leaks = [leak for leak in found["leaks"] if leak["split"] == split]
        lines = [f"{_few(leak['ids'], ' = ')} = {_few(leak['others'], ' = ')}" for leak in leaks]
        title = f"{kind} that split {split} ({_many(images)} {kind}) has, too"
        yield from _listed(title, lines, sum(len(leak["ids"]) for leak in leaks))


def _listed(title: str, lines: list[str], count: int | None = None, more: str = "") -> Iterator[str]:
    yield f"{title}: {_many(len(lines) if count is None else count)}{more}"
    yield from (f"  {line}" for line in lines[:FEW])
    if len(lines) > FEW:
        yield "  ..."


def _few(names: list[str], between: str) -> str:
    return between.join(names[:FEW]) + (f"{between}..." if len(names) > FEW else "")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {_many(count)}" for name, count in counts.items())


def _many(count: int) -> str:
    return f"{count:,}"
