"""What is searched, and which trials train together: pure."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from losa_cache.errors import UserError
from losa_cache.sweep.engine.grouping import BASE_RANKS, together
from losa_cache.sweep.engine.space import Choices, Range, grid, parse, read_space, require_trainable, split_fixed
from losa_cache.train.config import TrainConfig

TOML = 'rank = [4, 8]\nlr = "1e-4..1e-2"\nlayers = ["4", "3,6,12", [6, 12]]\nweight-decay = 0.1\n'
YAML = "rank: [4, 8]\nlr: 1e-4..1e-2\nlayers: ['4', '3,6,12', [6, 12]]\nweight-decay: 0.1\n"


def test_text_is_choices_or_a_range():
    assert parse("rank", "4,8, 16") == Choices((4, 8, 16))
    assert parse("lr", "1e-3,3e-4") == Choices((1e-3, 3e-4))
    assert parse("layers", "4,all") == Choices(("4", "all"))
    assert parse("lr", "1e-4..1e-2") == Range(1e-4, 1e-2)
    assert parse("rank", "1..64").integer
    assert not parse("lr", "1e-4..1e-2").integer
    assert parse("lr", "1e-4..1e-2").log
    assert not parse("label_smoothing", "0..0.3").log
    assert not parse("lr", "1e-3..5e-3").log


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rank", "4,eight", "rank is 'eight': write numbers"),
        ("rank", "4.5", "rank is '4.5'"),
        ("lr", "1e-2..1e-4", "a range is two numbers, the smaller one first"),
        ("side", "losa..mlp", "is losa..mlp"),
        ("side", "lora", "unknown side network 'lora'"),
        ("warmup", "0.1", "warmup cannot be swept: choose among rank"),
        ("weight_decay", "", "weight-decay is ''"),
    ],
)
def test_other_text_is_refused_in_a_sentence(name, text, said):
    with pytest.raises(UserError, match=said):
        parse(name, text)


@pytest.mark.parametrize(("suffix", "text"), [("toml", TOML), ("yaml", YAML), ("yml", YAML)])
def test_a_file_says_the_same_in_toml_and_yaml(suffix, text, tmp_path):
    path = tmp_path / f"space.{suffix}"
    path.write_text(text)
    assert read_space(path) == {
        "rank": Choices((4, 8)),
        "lr": Range(1e-4, 1e-2),
        "layers": Choices(("4", "3,6,12", "6,12")),
        "weight_decay": Choices((0.1,)),
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "rank = [4", "cannot be read"),
        ("a.yaml", "rank: [4", "is no YAML"),
        ("a.yaml", "- 4", "holds no options"),
        ("a.yaml", "rank: {low: 4}", "rank is {'low': 4}"),
        ("a.yaml", "flag: yes", "flag cannot be swept"),
    ],
)
def test_a_broken_file_is_one_sentence(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        read_space(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_space(tmp_path / "none.toml")


def test_one_value_is_no_search(tmp_path):
    (tmp_path / "s.toml").write_text("clip-grad = [0.5, 1.0]\nbatch-size = 32\n")
    fixed, searched = split_fixed({"rank": "8", "lr": "1e-3,1e-2", "layers": None}, tmp_path / "s.toml", 3)
    assert fixed == {"rank": 8, "batch_size": 32}
    assert searched == {"clip_grad": Choices((0.5, 1.0)), "lr": Choices((1e-3, 1e-2)), "seed": Choices((0, 1, 2))}
    with pytest.raises(UserError, match="--batch-size is in the space file, too"):
        split_fixed({"batch_size": "8"}, tmp_path / "s.toml", 1)
    with pytest.raises(UserError, match="seeds is 0"):
        split_fixed({}, None, 0)


def test_a_grid_is_every_combination_and_knows_no_range():
    space = {"rank": Choices((2, 4)), "lr": Choices((0.1, 0.2, 0.3))}
    assert [tuple(one.values()) for one in grid(space)] == list(itertools.product((2, 4), (0.1, 0.2, 0.3)))
    with pytest.raises(UserError, match=r"lr is the range 0.1..0.2, which a grid cannot list"):
        grid(space | {"lr": Range(0.1, 0.2)})


def test_values_that_no_run_takes_are_refused_before_the_first_trial():
    with pytest.raises(UserError, match="label-smoothing is 2"):
        require_trainable({"label_smoothing": Range(0.0, 2.0)}, TrainConfig())


CONFIGS = st.builds(
    TrainConfig,
    rank=st.sampled_from([1, 2, 4, 8, 16, 64]),
    lr=st.sampled_from([1e-3, 1e-2]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    layers=st.sampled_from(["2", "all"]),
    seed=st.integers(0, 1),
)


@given(st.lists(CONFIGS, max_size=7), st.integers(1, 4))
def test_cohorts_read_the_same_batches_and_no_cut_is_cheaper(configs, limit):
    found = together(configs, limit)
    assert sorted(place for cohort in found for place in cohort) == list(range(len(configs)))
    own = {"rank": 1, "lr": None, "weight_decay": 0.0}
    for cohort in found:
        assert len(cohort) <= limit
        assert len({repr(replace(configs[place], **own)) for place in cohort}) == 1
    for shared in {repr(replace(config, **own)) for config in configs}:
        ranks = sorted(config.rank for config in configs if repr(replace(config, **own)) == shared)
        ours = [c for c in found if repr(replace(configs[c[0]], **own)) == shared]
        assert sum(cost([configs[place].rank for place in cohort]) for cohort in ours) == cheapest(ranks, limit)


def cost(ranks):
    return BASE_RANKS + len(ranks) * max(ranks)


def cheapest(ranks, limit):
    """Over every way to cut the ascending list."""
    if not ranks:
        return 0
    return min(cost(ranks[:n]) + cheapest(ranks[n:], limit) for n in range(1, min(limit, len(ranks)) + 1))
