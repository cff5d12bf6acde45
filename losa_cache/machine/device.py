"""Choice of the device and of the number of worker threads."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from losa_cache.errors import UserError
from losa_cache.machine.device_names import require_device_name


def choose_device(name: str | None = None) -> torch.device:
    """Give the named device; by default the GPU if there is one, else the CPU.

    Raises:
        UserError: for a name that torch does not know or a device that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    require_device_name(name)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try --device cpu.") from error
    return device


def machine() -> str:
    """Name what computes, and torch's version."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{device}, torch {torch.__version__}"


def device_kind(device: torch.device) -> str:
    """Name the kind of a device: two of one kind compute the same numbers."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def default_workers(processes: int = 1) -> int:
    """Give the threads or processes that decode: one for each core that this process may use, at most 16.

    Args:
        processes: that share the cores; each decodes with so many.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, usable // processes))


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies matrices in bfloat16 natively (3.6 x the float32 speed on AMX, for one)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16"))


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Give a new stream of a GPU; ``None`` for a CPU, which has none."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def on_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """Run what is launched in this context on a stream of the GPU."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)
