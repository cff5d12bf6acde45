"""By what encodings compute on a device: Triton's kernels where they run, torch everywhere else.

What a device can do decides, never a measurement: a resumed extraction computes as it began.
"""

from typing import Protocol

import torch
from torch import Tensor

from losa_cache.cache.precision import token_codec
from losa_cache.cache.precision.token_codec import Tables
from losa_cache.machine.fastest import why_not_triton


class TokenCodec(Protocol):
    """How tokens are encoded and decoded: :mod:`losa_cache.cache.precision.token_codec`, or the same by Triton."""

    def encode(
        self, values: Tensor, before: Tensor | None, tables: Tables, codes: Tensor, scales: Tensor, extreme: Tensor
    ) -> Tensor:
        """See :func:`losa_cache.cache.precision.token_codec.encode`."""

    def decode(
        self, codes: Tensor, scales: Tensor, before: Tensor | None, tables: Tables, into: Tensor | None
    ) -> Tensor:
        """See :func:`losa_cache.cache.precision.token_codec.decode`."""

    def fill(self, into: Tensor, standard: Tensor, scales: Tensor, tables: Tables) -> None:
        """See :func:`losa_cache.cache.precision.token_codec.fill`."""


def token_codec_on(device: torch.device) -> TokenCodec:
    """Choose what chains compute by."""
    if why_not_triton(device) is not None:
        return token_codec
    from losa_cache.cache.precision.kernels import chain

    return chain
