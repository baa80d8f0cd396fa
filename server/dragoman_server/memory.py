"""Memory that is free goes back to the system: glibc keeps it, in an arena for every thread."""

from __future__ import annotations

import ctypes

__all__ = ["return_freed_memory"]


def return_freed_memory() -> None:
    """Have the C library return what it keeps; does nothing where it is another than glibc.

    Takes some milliseconds, in which other threads may wait for memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
