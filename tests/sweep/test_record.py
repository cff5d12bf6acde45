"""What is read off a sweep: pure."""

import json
import statistics
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losa_cache.sweep.engine.record import SweepRecord, effects, pareto_front, seed_groups, seed_spread
from losa_cache.sweep.report.findings import findings, say
from losa_cache.tasks.measures.metric import standard_error
from tests.sweep.records import sweep, trial

TEST = {"on": "t.zarr", "split": "test", "samples": 500, "top1": 80.0, "top5": 99.0, "loss": 0.5, "retrained": True}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6))))
def test_the_front_is_what_no_other_point_beats(points):
    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    front = pareto_front(points)
    assert set(front) == {i for i, point in enumerate(points) if not any(beats(other, point) for other in points)}
    assert len(set(front)) == len(front)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


@given(st.lists(st.tuples(st.sampled_from([2, 4]), st.integers(0, 3), st.floats(0, 100)), min_size=1))
def test_trials_that_differ_in_their_seed_alone_belong_together(drawn):
    drawn = list({(rank, seed): (rank, seed, value) for rank, seed, value in drawn}.values())
    groups = seed_groups([trial(n, value, rank=r, seed=s) for n, (r, s, value) in enumerate(drawn)])
    expected = {
        rank: [value for _, _, value in members] for rank, members in groupby(sorted(drawn), key=lambda item: item[0])
    }
    assert {group.options["rank"]: sorted(group.values) for group in groups} == {
        rank: sorted(values) for rank, values in expected.items()
    }
    assert [group.mean for group in groups] == sorted((group.mean for group in groups), reverse=True)
    for group in groups:
        values = expected[group.options["rank"]]
        assert group.mean == pytest.approx(statistics.mean(values))
        assert group.deviation == (pytest.approx(statistics.stdev(values), abs=1e-9) if len(values) > 1 else None)


def test_the_spread_over_seeds_is_pooled():
    trials = [trial(n, v, rank=2, seed=n) for n, v in enumerate([80.0, 82.0, 84.0])]
    trials += [trial(n + 3, v, rank=4, seed=n) for n, v in enumerate([90.0, 91.0])]
    trials += [trial(5, 10.0, rank=8, seed=0), trial(6, 90.0, rank=4, seed=0)]  # alone; and a seed a second time
    spread = seed_spread(seed_groups(trials))
    assert spread.deviation == pytest.approx(((2 * 4 + 1 * 0.5) / 3) ** 0.5)
    assert (spread.groups, spread.trials) == (2, 5)
    assert seed_spread(seed_groups(trials[5:6])) is None


def test_only_trials_that_ran_to_their_end_are_compared():
    trials = [
        trial(0, 80.0, rank=2, seed=0),
        trial(1, 99.0, rank=2, seed=1, state="pruned"),
        trial(2, rank=2, seed=2),
        trial(3, 99.0, rank=4, state="running"),
    ]
    (group,) = seed_groups(trials)
    assert (group.values, group.ended) == ([80.0], 2)
    two, four = effects(trials)[0].levels
    assert (two.values, two.ended, two.mean) == ([80.0], 2, 80.0)
    assert (four.values, four.ended, four.mean, four.low, four.high) == ([], 1, None, None, None)


def test_effects_are_of_what_varied_but_the_seed():
    trials = [
        trial(0, 80.0, layers="12", lr=1e-3, rank=1, seed=0),
        trial(1, 84.0, layers="4", lr=1e-3, rank=2, seed=1),
        trial(2, 90.0, layers="all", lr=1e-3, rank=3, seed=2),
        trial(3, 70.0, layers="4", lr=1e-3, rank=4, seed=3),
    ]
    layers, rank = effects(trials)
    assert (layers.name, rank.name) == ("layers", "rank")
    assert [level.value for level in layers.levels] == ["4", "12", "all"]
    assert (layers.levels[0].mean, layers.levels[0].low, layers.levels[0].high) == (77.0, 70.0, 84.0)
    assert not rank.continuous
    many = [trial(n, 80.0 + n, lr=1e-3 * (n + 1), layers=[n, 12]) for n in range(9)]
    lr, lists = effects(many)
    assert (lr.continuous, lists.continuous) == (True, False)
    assert [(level.value, *level.values) for level in lr.levels] == [(1e-3 * (n + 1), 80.0 + n) for n in range(9)]


def test_records_come_back_from_json():
    trials = [trial(0, 80.0, layers=[3, 12], lr=None, seed=0), trial(1, rank=2, state="failed")]
    record = sweep(trials, chosen=0, test=TEST)
    assert SweepRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert (record.trials[0].value, record.trials[0].seconds, record.trials[1].value) == (80.0, 3.0, None)
    with pytest.raises(ValueError, match="trial 7 was chosen"):
        sweep(trials, chosen=7)
    with pytest.raises(ValueError, match="state 'done' of trial 0"):
        trial(0, state="done")


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([86.0, 90.0], "at 87.0 %: 1.0 points below the chosen options. Seeds alone give differences of that size"),
        ([94.0, 98.0], "9.0 points below the chosen options. Seeds alone seldom give that much: one standard error"),
        ([85.0, 89.0], "level with the chosen options. Seeds alone give"),
        ([80.0, 84.0], "5.0 points above the chosen options."),
    ],
)
def test_the_difference_to_the_next_best_is_read_against_the_seeds(best, said):
    trials = [trial(n, v, rank=2, seed=n) for n, v in enumerate(best)]
    trials += [trial(n + 2, v, rank=4, seed=n) for n, v in enumerate([85.0, 89.0])]
    found = findings(sweep(trials, chosen=1, test=TEST))
    assert said in found["Next best"]
    assert found["Next best"].startswith("Trials 2, 3, with rank 4, ")
    assert "deviation of 2.83 points (4 trials of 2 settings)" in found["Noise"]
    assert found["Chosen"].startswith("Trial 1: rank 2, seed 1. It trains 1,000 parameters and reached ")
    assert "100 samples held out" in found["Selected on"]
    assert "As the pick of 4 complete trials" in found["Selected on"]
    assert found["Tested on"].startswith("Split test of t.zarr, 500 samples, once")


def test_what_is_not_known_is_said():
    found = findings(sweep([trial(0, 80.0, rank=2), trial(1, 79.0, rank=4)], chosen=0))
    assert "nothing says whether that is more than noise" in found["Next best"]
    assert "how far a seed alone moves a trial is not known" in found["Noise"]
    assert found["Tested on"] == "No test set was read."
    known = findings(sweep([trial(0, 80.0, rank=2), trial(1, 79.0, rank=4)], chosen=0, choice={"sure": "Not at all."}))
    assert known["How sure"] == "Not at all."
    assert "How much of that another seed would give is not known" in known["Next best"]
    assert "How sure" not in found
    nothing = findings(sweep([trial(0, rank=2, state="failed")]))
    assert nothing["Chosen"] == "No trial was chosen: none ran to its end with a validation result."
    assert set(nothing) == {"Chosen", "Selected on", "Tested on"}


def test_standard_errors_are_those_of_shares_and_never_nothing():
    assert standard_error(80.0, 10_000) == pytest.approx(100 * (0.8 * 0.2 / 10_000) ** 0.5, rel=1e-3)
    assert standard_error(100.0, 50) > 1


def test_options_are_written_as_on_a_command_line():
    values = [1e-3, 3e-05, 0.0, 8, "all", [3, 12], None, True]
    assert list(map(say, values)) == ["0.001", "3e-05", "0", "8", "all", "3,12", "none", "true"]
