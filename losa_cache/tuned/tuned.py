"""What is trained where something is trained inside the backbone: its trunk, and an ordinary adapter behind it."""

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from torch import Tensor, nn

from losa_cache.sidenet.adapter import Adapter
from losa_cache.sidenet.operand import Block, dense
from losa_cache.sidenet.tail import FrozenTail
from losa_cache.tuned.spec import Method, load_method

if TYPE_CHECKING:
    from losa_cache.backbone import Backbone


class Tuned(nn.Module):
    """Images to outputs: the changed trunk, then the frozen or trained tail and a classifier or decoder.

    The trunk stays in evaluation mode: there is no dropout and no stochastic depth in it.

    Args:
        backbone: changed by the method, on its device.
        adapter: of the side network ``linear``, on the same device.
        method: what is trained inside.

    Attributes:
        trunk: timm's model.
        frozen_macs: multiply-accumulates of the backbone before it was changed, for an image or a clip; ``None``: they
            were not counted.
    """

    frozen_macs: int | None = None

    def __init__(self, backbone: "Backbone", adapter: Adapter, method: Method) -> None:
        super().__init__()
        self.backbone, self.method = backbone, method
        self.trunk, self.adapter = backbone.model, adapter
        self._points = [f"block.{backbone.depth}"]

    def forward(self, images: Sequence[Block]) -> Tensor:
        """Compute the outputs of the adapter, ``(batch, classes)`` or maps.

        Args:
            images: one batch, float32 ``(batch, *input.shape)``, normalised: what a
                :class:`~losa_cache.train.pixels.PixelSource` gives.
        """
        (pixels,) = dense(images)
        return self.adapter(self.backbone.traced(pixels, self._points))

    def train(self, mode: bool = True) -> "Tuned":
        """Put the adapter alone into training mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def inside(self) -> dict[str, Tensor]:
        """The tensors that are trained inside the trunk, by their names there; one that is shared comes once."""
        return {name: own.detach() for name, own in self.trunk.named_parameters() if own.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""
        inside = {f"trunk.{name}": own for name, own in self.inside().items()}
        return inside | {f"adapter.{name}": own for name, own in self.adapter.trained_state().items()}

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters inside the backbone, with its final norm, and of the classifier or decoder."""
        inside = sum(own.numel() for own in self.inside().values())
        return {"backbone": inside, "classifier": self.adapter.parameter_counts()["classifier"]}

    def finished_tail(self) -> FrozenTail:
        """Give the tail as it was trained, in plain form."""
        spec = self.method.spec
        if not spec.tail:
            return self.adapter.tail
        from losa_cache.backbone.tail import read_tail

        model = deepcopy(self.trunk) if spec.merges else self.trunk
        if spec.merges:
            load_method(self.method.name).merge(model)
        return read_tail(model, width=self.backbone.width, prefix_tokens=self.backbone.prefix_tokens)


Model = Adapter | Tuned
"""What a run trains."""


def adapter_of(model: Model) -> Adapter:
    """Give the adapter, which of a changed trunk stands behind it."""
    return model.adapter if isinstance(model, Tuned) else model
