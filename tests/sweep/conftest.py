import pytest


@pytest.fixture(autouse=True)
def _no_figures(request):
    """Figures are for the tests of the report."""
    if request.path.name != "test_report.py":
        request.getfixturevalue("no_figures")


@pytest.fixture(autouse=True)
def _few_values_of_c(request):
    """Fit the line to beat, which every sweep has, at few values of C; test_probes.py holds it to the whole path."""
    if request.path.name != "test_probes.py":
        request.getfixturevalue("few_values_of_c")
