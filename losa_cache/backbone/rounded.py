"""Weights that autocast would round to half precision in every forward pass, rounded once.

Autocast keeps what it rounds only for weights that are trained, and only until its block ends: a frozen backbone rounds
every weight anew for every batch, which reads and writes all of them. The operands of linear layers are what there is
of weights in a block; rounding them beforehand gives the very same numbers, bit for bit.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

OPERANDS = ("weight", "bias")


class Rounded(NamedTuple):
    """A weight in two precisions: ``module.name`` is ``exact``, or ``rounded`` while a forward pass runs."""

    module: nn.Module
    name: str
    exact: nn.Parameter
    rounded: nn.Parameter


def size_of_rounded(blocks: Iterable[nn.Module], compute: torch.dtype) -> int:
    """Give the bytes of the weights of :func:`round_weights`."""
    return sum(weight.numel() * compute.itemsize for _, _, weight in _operands(blocks))


def round_weights(blocks: Iterable[nn.Module], compute: torch.dtype) -> list[Rounded]:
    """Copy the operands of the blocks' linear layers, rounded to the dtype of matrix products."""
    return [
        Rounded(module, name, weight, nn.Parameter(weight.detach().to(compute), requires_grad=False))
        for module, name, weight in _operands(blocks)
    ]


@contextmanager
def in_place(weights: Sequence[Rounded]) -> Generator[None, None, None]:
    """Run a block of code with the rounded weights in place of the exact ones."""
    try:
        for module, name, _, rounded in weights:
            module._parameters[name] = rounded
        yield
    finally:
        for module, name, exact, _ in weights:
            module._parameters[name] = exact


def _operands(blocks: Iterable[nn.Module]) -> Generator[tuple[nn.Module, str, nn.Parameter], None, None]:
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                for name in OPERANDS:
                    weight = module._parameters.get(name)
                    if weight is not None and weight.dtype == torch.float32:
                        yield module, name, weight
