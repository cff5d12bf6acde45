"""Choice of the fastest of several ways to do the same on this GPU: it is measured once and remembered."""

import hashlib
import logging
import shutil
import statistics
import sysconfig
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from losa_cache.files import write_json
from losa_cache.folders import find_home
from losa_cache.outside import UnreadableError, read_json

log = logging.getLogger(__name__)

OLDEST = (8, 0)  # compute capability of Triton's bfloat16
REPEATS = 7
Work = Callable[[], object]


def fastest(what: str, ways: Mapping[str, Work], device: torch.device) -> str:
    """Name the fastest way, by a measurement on the first call and by a note of it afterwards.

    The note is a small file below ``$LOSA_CACHE_HOME/fastest``, one for each piece of work, so that processes do not
    overwrite each other's. It names the GPU and the versions of torch and Triton, so that another GPU or version
    measures again. A resumed run finds the same note, and therefore computes in the same way.

    Args:
        what: the work, with all sizes that decide which way wins.
        ways: the ways, by name; none may change what another one reads. A way that raises is not chosen.
        device: a CUDA device.

    Raises:
        RuntimeError: if every way raises, with the message of the last one.
        torch.OutOfMemoryError: if a way finds no memory. Then nothing is chosen, because there may be memory next time.
    """
    key = " | ".join([what, torch.cuda.get_device_name(device), torch.__version__, _triton_version()])
    if (known := _noted(key)) in ways:
        return str(known)
    seconds: dict[str, float] = {}
    last: Exception | None = None
    for name, work in ways.items():
        try:
            seconds[name] = _milliseconds(work, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler that fails, whatever it raises
            last = error
            log.info("%s: the way %r cannot be used (%s: %s).", what, name, type(error).__name__, error)
    if not seconds:
        raise RuntimeError(f"none of {', '.join(ways)} works for {what} ({last})") from last
    chosen = min(seconds, key=lambda name: seconds[name])
    log.info("%s: %s.", what, ", ".join(f"{name} {ms:.3f} ms" for name, ms in seconds.items()))
    _note(key, chosen)
    return chosen


def why_not_triton(device: torch.device) -> str | None:
    """Say why Triton's kernels cannot run on a device; ``None`` if they can."""
    if device.type != "cuda":
        return "they need a CUDA device"
    return _missing(device)


@cache
def _missing(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return "the GPU has no bfloat16"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "Triton needs a C compiler, and none is installed"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Triton needs Python's header files (the system's package python3-dev)"
    return None


def _milliseconds(work: Work, device: torch.device) -> float:
    work()  # compiles
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _triton_version() -> str:
    return version("triton") if find_spec("triton") is not None else "no triton"


def _path(key: str) -> Path | None:
    """Name the note; there is none where this user has no home folder."""
    home = find_home()
    return home and home / "fastest" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _noted(key: str) -> str | None:
    """Find what was noted; a file that is none of ours says nothing."""
    path = _path(key)
    try:
        found = {} if path is None else read_json(path, dict[str, Any])
    except UnreadableError:
        return None
    chosen = found.get("fastest") if found.get("work") == key else None
    return chosen if isinstance(chosen, str) else None


def _note(key: str, chosen: str) -> None:
    """Write a note; a folder that cannot be written costs another measurement, no more."""
    path = _path(key)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"work": key, "fastest": chosen})
    except OSError as error:
        log.info("%s cannot be written (%s): the choice is measured again next time.", path, error.strerror)
