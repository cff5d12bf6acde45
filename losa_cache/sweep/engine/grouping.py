"""Choice of the trials that train together. Pure."""

from collections.abc import Sequence
from dataclasses import asdict

from losa_cache.tasks import get_task
from losa_cache.train.config import TrainConfig

ITS_OWN = ("rank", "lr", "weight_decay", "clip_grad", "warmup", "dropout")
"""Options in which trials of one cohort may differ, as in those of their task's loss: everything else decides what is
read, and when."""
BASE_RANKS = 15
"""What a pass over the cache costs that all trials share, in units of one rank of one trial: of ViT-B's 69 ms a step at
rank 4, 15 such units are shared (``benchmarks/stack.py``: 69, 97 and 283 ms for 1, 4 and 16 trials)."""


def together(configs: Sequence[TrainConfig], limit: int) -> list[list[int]]:
    """Divide trials into cohorts.

    Trials that read the same batches are sorted by rank. They are split where padding small ranks to a large one would
    cost more than another pass over the cache; of all such splits the cheapest is taken.

    Args:
        configs: options of the trials.
        limit: largest number of trials in a cohort.

    Returns:
        positions in ``configs``, by cohort.
    """
    groups: dict[str, list[int]] = {}
    for at, config in enumerate(configs):
        its_own = (*ITS_OWN, *get_task(config.task).loss_options)
        shared = {name: value for name, value in asdict(config).items() if name not in its_own}
        groups.setdefault(repr(shared), []).append(at)
    found = []
    for group in groups.values():
        by_rank = sorted(group, key=lambda at: configs[at].chosen_rank)
        found += _cut(by_rank, [configs[at].chosen_rank for at in by_rank], limit)
    return found


def _cut(places: list[int], ranks: list[int], limit: int) -> list[list[int]]:
    """Cut an ascending list so that the sum over pieces of BASE_RANKS + length x largest rank is least."""
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(places) + 1):
        best.append(
            min(
                (best[start][0] + BASE_RANKS + (stop - start) * ranks[stop - 1], start)
                for start in range(max(0, stop - limit), stop)
            )
        )
    pieces: list[list[int]] = []
    stop = len(places)
    while stop:
        start = best[stop][1]
        pieces.insert(0, places[start:stop])
        stop = start
    return pieces
