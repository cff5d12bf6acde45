"""How many layers to chain before y is materialised: every length's step beside the one that the cost model chooses.

python benchmarks/segments.py [--shape vit_g] [--rank 64] [--lengths 4 8 10 14 20 40] [--repeats 5]
"""

import argparse
import statistics
from functools import partial

from side import SHAPES, forms, setting, step
from timing import Work, in_turn

from losa_cache.machine.allocator import keep_freed_memory
from losa_cache.machine.device import choose_device, machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="vit_g")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--lengths", nargs="*", type=int, default=[4, 8, 10, 14, 20, 40])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    network, blocks = setting(arguments.shape, arguments.rank, SHAPES[arguments.shape][3], choose_device())
    ways = forms(network, compiled=False)
    chosen = network.segment_length

    def cut(length: int) -> None:
        network.segment_length = length
        step(network, ways["fast"], blocks)

    works: dict[str, Work] = {"plain": partial(step, network, ways["plain"], blocks)}
    works |= {str(length): partial(cut, length) for length in sorted({*arguments.lengths, chosen})}
    times = in_turn(works, repeats=arguments.repeats)
    print(f"{machine()}: {arguments.shape}, rank {arguments.rank}, batch {len(blocks[0])}; chosen: {chosen}")
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["plain"], found, strict=True))
        print(f"  {name:>5}{1e3 * statistics.median(found):8.0f} ms   {ratio:.2f} x as fast as plain")


if __name__ == "__main__":
    main()
