"""Points: the paper's order of them, written out."""

import pytest

from losa_cache.errors import UserError
from losa_cache.points import TAPS, input_points, require_tap, stored_points

LAYERS = [2, 4]
STORED = {
    "block": ["block.2", "block.4"],
    "attention": ["attention.2", "attention.4", "block.4"],
    "mlp": ["mlp.2", "mlp.4", "block.4"],
    "both": ["attention.2", "mlp.2", "attention.4", "mlp.4", "block.4"],
}
FROM_EMBEDDING = {
    "block": ["block.2", "block.4", "embedding"],
    "attention": ["attention.2", "attention.4", "embedding"],
    "mlp": ["mlp.2", "mlp.4", "embedding"],
    "both": ["attention.2", "mlp.2", "attention.4", "mlp.4", "embedding"],
}


def test_the_order_of_a_cache_and_of_a_side_networks_inputs():
    for tap in TAPS:
        assert stored_points(tap, LAYERS, embedding=False) == STORED[tap]
        assert stored_points(tap, LAYERS, embedding=True) == ["embedding", *STORED[tap]]
        assert input_points(tap, LAYERS, start="output") == STORED[tap]
        assert input_points(tap, LAYERS, start="embedding") == FROM_EMBEDDING[tap]
    assert STORED.keys() == FROM_EMBEDDING.keys() == TAPS.keys()


def test_an_unknown_tap_is_refused():
    with pytest.raises(UserError, match="unknown tap 'query': choose one of block, attention, mlp, both"):
        require_tap("query")
