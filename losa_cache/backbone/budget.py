"""How a trunk passes through a device that is smaller than itself: arithmetic, no effects.

Blocks go through it in groups. Two groups are there at a time, one at work and one on its way; beside them the weights
outside the blocks, which stay, and the work of one batch.
"""

from dataclasses import dataclass
from math import ceil

from losa_cache.errors import UserError


@dataclass(frozen=True)
class Sizes:
    """Bytes on the device.

    Attributes:
        blocks: of each block's weights.
        rest: of the weights outside the blocks.
        image: of one image's work in a block: residual stream, branches, what a point's value is encoded into.
    """

    blocks: tuple[int, ...]
    rest: int
    image: int

    @property
    def weights(self) -> int:
        """Of all weights."""
        return self.rest + sum(self.blocks)

    @property
    def least(self) -> int:
        """Of the weights that must be there at any time: two blocks, or a trunk of one."""
        return self.rest + min(sum(self.blocks), 2 * max(self.blocks))


def fitting_batch(sizes: Sizes, budget: int, most: int) -> int:
    """Choose how many images a forward pass takes: at most ``most``, and at least 1, whether it fits or not.

    Their work may take half of what the weights outside the blocks leave, or all that every block leaves.
    """
    room = max((budget - sizes.rest) // 2, budget - sizes.weights)
    return max(1, min(most, min(room, budget - sizes.least) // sizes.image))


def group_blocks(sizes: Sizes, budget: int, batch: int) -> list[range]:
    """Cut the blocks into the fewest runs such that any two of them fit beside a batch; one, if all fit at once.

    Args:
        sizes: of the trunk.
        budget: bytes of device memory.
        batch: images a forward pass.

    Raises:
        UserError: if not even two blocks fit.
    """
    room = budget - sizes.rest - batch * sizes.image
    if sum(sizes.blocks) <= room:
        return [range(len(sizes.blocks))]
    needed = sizes.least + batch * sizes.image
    if needed > budget:
        smaller = f", or a batch size below {batch}" if batch > 1 else ""
        raise UserError(
            f"{budget / 1e6:.1f} MB of device memory are too little: two blocks of {max(sizes.blocks) / 1e6:.1f} MB "
            f"(one at work, one on its way) and a batch of {batch} need {show_megabytes(needed)}: give at least that "
            f"with --max-device-memory{smaller}."
        )
    groups: list[range] = []
    start = used = 0
    for number, size in enumerate(sizes.blocks):
        if used + size > room // 2:
            groups.append(range(start, number))
            start, used = number, 0
        used += size
    return [*groups, range(start, len(sizes.blocks))]


def show_megabytes(size: int) -> str:
    """Round up, so that what is shown is enough when it is given."""
    return f"{ceil(size / 1e6)}MB"
