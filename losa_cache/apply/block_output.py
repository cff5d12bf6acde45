"""What the backbone gives at a point, in the forms in which adapters read it."""

from functools import cached_property

from torch import Tensor

from losa_cache.sidenet.pooled import Pooling

PLAIN, NORMED, ROWS = "plain", "normed", "rows"
"""The tokens as they come; layer-normed ones; pooled rows of these."""


class BlockOutput:
    """A block output, or another point of the trunk. Each form is made once, for all adapters that read it.

    Args:
        value: ``(batch, n, d)``.
        pooling: of the backbone.
    """

    def __init__(self, value: Tensor, pooling: Pooling) -> None:
        self.plain, self._pooling = value, pooling

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self._pooling.normed(self.plain)

    @property
    def normed(self) -> Tensor:
        """Layer-normed tokens, ``(batch, n, d)``."""
        return self._both[0]

    @property
    def rows(self) -> Tensor:
        """Pooled rows of them, ``(batch, m, d)``."""
        return self._both[1]

    def form(self, name: str) -> Tensor:
        """Give one of ``PLAIN``, ``NORMED`` and ``ROWS``."""
        found: Tensor = getattr(self, name)
        return found
