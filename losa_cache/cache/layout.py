"""Pure planning of the activations array: chunks, shards, bytes (``docs/protocol.md``, section "Activations")."""

from dataclasses import dataclass
from math import lcm

from losa_cache.cache.compression import OVERHEAD_BYTES

CHECKSUM_BYTES = 4
INDEX_ENTRY_BYTES = 16
MIN_CHUNK_BYTES = 64 * 1024
SHARD_BYTES = 256 * 1024 * 1024
SMALLER = 8  # one part in so many that a shard may hold less than fits, to keep step with batches


@dataclass(frozen=True)
class Layout:
    """How ``(samples, layers, tokens, columns)`` elements of ``itemsize`` bytes lie in shards.

    The layout treats every row independently and knows nothing about views. A column is a stored element of a token;
    the precision decides what it means. If the precision stores all layers of a sample together, the layout has one
    layer of one token.

    One chunk is ``(1, chunk_layers, tokens, columns)``, one shard ``(shard_samples, layers, tokens, columns)``: all
    chunks of a sample lie together, in the order of the layers. Sizes of ``compressed`` chunks are upper limits.
    """

    samples: int
    layers: int
    tokens: int
    columns: int
    itemsize: int
    chunk_layers: int
    shard_samples: int
    compressed: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the array."""
        return self.samples, self.layers, self.tokens, self.columns

    @property
    def block_bytes(self) -> int:
        """Bytes of one sample's block output, as encoded."""
        return self.tokens * self.columns * self.itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk, plain."""
        return self.chunk_layers * self.block_bytes

    @property
    def stored_chunk_bytes(self) -> int:
        """Bytes of one chunk as stored, with its checksum."""
        return self.chunk_bytes + OVERHEAD_BYTES * self.compressed + CHECKSUM_BYTES

    @property
    def sample_chunks(self) -> int:
        """Chunks of one sample."""
        return self.layers // self.chunk_layers

    @property
    def sample_bytes(self) -> int:
        """Stored bytes of one sample, checksums included."""
        return self.sample_chunks * self.stored_chunk_bytes

    @property
    def short(self) -> bool:
        """Whether a sample is a single chunk, so small that the request takes longer than the read."""
        return self.sample_chunks == 1 and not self.compressed and self.block_bytes * self.layers < MIN_CHUNK_BYTES

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index, which stands at its end."""
        return INDEX_ENTRY_BYTES * self.shard_samples * self.sample_chunks + CHECKSUM_BYTES

    @property
    def shards(self) -> int:
        """Number of shards; the last may be filled in part."""
        return -(-self.samples // self.shard_samples)

    def rows(self, shard: int) -> range:
        """Rows of the array that a shard holds."""
        start = shard * self.shard_samples
        return range(start, min(start + self.shard_samples, self.samples))

    def shard_bytes(self, shard: int) -> int:
        """Bytes of a shard's file when none of its samples was skipped."""
        return len(self.rows(shard)) * self.sample_bytes + self.index_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards."""
        return self.samples * self.sample_bytes + self.shards * self.index_bytes


def plan_layout(
    *,
    samples: int,
    layers: int,
    tokens: int,
    columns: int,
    itemsize: int,
    shard_bytes: int = SHARD_BYTES,
    batch: int = 1,
) -> Layout:
    """Choose chunks and shards.

    A chunk is one block output, so that reading some layers costs only their own bytes. If a block output is smaller
    than 64 KiB, a chunk holds as many layers as reach that size (a divisor of the number of layers). A shard holds as
    many samples as fit ``shard_bytes``; or up to an eighth less, if shards and batches of ``batch`` rows end together
    sooner then: processes that share the cache take runs of whole shards and whole batches.
    """
    block = tokens * columns * itemsize
    divisors = [n for n in range(1, layers + 1) if layers % n == 0]
    chunk_layers = next((n for n in divisors if n * block >= MIN_CHUNK_BYTES), layers)
    sample = (layers // chunk_layers) * (chunk_layers * block + CHECKSUM_BYTES)
    fitting = max(1, shard_bytes // sample)
    if fitting < samples:
        fitting = min(range(fitting - fitting // SMALLER, fitting + 1), key=lambda n: (lcm(n, batch) // n, -n))
    return Layout(samples, layers, tokens, columns, itemsize, chunk_layers, min(samples, fitting))
