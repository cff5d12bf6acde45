"""``losa-cache serve`` as a command: what it refuses, and how it stops."""

import os
import signal
import socket
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path

import pytest
import torch

import losa_cache as lc
from losa_cache.apply.serve.adapter_dir import AdapterDir
from losa_cache.apply.serve.config import ServeConfig
from losa_cache.apply.serve.listen import bind
from losa_cache.data.load import load_samples
from losa_cache.errors import UserError
from tests.apply.serving import ask, png, until
from tests.forked import Forked


def test_options_that_cannot_work_are_refused():
    for options, words in (
        ({"port": 70000}, "port is 70000"),
        ({"max_batch": 0}, "max-batch is 0"),
        ({"max_wait_ms": -1.0}, "max-wait-ms is -1"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"max_pixels": 10**9}, "max-pixels is 1000000000"),
    ):
        with pytest.raises(UserError, match=words):
            ServeConfig(**options)
    with pytest.raises(UserError, match=r"adapter-dir is '/no/folder', where no folder is"):
        AdapterDir("/no/folder")
    with pytest.raises(UserError, match=r"host 'no\.such\.host\.invalid' cannot be found"):
        bind("no.such.host.invalid", 0)


def test_a_port_in_use_is_refused_before_torch_is_imported(folder):
    code = "import sys; sys.modules['torch'] = None; from losa_cache.__main__ import main; main()"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = ["serve", str(folder / "first"), "--port", str(port)]
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: port {port} of '127.0.0.1' is in use: choose another with --port, or end what uses it.\n"
    )


@pytest.mark.slow
def test_a_signal_lets_what_was_accepted_finish(digits, tmp_path):
    """By the command line, on the embedded backbone: with the answer that the adapter makes of the cache."""
    lc.train(digits["train"], epochs=1, rank=2, device="cpu", val_fraction=0, out=tmp_path / "run")
    adapter, scans = lc.load_adapter(tmp_path / "run", device="cpu"), load_samples("digits", split="test")
    with lc.batches(digits["test"], points=adapter.points, shuffle=False, batch_size=1, device="cpu") as batches:
        batch = next(iter(batches))
    with torch.inference_mode():
        likely = adapter(batch.blocks)[0].double().softmax(0)
    scan = png(scans.load(scans.ids.index(batch.ids[0])))
    options = ["--port", "0", "--max-wait-ms", "2000", "--device", "cpu"]
    server = Forked("-m", "losa_cache", "serve", f"digits={tmp_path / 'run'}", *options, env=os.environ)
    printed = Path(server._printed[0].name)
    until(lambda: "http://" in printed.read_text() or server.poll() is not None)
    port = int(printed.read_text().split("  (")[0].rpartition(":")[2])
    found = []
    thread = threading.Thread(target=lambda: found.append(ask(port, "/predict", scan)))
    thread.start()
    until(lambda: ask(port, "/health")[1]["waiting"] == 1)
    server.send_signal(signal.SIGTERM)
    thread.join()
    server.wait()
    assert found[0][0] == 200
    answer = {own["class"]: own["probability"] for own in found[0][1]["predictions"]["digits"]}
    served = torch.tensor([answer[name] for name in adapter.classes], dtype=torch.float64)
    assert torch.allclose(served, likely, atol=0.01)  # the cache is of bfloat16
    assert server.returncode == 0, server.stderr
    assert "stopping: what was accepted is answered first" in server.stdout
    with pytest.raises(ConnectionRefusedError):
        HTTPConnection("127.0.0.1", port).request("GET", "/health")
