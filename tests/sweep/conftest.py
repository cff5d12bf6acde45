import pytest

from losa_cache.probe.logistic import PATH
from losa_cache.sweep.engine import probes


@pytest.fixture(autouse=True)
def _few_values_of_c(request, monkeypatch):
    """Four values of C, 1 at most, for the line to beat, which every sweep fits; test_probes.py holds it to the whole path."""
    if request.path.name != "test_probes.py":
        monkeypatch.setattr(probes, "PATH", PATH[:25:8])
