"""Check before the first step that a batch fits the device's memory."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from losa_cache.errors import UserError
from losa_cache.machine.memory import available_memory
from losa_cache.machine.sizes import readable_bytes
from losa_cache.sidenet.spec import SideSpec, listed
from losa_cache.tuned.tuned import Model, Tuned, adapter_of

SPARE = 0.8  # what is counted here is not all that a step needs
COPIES = 3  # of a trained tensor: its gradient and two moments


def require_memory(
    adapter: Model, shape: Sequence[int], dtype: torch.dtype, *, batch_size: int, autocast: torch.dtype | None
) -> None:
    """Refuse a batch whose blocks and saved activations alone exceed the free memory of the device.

    Gradients and moments of what is trained inside a backbone are counted, too.

    Args:
        adapter: on its device.
        shape: shape of one sample's blocks, ``(k, tokens, width)``; k includes y_0 if it is a block of its own. Where
            batches are images, ``(1, *input.shape)``.
        dtype: dtype of the block outputs.
        batch_size: samples in a step.
        autocast: dtype of the matrix products, or ``None``.

    Raises:
        UserError: naming the batch size that would fit.
    """
    device = next(adapter.parameters()).device
    needed = needed_bytes(adapter, shape, dtype, 2, autocast) - needed_bytes(adapter, shape, dtype, 1, autocast)
    free = available_memory(device)
    if inside := isinstance(adapter, Tuned):
        free = max(0, free - COPIES * sum(own.nbytes for own in adapter.inside().values()))
    if batch_size * needed <= free:
        return
    fits = int(SPARE * free / needed)
    raise UserError(
        f"a batch of {batch_size} keeps {readable_bytes(batch_size * needed)} of activations, and {device} has "
        f"{readable_bytes(free)} left: "
        + (
            f"--batch-size {fits} would fit."
            if fits
            else f"not one sample would fit; {remedy(adapter_of(adapter).spec, device, inside=inside)}."
        )
    )


def remedy(spec: SideSpec, device: torch.device, *, inside: bool = False) -> str:
    """Name the options that reduce the memory for a sample, as far as the side network has them, on this device.

    Of a backbone that is trained ``inside`` they are others.
    """
    remedies = {
        "--grad-checkpointing": inside,
        "a smaller backbone": inside,
        "fewer --layers": not spec.last_layer,
        "a smaller --rank": spec.rank,
        "a cache of pooled rows (extract --tokens pooled)": spec.pooled_rows and not inside,
        "--device cpu": device.type != "cpu",
    }
    useful = [name for name, helps in remedies.items() if helps]
    return f"choose {listed(useful, 'or')}" if useful else "it needs a machine with more memory"


def needed_bytes(
    adapter: Model, shape: Sequence[int], dtype: torch.dtype, batch: int, autocast: torch.dtype | None
) -> int:
    """Count the bytes of a batch's block outputs and of everything that autograd saves for their backward pass.

    The adapter is in evaluation mode, because this batch must not change its statistics or its noise.
    """
    device = next(adapter.parameters()).device
    blocks = [torch.zeros(batch, *shape[1:], dtype=dtype, device=device) for _ in range(shape[0])]
    adapter.eval()
    saved = saved_bytes(lambda: adapter(blocks), (*blocks, *adapter.parameters()), autocast)
    return sum(block.nbytes for block in blocks) + saved


def saved_bytes(forward: Callable[[], Tensor], known: Iterable[Tensor], autocast: torch.dtype | None) -> int:
    """Count the bytes that autograd saves in a forward pass, without those of tensors that exist anyway."""
    known = list(known)
    known_storages = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def count(saved: Tensor) -> Tensor:
        """Count a tensor, and have autograd hold its values alone: they stay, so that no other takes their address.

        A result that its own node held would keep the whole graph alive, for no backward pass ends it. The graph would
        also tie the parameters to this stream, and then no CUDA graph could hold a training step.
        """
        storage = saved.untyped_storage()
        if storage.data_ptr() not in known_storages:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved.detach()

    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved),
        torch.autocast(known[0].device.type, autocast, enabled=autocast is not None),
    ):
        result = forward()
    del result
    return sum(kept.values())
