"""One extraction by several processes of this machine: one for each GPU, or several on the CPU.

Each is started anew, with its own ``CUDA_VISIBLE_DEVICES``, before it imports anything: it sees one GPU alone. The
processes divide the work among themselves by claims (``losa_cache.cache.claims``). This one only counts and tells.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from losa_cache.cache.registry import remember
from losa_cache.cache.store import ActivationCache, open_cache
from losa_cache.children import Children, Command
from losa_cache.errors import UserError
from losa_cache.extract.config import ExtractConfig
from losa_cache.extract.meter import Meter
from losa_cache.extract.process_plan import Share, shares_of
from losa_cache.machine.device import default_workers
from losa_cache.machine.gpus import names_of_gpus, parse_gpus

WORKER = "losa_cache.extract.worker"
ERROR, STOPPED = "error: ", "stopped: "  # how a command begins its last line
COUNTED = ("images", "bytes")
TIMED = ("waited_decode", "waited_write", "forward", "encode", "copy", "write")

log = logging.getLogger(__name__)


def extract_in_processes(config: ExtractConfig, *, shard_bytes: int, meter: Meter) -> ActivationCache:
    """Extract as ``config.gpus`` or ``config.processes`` say; arguments as of :func:`losa_cache.extract`.

    Times of ``meter`` are means over the processes. What a process that failed had begun is taken over by the others.

    Raises:
        UserError: if a process failed and the cache is not complete, with that process's reason.
    """
    shares = _shares(config)
    outcome = _Outcome(shares, meter)
    with Children([command(share, len(shares), shard_bytes) for share in shares]) as children:
        for message in children.messages():
            if message.told is None:
                outcome.said(message.child, message.line)
            else:
                outcome.told(message.child, message.told)
    return outcome.cache([code or 0 for code in children.codes])


def _shares(config: ExtractConfig) -> list[Share]:
    if config.gpus is None:
        if config.device is None and torch.cuda.is_available():
            raise UserError(
                f"processes is {config.processes}, which divides the CPU, and this machine has a GPU: pass --gpus all, "
                "or --device cpu."
            )
        return shares_of(config, None, workers=default_workers(config.processes or 1))
    # counting begins no work on a GPU, which would take memory of it
    gpus = names_of_gpus(parse_gpus(config.gpus), torch.cuda.device_count(), os.environ)
    return shares_of(config, gpus, workers=default_workers(len(gpus)))


def command(share: Share, processes: int, shard_bytes: int) -> Command:
    """Give how one of several processes is started."""
    wanted = {"options": share.options, "shard_bytes": shard_bytes, "processes": processes}
    # -P: a module of the working directory must not take the place of a library's
    return Command([sys.executable, "-P", "-m", WORKER, json.dumps(wanted)], share.environment)


class _Outcome:
    """What comes of the processes: their figures in one meter, their lines in the log, their errors in one sentence."""

    def __init__(self, shares: Sequence[Share], meter: Meter) -> None:
        self._names, self._meter = [share.name for share in shares], meter
        self._figures: dict[int, dict[str, Any]] = {}
        self._errors: dict[int, str] = {}
        self._first: dict[str, int] = {}
        self._cache: str | None = None

    def told(self, child: int, told: dict[str, Any]) -> None:
        """Take the figures of a process, or the cache that it has written to."""
        if "cache" in told:
            self._cache = told["cache"]
        if not told.get("total"):  # nothing was missing
            return
        if not self._figures:
            self._meter.start(told["total"])
        self._figures[child] = told
        for name in COUNTED:
            setattr(self._meter, name, sum(own[name] for own in self._figures.values()))
        for name in TIMED:
            setattr(self._meter, name, sum(own[name] for own in self._figures.values()) / len(self._names))
        done = max(own["images"] + own["elsewhere"] for own in self._figures.values())  # also by other machines
        self._meter.elsewhere = max(0, done - self._meter.images)
        self._meter.update()

    def said(self, child: int, line: str) -> None:
        """Pass a line on, if no other process has said the same, and keep an error for the end."""
        if line.startswith(ERROR):
            self._errors[child] = line.removeprefix(ERROR)
        elif not line.startswith(STOPPED) and self._first.setdefault(line, child) == child:
            log.warning("%s: %s", self._names[child], line)

    def cache(self, codes: Sequence[int]) -> ActivationCache:
        """Open the cache, or say why it is not complete.

        Args:
            codes: of the processes, which have ended.

        Raises:
            UserError: if one failed, and no other could finish the cache.
            RuntimeError: if that was a mistake of ours.
        """
        failed = {child: self._sentence(child, code) for child, code in enumerate(codes) if code}
        cache = None if self._cache is None else open_cache(self._cache, incomplete=True)
        if cache is None or (failed and not cache.manifest.complete):
            raise self._failure(failed, codes)
        for child, sentence in failed.items():
            log.warning("%s failed, and the others did its part: %s", self._names[child], sentence)
        idle = len(codes) - sum(own["images"] > 0 for own in self._figures.values())
        if self._meter.images and idle:
            log.warning("%d of %d processes had nothing to write: the cache has too few shards.", idle, len(codes))
        if self._meter.images == cache.layout.samples:  # not a part that was left
            remember(cache.path, cache.manifest, seconds=self._meter.seconds)
        return cache

    def _failure(self, failed: Mapping[int, str], codes: Sequence[int]) -> Exception:
        """Make one error of the reasons of all: the first, with what is left; other ones are logged.

        What processes wrote of shards that they did not finish is not known here.
        """
        first, *others = failed
        for child in others:
            if failed[child] != failed[first]:
                log.warning("%s failed: %s", self._names[child], failed[child])
        same = len(failed) == len(codes) and len(set(failed.values())) == 1
        reason = f"{'' if same else f'{self._names[first]}: '}{failed[first].rstrip('.')}"
        if total := self._meter.total:
            done = self._meter.images + self._meter.elsewhere
            reason += f"; at least {max(0, total - done)} of {total} images are left for the same command"
        return (RuntimeError if codes[first] == 1 else UserError)(f"{reason}.")

    def _sentence(self, child: int, code: int) -> str:
        if child in self._errors:
            return self._errors[child]
        if code == -signal.SIGKILL:
            return "it was killed, as the system does where memory runs out."
        if (number := -code if code < 0 else code - 128) > 0:
            return f"it was ended by signal {number}."
        return f"it failed with exit code {code}; the lines above say why."
