"""The plan's arithmetic."""

from hypothesis import given
from hypothesis import strategies as st

from losa_cache.cache.layout import MIN_CHUNK_BYTES, plan_layout

SIZES = st.fixed_dictionaries(
    {
        "samples": st.integers(1, 5000),
        "layers": st.integers(1, 60),
        "tokens": st.integers(1, 300),
        "columns": st.integers(1, 2000),
        "itemsize": st.sampled_from([1, 2, 4]),
        "shard_bytes": st.integers(1, 2**28),
    }
)


@given(SIZES)
def test_shards_partition_the_rows_and_their_bytes_add_up(sizes):
    layout = plan_layout(**sizes)
    rows = [row for shard in range(layout.shards) for row in layout.rows(shard)]
    assert rows == list(range(sizes["samples"]))
    assert sum(map(layout.shard_bytes, range(layout.shards))) == layout.total_bytes


@given(SIZES)
def test_chunks_are_single_blocks_unless_those_are_tiny(sizes):
    layout = plan_layout(**sizes)
    assert layout.layers % layout.chunk_layers == 0
    if layout.block_bytes >= MIN_CHUNK_BYTES:
        assert layout.chunk_layers == 1
    smaller = [n for n in range(1, layout.chunk_layers) if layout.layers % n == 0]
    assert all(n * layout.block_bytes < MIN_CHUNK_BYTES for n in smaller)


@given(SIZES)
def test_a_shard_keeps_to_its_size_unless_one_sample_is_larger(sizes):
    layout = plan_layout(**sizes)
    assert layout.shard_samples == 1 or layout.shard_samples * layout.sample_bytes <= sizes["shard_bytes"]


def test_vit_h_over_places365_is_the_38_tb_of_the_economics_table():
    layout = plan_layout(samples=1_803_460, layers=32, tokens=257, columns=1280, itemsize=2)
    assert round(layout.total_bytes / 1e12) == 38
    assert layout.chunk_layers == 1
    assert layout.shard_bytes(0) < 2**28 + 2**20
