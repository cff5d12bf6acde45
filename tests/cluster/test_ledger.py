"""Which job goes to which worker, without a cluster."""

from losa_cache.cluster.ledger import ATTEMPTS, DEPTH, LOST, Job, Ledger
from losa_cache.cluster.software import Software
from losa_cache.extract.on_cluster import divide


def filled(jobs, *workers):
    ledger = Ledger()
    for worker in workers:
        ledger.join(worker)
    made = [Job(print, (), f"job {number}") for number in range(jobs)]
    for job in made:
        ledger.add(job)
    return ledger, made


def given(ledger):
    return [(job.name, worker) for job, worker in iter(ledger.give, None)]


def test_each_worker_has_few_jobs_and_gets_the_next_when_one_is_done():
    ledger, jobs = filled(9, "a", "b")
    assert given(ledger) == [("job 0", "a"), ("job 1", "b"), ("job 2", "a"), ("job 3", "b")]
    assert all(len(own) == DEPTH for own in ledger.at.values())
    ledger.done(jobs[3], "b", "result")
    assert (jobs[3].over, jobs[3].result) == (True, "result")
    assert given(ledger) == [("job 4", "b")]
    ledger.join("late")
    assert given(ledger) == [("job 5", "late"), ("job 6", "late")]


def test_a_lost_worker_is_blamed_on_the_job_that_it_had_first():
    ledger, jobs = filled(3, "a")
    given(ledger)
    ledger.leave("a")
    assert [job.failures for job in jobs] == [[f"a: {LOST}"], [], []]
    assert given(ledger) == []
    ledger.join("b")
    assert sorted(name for name, _ in given(ledger)) == ["job 0", "job 1"]


def test_a_job_fails_elsewhere_before_it_fails_for_good():
    ledger, (job,) = filled(1, "a", "b")
    tried = []
    while not job.over:
        _, worker = ledger.give()
        tried.append(worker)
        ledger.failed(job, worker, "the disk is full.")
    assert len(tried) == ATTEMPTS == 3
    assert {*tried[:2]} == {"a", "b"}
    assert job.failures == [f"{worker}: the disk is full." for worker in tried]
    assert ledger.give() is None
    assert ledger.at == {"a": [], "b": []}


def test_a_job_goes_where_its_data_are_unless_others_are_idle():
    ledger, jobs = filled(2, "a", "b")
    jobs[0].prefer = jobs[1].prefer = "b"
    assert given(ledger) == [("job 0", "b"), ("job 1", "a")]


def test_other_code_is_named():
    ours = Software.here()
    assert ours.difference(ours) is None
    older = Software(ours.code, {**ours.versions, "torch": "1.0"})
    assert ours.difference(older) == f"it has torch 1.0, not {ours.versions['torch']}: install that version there"
    assert "sha256 abc" in ours.difference(Software("abc", ours.versions))


def test_jobs_are_neighbours_and_every_unit_is_in_one():
    for count, workers in ((1, 64), (7, 2), (1000, 3), (225_000, 64)):
        jobs = divide([3 * unit for unit in range(count)], workers)
        assert [unit for job in jobs for unit in job] == [3 * unit for unit in range(count)]
        assert max(map(len, jobs)) <= 64
        assert len(jobs) >= min(count, 16 * workers)
