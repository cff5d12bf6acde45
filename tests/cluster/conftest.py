import pytest


@pytest.fixture(scope="session")
def scheduler():
    """A scheduler with three workers, all in this process: what they share is the protocol, not the memory of jobs."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=3, threads_per_worker=2, processes=False, dashboard_address=None, scheduler_port=0, protocol="tcp"
    ) as cluster:
        yield cluster.scheduler_address
