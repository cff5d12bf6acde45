import pytest

from losa_cache.probe.logistic import PATH
from losa_cache.sweep.engine import probes


@pytest.fixture(scope="module")
def scheduler():
    """A scheduler with three workers, all in this process: what they share is the protocol, not the memory of jobs."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=3, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp", memory_limit=None
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(autouse=True)
def _few_values_of_c(monkeypatch):
    """Fit the line to beat, which every sweep has, at few values of C."""
    monkeypatch.setattr(probes, "PATH", PATH[:25:8])
