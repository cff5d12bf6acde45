import pytest


@pytest.fixture(scope="module")
def scheduler():
    """A scheduler with three workers, all in this process: what they share is the protocol, not the memory of jobs."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=3, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp", memory_limit=None
    ) as cluster:
        yield cluster.scheduler_address
