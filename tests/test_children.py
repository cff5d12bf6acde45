"""Processes that are started: what they tell and say arrives whole, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from losa_cache import children
from losa_cache.children import Children, Command

FIRST = "import os, signal, sys, time; from losa_cache.children import end_with_parent, teller; end_with_parent();"

STOPPED = f"""{FIRST}
def stop(number, _):
    open(sys.argv[1], "w").write(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
teller()({{"pid": os.getpid()}})
time.sleep(60)
"""
"""A child that stops well: it names itself, then waits to be ended, and leaves a file then."""


def python(code: str, *arguments: object) -> Command:
    return Command([sys.executable, "-S", "-c", code, *map(str, arguments)], {"PYTHONPATH": os.pathsep.join(sys.path)})


def test_what_is_told_and_said_arrives_whole_from_all_of_them():
    code = f"""{FIRST}
tell = teller()
for number in range(400):
    tell({{"number": number, "filling": "x" * 500}})
    print("printed", number)
    sys.stderr.write(f"said {{number}} by {{os.environ['WHO']}}\\n")
sys.stdout.flush()
sys.exit(int(sys.argv[1]))
"""
    commands = [python(code, code_) for code_ in (0, 7)]
    commands = [Command(own.words, {**own.environment, "WHO": str(number)}) for number, own in enumerate(commands)]
    with Children(commands) as running:
        messages = list(running.messages())
        assert running.codes == [0, 7]
    for child in range(2):
        told = [own.told["number"] for own in messages if own.child == child and own.told]
        said = [own.line for own in messages if own.child == child and own.told is None]
        assert told == list(range(400))
        assert sorted(said) == sorted([f"printed {n}" for n in told] + [f"said {n} by {child}" for n in told])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_stops_them_at_a_clean_point(tmp_path, error):
    files = [tmp_path / name for name in "ab"]
    running, heard = Children([python(STOPPED, file) for file in files]), set()
    with pytest.raises(error), running:
        for message in running.messages():
            heard.add(message.child)
            if heard == {0, 1}:
                raise error
    assert running.codes == [128 + signal.SIGTERM] * 2
    assert [file.read_text() for file in files] == [str(int(signal.SIGTERM))] * 2


def test_a_parent_that_is_killed_leaves_none_behind(tmp_path):
    parent = f"""
import sys
from losa_cache.children import Children, Command
with Children([Command([sys.executable, "-S", "-c", {STOPPED!r}, name], {{}}) for name in sys.argv[1:]]) as running:
    for message in running.messages():
        print(message.told["pid"], flush=True)
"""
    files = [tmp_path / name for name in "ab"]
    command = python(parent, *files)
    process = subprocess.Popen(command.words, env=os.environ | command.environment, stdout=subprocess.PIPE, text=True)
    numbers = [int(process.stdout.readline()) for _ in files]
    process.kill()
    process.communicate()
    until(lambda: not any(map(runs, numbers)))
    assert [file.read_text() for file in files] == [str(int(signal.SIGTERM))] * 2


def test_one_that_does_not_stop_is_ended(monkeypatch):
    monkeypatch.setattr(children, "GRACE", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('{}', flush=True); time.sleep(60)"
    with Children([python(code)]) as running:
        next(running.messages())
    assert running.codes == [-signal.SIGKILL]


def test_a_pipe_that_is_left_open_is_not_waited_for():
    with Children([Command(["sh", "-c", "sleep 20 & echo '{\"child\": '$!'}'; exit 3"], {})]) as running:
        (message,) = running.messages()
        assert running.codes == [3]
        os.kill(message.told["child"], 0)  # it holds both pipes still
        os.kill(message.told["child"], signal.SIGKILL)


def runs(number: int) -> bool:
    """Whether a process is there and has not ended: in a container nobody may ask how it did."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(done) -> None:
    for _ in range(3000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")
