import pytest

from losa_cache.probe.logistic import PATH
from losa_cache.sweep.engine import probes


@pytest.fixture(autouse=True)
def _no_figures(request):
    """Figures are for the tests of the report."""
    if request.path.name != "test_report.py":
        request.getfixturevalue("no_figures")


@pytest.fixture(autouse=True)
def _few_values_of_c(request, monkeypatch):
    """Fit the line to beat, which every sweep has, at four values of C; test_probes.py holds it to the whole path."""
    if request.path.name != "test_probes.py":
        monkeypatch.setattr(probes, "PATH", PATH[:25:8])
