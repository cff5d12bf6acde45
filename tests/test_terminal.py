"""Names from outside on a terminal: no control byte of theirs reaches it, in whatever locale."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from losa_cache.cli_common import print_result
from losa_cache.display import in_words, telling
from tests.forked import Forked

HOSTILE = "\x1b[2J\a\n\u202e[red]x"
RUN = """
import json, os, sys
from losa_cache.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["losa-cache", *(os.fsdecode(part.encode("utf-8", "surrogateescape")) for part in command)]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print("exit", code, flush=True)
    print("exit", code, file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What commands print about a data set, a cache and a run with such names: each one's exit code, stdout, stderr."""
    root = tmp_path_factory.mktemp("names")
    images = root / f"set{HOSTILE}"
    rng = np.random.default_rng(0)
    for kind in (f"ant{HOSTILE}", "bee"):
        (images / kind).mkdir(parents=True)
        for at in range(4):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(images / kind / f"{at}{HOSTILE}.png")
    (images / "bee" / f"torn{HOSTILE}.png").write_bytes(b"torn")
    cache, run = str(root / f"c{HOSTILE}.zarr"), str(root / f"run{HOSTILE}")
    extract = ["extract", "--backbone", "vit_digits", "--dataset", str(images), "--out", cache]
    commands = [
        extract,
        [*extract, "--on-error", "skip"],
        ["inspect", cache],
        ["verify", cache, "--repair"],
        ["train", "--epochs", "1", "--rank", "2", "--val-fraction", "0.5", "--out", run],
        ["eval", run, "--cache", cache],
        ["list"],
        ["list", "--json"],
        ["extract", "--backbone", HOSTILE, "--dataset", "digits"],
        ["extract", "--backbone", "vit_digits", "--dataset", "digits", "--weights", str(root / HOSTILE)],
        ["train", f"--{HOSTILE}"],
        ["train", "--rank", HOSTILE],
        [HOSTILE],
        ["inspect", str(root / "\udcff.zarr")],
    ]
    environment = os.environ | {"LOSA_CACHE_HOME": str(root / "home")}
    done = Forked("-c", RUN, json.dumps(commands), env=environment, cwd=root).wait()
    parts = [text.split("exit ") for text in (done.stdout, done.stderr)]
    assert len(parts[0]) == len(commands) + 1, done.stderr[-2000:]
    codes = [int(part.partition("\n")[0]) for part in parts[0][1:]]
    printed = [[part.partition("\n")[2] if at else part for at, part in enumerate(texts[:-1])] for texts in parts]
    return [(command, *result) for command, result in zip(commands, zip(codes, *printed, strict=True), strict=True)]


def test_names_do_not_move_the_cursor(outputs):
    for command, code, out, err in outputs:
        assert {letter for letter in out + err if letter < " "} <= {"\n"}, command
        assert "\u202e" not in out + err
        assert "Traceback" not in err
        assert code in (0, 2)


def test_commands_end_as_with_any_other_names(outputs):
    codes = [code for _, code, _, _ in outputs]
    assert codes == [2, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2]
    escaped = r"\x1b[2J\x07\n"
    errors = [err for _, _, _, err in outputs]
    assert all(escaped in errors[at] for at in (0, 8, 9))
    assert all(r"\x1b[2J\x07" in errors[at] for at in (10, 12))  # in typer's frame, perhaps over two lines
    assert "\\udcff" in errors[13]
    skipped, inspected, listed = outputs[1], outputs[2], outputs[6]
    assert f"torn{escaped}" in skipped[3]
    assert "[red]x" in skipped[3]
    assert escaped in inspected[2]
    assert escaped in listed[2]
    assert json.loads(outputs[7][2])[0]["path"].endswith(".zarr")


def test_a_report_for_people_says_only_what_tells_something():
    report = {"images": 17, "skipped": 3}
    assert (in_words(report), in_words({"images": 17, "skipped": 0})["images"]) == (report | {"images": "14 of 17"}, 17)
    figures = {"top1": 90.0, "top5": 100.0, "val_top5": 100.0, "top5_interval": [100.0, 100.0]}
    assert (telling(figures, 5), telling(figures, 6)) == ({"top1": 90.0}, figures)


def test_a_small_number_is_no_zero(capsys):
    print_result({"train_lr": 2e-5, "loss": 0.0, "seconds": 1.25}, as_json=False)
    assert capsys.readouterr().out.split() == ["train_lr", "2e-05", "loss", "0.000", "seconds", "1.250"]
