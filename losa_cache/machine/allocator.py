"""glibc's malloc, told to keep what large tensors free.

By default every tensor above 32 MB is mapped anew and all its pages fault again, in every step. Keeping the memory made
the plain LoSA step at ViT-B shape 1.67 x and a ViT-B forward pass of 64 images 1.83 x as fast on 2 cores
(``benchmarks/allocator.py``). The price: the process gives memory back only when it ends.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Set it for this process; does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)
