"""Where a run computes and where it keeps what it reads. It is decided once and passed on in one object."""

from dataclasses import dataclass

import torch

from losa_cache.machine.device import choose_device, has_bfloat16
from losa_cache.train.residency import require_residency


@dataclass(frozen=True)
class Placement:
    """Where a run computes, and where it keeps the activations that it reads from a cache.

    Attributes:
        device: the device that trains, evaluates and decodes.
        residency: the requested place of activations, one of ``losa_cache.train.residency.RESIDENCIES``. The actual
            place is chosen for each cache when it is opened (``losa_cache.train.residency.choose_residency``).
    """

    device: torch.device
    residency: str = "auto"

    def __post_init__(self) -> None:
        require_residency(self.residency)

    @classmethod
    def choose(cls, device: str | None = None, residency: str = "auto") -> "Placement":
        """Take the named device, or by default the GPU if there is one.

        Raises:
            UserError: for a device that cannot be used, or an unknown residency.
        """
        return cls(choose_device(device), residency)

    def autocast(self, precision: str) -> torch.dtype | None:
        """Choose the dtype of matrix products on activations of a cache's precision; ``None``: that of the activations.

        It is bfloat16 if the device supports that natively, unless the precision is float32.
        """
        return torch.bfloat16 if precision != "float32" and has_bfloat16(self.device) else None
