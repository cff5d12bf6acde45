"""The guide to many GPUs: its figures follow from the forecast, its scripts run or at least parse."""

import math
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from losa_cache.cache.layout import Layout, plan_layout
from losa_cache.cli import app
from losa_cache.extract.forecast import Candidate, Speeds, on_gpus
from losa_cache.machine.sizes import readable_bytes
from tests.test_children import until

GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "many-gpus.md").read_text()
IMAGES, H200 = 1_803_460, 1160  # of Places365; ViT-H/14, images a second
PLACES = {1: 3e9, 8: 12.5e9, 64: 100e9}
"""Bytes a second that the guide takes for one disk, a network of 100 Gbit/s and a parallel file system."""


def stored(layers: int, tokens: int, *, batch: int, bits: int = 16) -> Layout:
    """ViT-H/14 has 32 blocks of 257 tokens and 1280 channels."""
    shape = {"layers": layers, "tokens": tokens, "columns": 1280, "itemsize": 2}
    if bits != 16:
        shape = {"layers": 1, "tokens": 1, "columns": layers * tokens * 1280 * bits // 8, "itemsize": 1}
    return plan_layout(samples=IMAGES, batch=batch, **shape)


STORED = {
    "every block, bfloat16": stored(32, 257, batch=25),
    "`--layers 4`, bfloat16": stored(4, 257, batch=64),
    "`--bits 1`": stored(32, 257, batch=25, bits=1),
    "`--tokens pooled`": stored(33, 2, batch=24),
}


def figures(layout: Layout, gpus: int) -> dict:
    row = layout.sample_chunks * layout.chunk_bytes
    speeds = {"write": PLACES[gpus], "read": 1, "reread": 1, "decode": math.inf, "forward": H200}
    machine = Speeds(**speeds, shared=False, memory=0, free=0)
    return on_gpus(Candidate("", layout.total_bytes, row, math.inf), machine, gpus=gpus, rows=IMAGES)


def hours(value: float) -> str:
    seconds = value * 3600
    return f"{value:.1f} h" if value >= 1 else f"{seconds / 60:.2g} min" if seconds >= 60 else f"{seconds:.0f} s"


def rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def lines() -> list[str]:
    """The lines of the guide's tables that are computed."""
    needs, takes = [], []
    for name, layout in STORED.items():
        of = [figures(layout, gpus) for gpus in PLACES]
        row = readable_bytes(layout.sample_chunks * layout.chunk_bytes)
        files = f"{rounded(4 * layout.shards, 2):,.0f}"
        writes = " | ".join(f"{rounded(own['busy']['write'] / 1e9, 3):,g} GB/s" for own in of)
        needs.append(f"| {name} | {row} | {readable_bytes(layout.total_bytes)} | {files} | {writes} |")
        shown = " | ".join(f"{hours(own['hours'])}, {own['gpu_hours']:.2g} GPU-hours" for own in of)
        takes.append(f"| {name} | {shown} |")
    busy = [own["busy"] for own in of]
    decoded, times = [f"{own['decode']:,.0f}" for own in busy], [hours(own["hours"]) for own in busy]
    needs.append(f"| images decoded a second | | | | {' | '.join(decoded)} |")
    needs.append(f"| time, if nothing holds the GPUs up | | | | {' | '.join(times)} |")
    return [*needs, *takes]


def test_its_tables_are_the_forecasts():
    found = GUIDE.splitlines()
    assert [line for line in lines() if line not in found] == []


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)


def parses(words: list[str]) -> None:
    program, verb, *arguments = words
    assert program == "losa-cache"
    get_command(app).commands[verb].make_context(verb, arguments, resilient_parsing=False)


def test_the_commands_of_its_scripts_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "places.zarr").mkdir()
    (tmp_path / "runs" / "places").mkdir(parents=True)
    (job,) = map(yaml.safe_load, fenced("yaml"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    parses(container["command"])
    commands = re.findall(r"(losa-cache [^&|;\n]*)", "\n".join(fenced("bash")).replace("\\\n", " "))
    assert len(commands) >= 3
    for command in commands:
        parses(shlex.split(command))


STUB = """#!/bin/bash
trap 'echo stopped >> log; sleep 0.1; exit 138' USR1
echo "$@" >> log
sleep ${TAKES} & wait $!
exit ${ENDS}
"""
"""A command that ends at SIGUSR1 as ours do, a moment later."""


@pytest.mark.parametrize(
    ("sent", "ends", "requeued"),
    [(None, 0, False), (None, 2, False), (signal.SIGUSR1, 138, True), (signal.SIGTERM, 138, True)],
)
def test_the_slurm_script_ends_as_its_command_does_and_is_requeued_after_a_warning(tmp_path, sent, ends, requeued):
    (tmp_path / "job.sh").write_text(fenced("bash")[0])
    for name, text in (("losa-cache", STUB), ("scontrol", '#!/bin/bash\necho "scontrol $@" >> log\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TAKES": "20" if sent else "0", "ENDS": str(ends)}
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    process = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment | array)
    log = tmp_path / "log"
    until(lambda: log.exists() and log.read_text().endswith("\n"))
    if sent is not None:
        process.send_signal(sent)
    assert process.wait() == ends
    said = log.read_text().splitlines()
    assert said[0].startswith("extract ")
    assert said[1:] == (["stopped", "scontrol requeue 7_3"] if requeued else [])
