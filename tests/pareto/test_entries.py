import pytest

from losa_cache.errors import UserError
from losa_cache.pareto.entries import all_entries, parse_entries, parse_entry, rates
from losa_cache.tuned.spec import METHODS


def test_side_networks_and_methods_are_told_apart_by_their_names():
    losa, online, lst, full, last = parse_entries("losa@8, losa:online,lst,full,last:3")
    assert (losa.words, losa.cached) == (["--side", "losa", "--rank", "8"], True)
    assert (online.words, online.cached) == (["--side", "losa"], False)
    assert lst.words == ["--side", "ladder"]
    assert (full.words, full.cached, full.lr) == (["--method", "full"], False, METHODS["full"].lr)
    assert parse_entry("mlp").words == ["--method", "mlp"]
    assert parse_entry("side-mlp").words == ["--side", "mlp"]
    assert last.words == ["--method", "last:3"]


def test_folders_of_methods_differ():
    names = [*all_entries(video=True), "losa@4", "losa@8", "linear:online", "last:2"]
    assert len({parse_entry(name).folder for name in names}) == len(names)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("losaa", "nearest: losa"),
        ("losa@", "a whole number from 1"),
        ("losa@0", "a whole number from 1"),
        ("losa:qkv", "losa:online"),
        ("linear@4", "no rank"),
        ("full@4", "no rank"),
        ("last:0", "last:K"),
        ("losa,full,losa", "twice"),
        (" , ", "name at least one"),
    ],
)
def test_a_wrong_name_is_one_sentence(text, said):
    with pytest.raises(UserError, match=said) as error:
        parse_entries(text)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(1, [1e-3]), (2, [1e-3, 3.2e-3]), (3, [3.2e-4, 1e-3, 3.2e-3]), (4, [3.2e-4, 1e-3, 3.2e-3, 1e-2])],
)
def test_rates_lie_half_a_decade_apart_around_the_default(count, wanted):
    assert rates(1e-3, count) == pytest.approx(wanted)
