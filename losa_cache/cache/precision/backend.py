"""Choice of what encodings compute with on a device: Triton's kernels where they run, torch everywhere else.

The device decides, never a measurement, so that a resumed extraction computes as it did before.
"""

from typing import Protocol

import torch
from torch import Tensor

from losa_cache.cache.precision import token_codec
from losa_cache.cache.precision.token_codec import Tables
from losa_cache.machine.fastest import why_not_triton


class TokenCodec(Protocol):
    """Functions that encode and decode tokens: :mod:`losa_cache.cache.precision.token_codec`, or the same in Triton."""

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
    """Choose the functions that predicted layers are encoded with on a device."""
    if why_not_triton(device) is not None:
        return token_codec
    from losa_cache.cache.precision.kernels import chain

    return chain
