"""Joules from RAPL's counters, which are files here as Linux lists them."""

import pytest
import torch

from losa_cache.machine.energy import EnergyMeter

CPU = torch.device("cpu")


def zone(folder, name, kind, microjoules, most=262_143_328_850):
    """Write a counter as Linux does."""
    place = folder / name
    place.mkdir(exist_ok=True)
    (place / "name").write_text(f"{kind}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text(f"{most}\n")


def test_packages_and_their_memory_are_added_and_their_parts_are_not(tmp_path):
    kinds = {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}
    for name, kind in kinds.items():
        zone(tmp_path, f"intel-rapl:{name}", kind, 5_000_000)
    meter = EnergyMeter(CPU, zones=tmp_path)
    for at, (name, kind) in enumerate(kinds.items()):
        zone(tmp_path, f"intel-rapl:{name}", kind, 5_000_000 + 10**at * 1_000_000)
    assert meter.take() == {"cpu_joules": pytest.approx(1 + 100 + 1000)}
    assert meter.take() == {"cpu_joules": 0}


def test_a_counter_that_begins_again_goes_on(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 95_000_000, most=100_000_000)
    meter = EnergyMeter(CPU, zones=tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 3_000_000, most=100_000_000)
    assert meter.take() == {"cpu_joules": pytest.approx(8)}


def test_nothing_is_told_where_not_all_can_be_read(tmp_path):
    assert EnergyMeter(CPU, zones=tmp_path / "nowhere").take() == {}
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    zone(tmp_path, "intel-rapl:1", "package-1", 1)
    meter = EnergyMeter(CPU, zones=tmp_path)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.take() == {}
    assert EnergyMeter(CPU, zones=tmp_path).take() == {}
    zone(tmp_path, "intel-rapl:1", "package-1", 1)
    assert meter.take() == {}
