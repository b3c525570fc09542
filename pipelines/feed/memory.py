"""Memory of the processes that make blocks: what one has freed stays with it, for the next block."""
from __future__ import annotations

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3)."""


@cache
def keep_freed_memory() -> None:
    """Ask this process's allocator, once, to keep what is freed; does nothing where there is no glibc.

    A block's arrays are tens of megabytes: as it stands glibc gives them back to the kernel with every block, which
    zeroes them again for the next, page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
