"""Where the points of a trunk (``losa_cache.points``) can be seen while it runs.

Every block of timm's pre-norm trunks (ViT, EVA-02, DINOv3, BEiT, ...) passes what a branch adds to the residual stream
through a module of its own, drop path, whether LayerScale is a module or a parameter: its input is the branch's output.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from losa_cache.errors import UserError
from losa_cache.points import EMBEDDING

GATES = {"attention": "drop_path1", "mlp": "drop_path2"}


def watch(blocks: Sequence[nn.Module], point: str, take: Callable[[Tensor], None]) -> RemovableHandle:
    """Have ``take`` given a point's value ``(batch, tokens, width)`` in every forward pass, until the hook is removed.

    Raises:
        UserError: for a branch of a block that does not keep its branches apart.
    """

    def comes(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        take(inputs[0])

    def leaves(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        take(output)

    kind, _, number = point.partition(".")
    if kind == EMBEDDING:
        return blocks[0].register_forward_pre_hook(comes)
    block = blocks[int(number) - 1]
    if kind == "block":
        return block.register_forward_hook(leaves)
    gate = getattr(block, GATES[kind], None)
    if not isinstance(gate, nn.Module):
        raise UserError(f"a {type(block).__name__} has no {kind} branch of its own to tap: tap whole blocks.")
    return gate.register_forward_pre_hook(comes)
