"""Energy that processors and a GPU have taken, where the system tells it: RAPL's and NVML's own counters.

RAPL counts the processors' packages and their memory, with whatever else they compute; Linux lets only root read it
unless somebody has allowed more. NVML counts the whole GPU.
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ZONES = Path("/sys/class/powercap")
CPU, GPU = "cpu_joules", "gpu_joules"


@dataclass
class _Counter:
    """A counter that only grows, but for where it begins again.

    Attributes:
        name: ``CPU`` or ``GPU``.
        read: gives joules.
        range: joules after which it begins again.
        last: what was read last.
    """

    name: str
    read: Callable[[], float]
    range: float
    last: float

    def take(self) -> float:
        """Give the joules since the last call. It must come before the range is used up twice."""
        now = self.read()
        passed, self.last = now - self.last, now
        return passed if passed >= 0 else passed + self.range


class EnergyMeter:
    """Joules since they were last asked for.

    Args:
        device: that computes.
        zones: where Linux lists RAPL's counters.
    """

    def __init__(self, device: torch.device, *, zones: Path = ZONES) -> None:
        self._counters = _processors(zones)
        if device.type == "cuda" and (gpu := _gpu(device)) is not None:
            self._counters.append(gpu)

    def take(self) -> dict[str, float]:
        """Give the joules since the last call, or since the meter was made.

        A package's counter begins again after some 260 kJ, so ask for it more often than that is used.

        Returns:
            ``cpu_joules`` and ``gpu_joules``, those of them that can be read.
        """
        found: dict[str, float] = {}
        for counter in list(self._counters):
            try:
                found[counter.name] = found.get(counter.name, 0.0) + counter.take()
            except (OSError, ValueError):  # it was taken away: a sum without it would mislead
                self._counters = [other for other in self._counters if other.name != counter.name]
        names = {counter.name for counter in self._counters}
        return {name: value for name, value in found.items() if name in names}


def _processors(zones: Path) -> list[_Counter]:
    """Find the counters of all packages and of their memory; none where one of the packages cannot be read."""
    found = []
    for zone in sorted(zones.glob("intel-rapl:*")):  # of AMD's processors, too
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith(("package-", "dram")):
                continue  # cores are part of a package, and psys holds packages
            read = _reader(zone / "energy_uj")
            found.append(_Counter(CPU, read, int((zone / "max_energy_range_uj").read_text()) / 1e6, read()))
        except (OSError, ValueError):
            return []
    return found


def _reader(file: Path) -> Callable[[], float]:
    return lambda: int(file.read_text()) / 1e6


def _gpu(device: torch.device) -> _Counter | None:
    """Find the counter of a GPU: those of NVIDIA have one since Volta, but for parts of a GPU."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        handle = ctypes.c_void_p()
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)):
            return None

        def read() -> float:
            millijoules = ctypes.c_ulonglong()
            if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
                raise OSError("NVML has no such counter")
            return millijoules.value / 1000

        return _Counter(GPU, read, math.inf, read())
    except (OSError, AttributeError):
        return None
