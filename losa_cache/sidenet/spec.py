"""The registry of side networks: their names, and what must be known of them before torch is imported.

A side network is one file of ``losa_cache/sidenet/networks``; the file's name is the network's. The file holds

* ``SPEC``, a :class:`SideSpec` of literals. It is read without running the file, as setuptools reads a version: so
  ``--help`` and refusals import no torch;
* ``build(sizes)``, which gives the untrained module for a :class:`~losa_cache.sidenet.network.Sizes`;
* ``stack(networks)``, if many of them train together: a :class:`~losa_cache.sidenet.network.SideStack`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from losa_cache.errors import UserError
from losa_cache.literals import read_literals

if TYPE_CHECKING:
    from torch import nn

    from losa_cache.sidenet.network import SideStack, Sizes

FOLDER = Path(__file__).with_name("networks")


@dataclass(frozen=True, kw_only=True)
class SideSpec:
    """What is known of a side network before it is built.

    Attributes:
        lr: default peak learning rate of AdamW.
        rank: whether it has an inner width, which ``--rank`` sets.
        start: whether it refines y_0. Then y_0 may be the embedding, the network starts as the linear probe, and the
            classifier may read all layers beside it.
        tail: whether it gives rows of y_k, which the frozen tail and the classifier behind it read. Otherwise it gives
            the feature vector that the classifier reads.
        last_layer: whether it reads the output of the last block alone, whatever layers and tap were chosen.
        pooled_rows: whether it reads no more of a layer than pooled rows hold, so that a cache of these is enough.
        folds_codes: whether it multiplies int8 codes as they are, in place of decoded values.
        stacks: whether many of them train together on one read of the block outputs (``stack``).
        mixes_samples: whether the samples of a batch see each other in training, as in batch normalisation. Then trials
            that hold out different samples cannot share a batch.
    """

    lr: float = 1e-3
    rank: bool = True
    start: bool = True
    tail: bool = True
    last_layer: bool = False
    pooled_rows: bool = False
    folds_codes: bool = False
    stacks: bool = False
    mixes_samples: bool = False


class Network(Protocol):
    """What the file of a side network holds beside ``SPEC``."""

    def build(self, sizes: "Sizes") -> "nn.Module":
        """Give an untrained side network.

        Its ``forward(blocks, readout)`` takes the block outputs ``(batch, tokens, width)``, y_0 the last, and a
        :class:`~losa_cache.sidenet.readout.Readout`, and gives those rows of y_k, ``(batch, rows, width)``. Without a
        tail, ``forward(blocks)`` gives the feature vector, ``(batch, width)``.

        Raises:
            UserError: for sizes that cannot be.
        """
        ...

    def stack(self, networks: "Sequence[nn.Module]") -> "SideStack":
        """Put networks of one shape together; only where ``SPEC.stacks``.

        Raises:
            ValueError: for networks that cannot be stacked.
        """
        ...


DEFAULT = "losa"


def read_spec(path: Path) -> SideSpec:
    """Read the ``SPEC`` of a side network's file, without running the file.

    Raises:
        ValueError: if it has none, or one that is not made of literals.
    """
    return SideSpec(**read_literals(path, "SPEC"))


def _read_all() -> dict[str, SideSpec]:
    """Read the specs of all files: first the paper's, then others that refine y_0, last those that read one layer."""
    found = {path.stem: read_spec(path) for path in FOLDER.glob("*.py") if path.stem != "__init__"}
    return dict(sorted(found.items(), key=lambda own: (own[0] != DEFAULT, not own[1].start, own[1].last_layer, own[0])))


SIDES = _read_all()
"""All side networks, by name."""


def side_spec(name: str) -> SideSpec:
    """Look a side network up.

    Raises:
        UserError: naming those that there are.
    """
    if name not in SIDES:
        raise UserError(f"unknown side network {name!r}: choose one of {', '.join(SIDES)}.")
    return SIDES[name]


def load_network(name: str) -> Network:
    """Import the file of a side network, and torch with it.

    Raises:
        UserError: for an unknown one.
    """
    side_spec(name)
    return cast("Network", import_module(f"losa_cache.sidenet.networks.{name}"))


def stackable() -> list[str]:
    """Name the side networks of which many train together."""
    return [name for name, spec in SIDES.items() if spec.stacks]


def listed(names: Sequence[str], last: str) -> str:
    """Write names as a list: ``a, b and c`` where ``last`` is ``and``."""
    *others, final = names
    return f"{', '.join(others)} {last} {final}" if others else final
