r"""Every figure and every test that needs a GPU, on any CUDA machine, the most valuable first.

    python benchmarks/gpu.py [--minutes 8] [--only PART ...] [--out FILE]
    python benchmarks/gpu.py --tiny      # the same code in tiny sizes, for a machine without a GPU

Prints a JSON line for each measurement as soon as it is made, and adds it to FILE: a run that is cut at any moment
tells what it has. Each part takes its share of the time that is left; what it does not use is the next one's. Random
weights and activations throughout: nothing is downloaded. Parts, in order:

    card        the card's name, versions, and what its memory and its matrix products reach
    tests       ``pytest -m cuda``
    step        a training step: eager, as a CUDA graph, with Triton kernels, both; plain, plain compiled; its limit
    stacks      K trials in one step, beside one
    extraction  the forward pass bare and encoded; from images in memory to the disk
    residency   an epoch from the device's memory, the host's, the disk, part in either; online
    lora        LoSA beside LoRA (PEFT) and the bare forward pass
    methods     what each method of `losa-cache pareto` costs
    video       the paper's Table 2, in 16 GB and in all there is
    budget      ViT-e through 4 GB

A part runs in a process that is watched: where it hangs or dies, a new one goes on with the part after it.

On a machine without a package index
------------------------------------
Needed are torch, torchvision, timm, numpy, pillow, safetensors, tensorboard, typer, rich, scikit-learn, pytest and
hypothesis, for LoRA peft, for sweeps matplotlib; a C compiler and Python's headers for Triton. What a machine made for
PyTorch often lacks is carried as wheels:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 \
        --abi none --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 -c constraints.txt -d wheels \
        zarr numcodecs donfig google-crc32c dask partd locket obstore optuna alembic colorlog mako sqlalchemy

(18 MB; toolz, fsspec, cloudpickle, click, pyyaml, packaging, tqdm, markupsafe and typing-extensions, which they want,
come with the packages above as a rule.) Then, in the repository's folder there:

    pip install --no-index --no-deps wheels/*.whl
    pip install --no-index --no-deps --no-build-isolation --editable .     # setuptools 77 or later
    python benchmarks/gpu.py --minutes 8 --out figures.jsonl
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

SHARES = {
    "card": 0.04,
    "tests": 0.28,
    "step": 0.20,
    "stacks": 0.08,
    "extraction": 0.14,
    "residency": 0.10,
    "lora": 0.04,
    "methods": 0.10,
    "video": 0.08,
    "budget": 0.04,
}
"""Parts in order, and what share of the time each may take."""
GRACE = 45.0  # seconds that a part may be late: a measurement is not interrupted
LEAST = 5.0  # seconds that are worth another process
Line = dict[str, Any]
Emit = Callable[[Line], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", nargs="+", choices=SHARES, help="parts to run; default: all")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, as where there is no GPU")
    parser.add_argument("--out", type=Path, help="file to add the lines to")
    arguments = parser.parse_args()
    if not arguments.tiny and not gpu_there():
        parser.error("no GPU was found: pass --tiny to run the same code in tiny sizes.")
    if not arguments.minutes > 0:
        parser.error(f"--minutes is {arguments.minutes}: it must be more than 0.")
    if arguments.out is not None and not arguments.out.parent.is_dir():
        parser.error(f"--out {str(arguments.out)!r}: there is no such folder.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process that measures is ended, too
    started = time.time()
    with open(arguments.out or os.devnull, "a") as file:

        def emit(line: Line) -> None:
            text = json.dumps({"at_s": round(time.time() - started, 1), **shortened(line)})
            print(text, flush=True)
            print(text, file=file, flush=True)

        left = [part for part in SHARES if part in (arguments.only or SHARES)]
        end = started + 60 * arguments.minutes
        script = [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), "--end", str(end)]
        script += ["--tiny"] if arguments.tiny else []
        while left and end - time.time() > LEAST:
            left = measure([*script, "--parts", *left], left, emit, grace=GRACE)


def gpu_there() -> bool:
    """Ask torch in a process of its own, so that this one holds nothing of the GPU."""
    question = [sys.executable, "-c", "import torch; exit(not torch.cuda.is_available())"]
    return subprocess.run(question, check=False).returncode == 0


def measure(command: list[str], parts: list[str], emit: Emit, *, grace: float) -> list[str]:
    """Run parts in a process, until all are done or one of them hangs or dies, and return those that are left.

    Args:
        command: prints a line with each part's ``allotted_s``, seconds, when it begins, and one for each figure.
        parts: that it runs, in order.
        emit: is given the lines.
        grace: seconds that a part may be late; the first may be late by that much twice, for imports.
    """
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile("w+") as complaints, tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=os.environ | {"LOSA_CACHE_HOME": home, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,
        )
        assert process.stdout is not None
        lines, reader = follow(process.stdout)
        at, late = parts[0], time.time() + 2 * grace
        try:
            while (line := lines.get(timeout=max(0.1, late - time.time()))) is not None:
                at = line["part"]
                if "allotted_s" in line:
                    late = time.time() + line["allotted_s"] + grace
                emit(line)
            if process.wait() == 0:
                return []
            reason = f"the process ended with {process.returncode}"
        except queue.Empty:
            reason = "it took too long, and was ended"
        finally:
            end_group(process)
            reader.join(grace)
        complaints.seek(0)
        emit({"part": at, "error": reason, "said": complaints.read().splitlines()[-12:]})
        return parts[parts.index(at) + 1 :]


def shortened(value: Any) -> Any:
    """Round numbers to four digits, within lists and dicts too."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: shortened(own) for name, own in value.items()}
    return [*map(shortened, value)] if isinstance(value, list) else value


def follow(stream: IO[str]) -> tuple["queue.Queue[Line | None]", threading.Thread]:
    """Read a stream's JSON lines on a thread of its own; ``None`` is the end, at which it is closed."""
    lines: queue.Queue[Line | None] = queue.Queue()

    def read() -> None:
        with stream:
            for text in stream:
                if text.startswith('{"part"'):
                    lines.put(json.loads(text))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return lines, reader


def end_group(process: "subprocess.Popen[str]") -> None:
    """End a process and those that it started, also where it has ended itself."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    main()
