import pytest

from losa_cache.pareto.shapes import measure
from tests.pareto.studies import options

CLASSES = 100
WIDTH, DEPTH, TOKENS, RANK = 96, 8, 65, 16


def side_parameters() -> int:
    """Those of LoSA, by hand: layers mix channels and tokens in turn, with biases and a scale."""
    channels, tokens = (2 * RANK * size + RANK + size + 1 for size in (WIDTH, TOKENS))
    return DEPTH // 2 * (channels + tokens)


def vit_macs() -> int:
    """Those of vit_digits, by hand: the patch embedding; per block qkv, the two products of attention, proj and MLP."""
    block = TOKENS * WIDTH * (3 + 1 + 8) * WIDTH + 2 * TOKENS * TOKENS * WIDTH
    return 64 * (3 * 2 * 2) * WIDTH + DEPTH * block


@pytest.mark.parametrize("entry", [None, "losa", "losa:online", "linear", "full"])
def test_what_is_measured_has_the_parameters_and_the_arithmetic_of_the_formulas(entry, monkeypatch):
    monkeypatch.setattr("losa_cache.pareto.shapes.SECONDS", 0.0)
    given = {"batch_size": 4, "device": "cpu", "classes": CLASSES, "recipe": "paper", "shape_only": True}
    found = measure(options(**given) | {"entry": entry})
    assert found["images_per_second"] > 0
    assert found["peak_gb"] > 0
    classifier = WIDTH * CLASSES + CLASSES
    inside = {"losa": side_parameters(), "losa:online": side_parameters(), "linear": 0}
    if entry in inside:
        assert (found["parameters"], found["classifier"]) == (inside[entry] + classifier, classifier)
    elif entry == "full":
        assert found["parameters"] > 0.9e6  # of 0.9 M; the exact count is tested with the method
    added = {"losa": 2 * RANK * TOKENS * WIDTH * DEPTH, "losa:online": 2 * RANK * TOKENS * WIDTH * DEPTH}
    head = 0 if entry is None else WIDTH * CLASSES
    assert found["gmacs"] * 1e9 == pytest.approx(vit_macs() + added.get(entry, 0) + head, rel=1e-6)
