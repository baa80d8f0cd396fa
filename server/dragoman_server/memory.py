"""Memory that is free goes back to the system, which glibc by itself does seldom.

It keeps what is freed in arenas, of which it has up to eight for every core. Weights that come and go on the
threads of a server that goes on working leave holes in all of them.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["limit_arenas", "return_freed_memory"]

_M_ARENA_MAX = -8  # malloc.h


def limit_arenas(count: int) -> None:
    """Have threads share `count` arenas at most; for the start of a process, before it has threads.

    Does nothing where the C library is another than glibc, or the environment says MALLOC_ARENA_MAX.
    """
    limit = getattr(ctypes.CDLL(None), "mallopt", None)
    if limit is not None and "MALLOC_ARENA_MAX" not in os.environ:
        limit(_M_ARENA_MAX, count)


def return_freed_memory() -> None:
    """Have the C library return what it keeps; does nothing where it is another than glibc.

    Takes some milliseconds, in which other threads may wait for memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
