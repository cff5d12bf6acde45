"""A server under load: nothing lost, how long requests take, and its throughput beside the model's own loop.

    python benchmarks/serve.py [--seconds 60] [--clients 200] [--beside 64] [--adapters 2] [--backbone vit_digits]

Adapters are trained for an epoch on the digits, on the embedded backbone or on random weights of another, and served
by ``losa-cache serve`` in a process of its own. Each client keeps a connection and sends an image as soon as the one
before is answered. The clients run in this process, on the same cores as the server. Beside it stands a loop without
HTTP: threads that decode the same JPEG files, and ``lc.AdaptedModel`` on batches of the same size. It runs before and
after the server's turn, so that a slower minute of the machine does not fall on one of them alone. CPU times an image
stand beside the rates: other work on the machine, and the clients, change them less.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from statistics import mean, quantiles
from time import perf_counter, process_time

import torch
from PIL import Image

import losa_cache as lc
from losa_cache.apply.open import backbone_for
from losa_cache.data.load import load_samples
from losa_cache.machine.device import choose_device, default_workers, machine

EMBEDDED = "vit_digits"
KINDS = 16  # different images that are sent


@dataclass
class Load:
    """What came of the requests of many clients."""

    sent: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return self.sent - self.statuses.total()

    def __str__(self) -> str:
        cuts = quantiles(self.latencies, n=1000) if len(self.latencies) > 1 else [0.0] * 999
        times = ", ".join(f"p{name} {1e3 * cuts[at]:.0f} ms" for name, at in (("50", 499), ("90", 899), ("99", 989)))
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"{self.sent} requests in {self.seconds:.1f} s, {self.lost} lost; answers: {answers}; "
            f"{self.statuses[200] / self.seconds:.0f} images/s; {times}, longest {1e3 * max(self.latencies):.0f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=EMBEDDED)
    parser.add_argument("--adapters", type=int, default=2)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--beside", type=int, default=64, help="clients of the run that is compared with the loop")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--max-wait-ms", type=float, default=5)
    parser.add_argument("--image-size", type=int, default=256, help="pixels of a side of the JPEG files")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOSA_CACHE_HOME"] = f"{folder}/home"
        runs = trained(Path(folder), arguments)
        files = jpegs(arguments.image_size)
        options = f"--max-batch {arguments.max_batch} --max-wait-ms {arguments.max_wait_ms} --queue 512".split()
        if arguments.device:
            options += ["--device", arguments.device]
        print(f"{machine()}; {arguments.backbone}, {len(runs)} adapters, batches of at most {arguments.max_batch}")
        loop = Loop(runs, files, arguments)
        before = loop.rate(arguments.seconds / 4)
        with server(runs, options) as (port, pid):
            asyncio.run(load(port, files, 4, 1.0))  # warm up
            many = asyncio.run(load(port, files, arguments.clients, arguments.seconds))
            busy = cpu_seconds(pid)
            some = asyncio.run(load(port, files, arguments.beside, arguments.seconds / 2))
            busy = cpu_seconds(pid) - busy
        after = loop.rate(arguments.seconds / 4)
    print(f"{arguments.clients} clients: {many}")
    print(f"{arguments.beside} clients: {some}")
    own, rate = mean([before[0], after[0]]), some.statuses[200] / some.seconds
    print(
        f"the loop without HTTP: {before[0]:.0f} and {after[0]:.0f} images/s; the server reaches {rate / own:.2f} of it"
    )
    alone, served = 1e3 * mean([before[1], after[1]]), 1e3 * busy / some.statuses[200]
    print(f"CPU time an image: server {served:.2f} ms, loop {alone:.2f} ms ({alone / served:.2f} of the server's)")
    if many.lost or some.lost or {*many.statuses, *some.statuses} != {200}:
        sys.exit("requests were lost or refused")


def trained(folder: Path, arguments: argparse.Namespace) -> list[Path]:
    """Train the adapters."""
    weights = "pretrained" if arguments.backbone == EMBEDDED else "random"
    options = {"limit": 64, "device": arguments.device, "out": folder / "cache.zarr"}
    cache = lc.extract(arguments.backbone, "digits", weights=weights, **options)
    runs = [folder / f"adapter-{seed}" for seed in range(arguments.adapters)]
    for seed, run in enumerate(runs):
        lc.train(cache, epochs=1, rank=8, seed=seed, val_fraction=0, device=arguments.device, out=run)
    return runs


def jpegs(side: int) -> list[bytes]:
    """Give JPEG files of digits, drawn larger."""
    samples, files = load_samples("digits", split="test"), []
    for place in range(KINDS):
        file = BytesIO()
        samples.load(place).convert("RGB").resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG")
        files.append(file.getvalue())
    return files


class Loop:
    """The same images through the same model without a server: threads decode ahead of batches.

    Args:
        runs: of the adapters.
        files: the images, sent over and over.
        arguments: of the command.
    """

    def __init__(self, runs: Sequence[Path], files: Sequence[bytes], arguments: argparse.Namespace) -> None:
        adapters = {run.name: lc.load_adapter(run, device=arguments.device) for run in runs}
        backbone = backbone_for(adapters, device=choose_device(arguments.device))
        self._model, self._transform = lc.AdaptedModel(backbone, adapters), backbone.input.transform()
        self._files, self._batch = files, arguments.max_batch

    def rate(self, seconds: float) -> tuple[float, float]:
        """Run for so long; give images a second, and seconds of CPU time an image."""
        with ThreadPoolExecutor(default_workers()) as pool:
            ready = self._batches(pool)
            self._answer(next(ready))  # warm up
            started, busy, images = perf_counter(), process_time(), 0
            while perf_counter() - started < seconds:
                images += self._answer(next(ready))
            return images / (perf_counter() - started), (process_time() - busy) / images

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[torch.Tensor]:
        files = cycle(self._files)

        def begun() -> list[Future[torch.Tensor]]:
            return [pool.submit(self._decode, raw) for raw in islice(files, self._batch)]

        ahead = [begun(), begun()]
        while True:
            ahead.append(begun())
            yield torch.stack([future.result() for future in ahead.pop(0)])

    def _decode(self, raw: bytes) -> torch.Tensor:
        return torch.as_tensor(self._transform(Image.open(BytesIO(raw))))

    def _answer(self, pixels: torch.Tensor) -> int:
        for name, logits in self._model(pixels).items():
            adapter = self._model.adapters[name]
            adapter.task.answers(adapter.task.predictions(logits[None])[0], adapter.classes, 5)
        return len(pixels)


@contextmanager
def server(runs: Sequence[Path], options: Sequence[str]) -> Generator[tuple[int, int], None, None]:
    """Run ``losa-cache serve``; give its port and its process. It must end well when it is told to."""
    command = [sys.executable, "-m", "losa_cache", "serve", *map(str, runs), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield int(line.split("  (")[0].rpartition(":")[2]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        if status := process.wait():
            print(f"the server ended with exit code {status}")


def cpu_seconds(pid: int) -> float:
    """Give the CPU time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, files: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Send requests from so many clients for so long."""
    found, started = Load(), perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(_client(port, files[number % len(files)], started + seconds, found))
    found.seconds = perf_counter() - started
    return found


async def _client(port: int, file: bytes, end: float, found: Load) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(file)}\r\n\r\n".encode() + file
    try:
        while (started := perf_counter()) < end:
            found.sent += 1
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
            found.statuses[int(head.split()[1])] += 1
            found.latencies.append(perf_counter() - started)
    except (OSError, EOFError) as error:  # it counts as lost
        print(f"a connection broke: {error}")
    finally:
        writer.close()


if __name__ == "__main__":
    main()
