"""The frozen trunk that a method changes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from losa_cache.errors import UserError

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
"""The linear layers of a plain ViT's block."""


@dataclass(frozen=True)
class Trunk:
    """A timm model with a list of equal blocks.

    Attributes:
        name: of the backbone, for messages.
        model: timm's.
        width: channels d of its tokens.
        prefix_tokens: how many tokens are no patches; they come first.
        grid: rows and columns of the patches; of a video (n_t, rows, columns).
    """

    name: str
    model: nn.Module
    width: int
    prefix_tokens: int
    grid: Sequence[int]

    @property
    def blocks(self) -> list[nn.Module]:
        """Its blocks, first to last."""
        return list(self.model.blocks)  # type: ignore[arg-type]

    @property
    def final_norms(self) -> list[nn.Module]:
        """The norms behind its blocks."""
        return [own for name in ("norm", "fc_norm") if (own := getattr(self.model, name, None)) is not None]

    def train_parts(self, name: str) -> None:
        """Train a part of every block: ``attn`` or ``mlp``.

        Raises:
            UserError: for a trunk whose blocks have no such part.
        """
        for _, part in self.branches(name):
            part.requires_grad_(True)

    def branches(self, name: str) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Give every block, and its branch of this name: ``attn`` or ``mlp``.

        Raises:
            UserError: for a trunk whose blocks have no such branch.
        """
        for block in self.blocks:
            branch = getattr(block, name, None)
            if not isinstance(branch, nn.Module):
                raise UserError(
                    f"the blocks of backbone {self.name!r} have no {name} of their own: choose a plain ViT, or another "
                    "method."
                )
            yield block, branch

    def linears(self, place: str) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
        """Give the linear layer at a place (``LINEARS``) of every block: its parent, its name there, and itself.

        Raises:
            UserError: for a trunk whose blocks have none there.
        """
        for block in self.blocks:
            above, _, name = place.rpartition(".")
            try:
                parent = block.get_submodule(above)
                layer = parent.get_submodule(name)
            except AttributeError:
                layer = parent = nn.Identity()
            if not isinstance(layer, nn.Linear):
                raise UserError(
                    f"the blocks of backbone {self.name!r} have no linear layer {place}: choose a plain ViT, or "
                    "another method."
                )
            yield parent, name, layer
