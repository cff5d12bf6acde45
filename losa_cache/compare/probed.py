"""What the probe of a cache found, as contenders."""

from collections.abc import Sequence

from losa_cache.cache.store import ActivationCache
from losa_cache.compare.record import Contender


def probe_contenders(
    source: ActivationCache, tests: Sequence[ActivationCache], *, device: str | None
) -> list[Contender]:
    """Read what the probe of a training cache found."""
    return []
