"""Asks the C library's allocator to keep what a training step frees for the next one."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc reuse freed blocks rather than return them to the system; does nothing elsewhere.

    A training step allocates and frees the same large tensors again and again; handed back and fetched anew,
    they cost page faults. What it saves depends on the model: docs/results.md has figures.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
