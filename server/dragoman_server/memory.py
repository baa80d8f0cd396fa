"""Memory that is free goes back to the system, which glibc by itself does seldom.

It keeps what is freed in arenas, of which it has up to eight for every core. Weights that come and go on the
threads of a server that goes on working leave holes in all of them; so do the caches of keys and values as
they grow, once it has seen that large blocks come and go, and takes them from its arenas, too.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

__all__ = ["REST_SECONDS", "keep_little_freed", "return_freed_memory", "return_when_at_rest"]

REST_SECONDS = 1.0
"""Without a call, after which what is free goes back."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGE_BYTES = 8 * 2**20
"""Larger than what a step computes on the way: new pages for it each time would cost time."""
_HEAP_BYTES = 128 * 2**20


def keep_little_freed(arenas: int) -> None:
    """Have threads share so many arenas at most, and large blocks go back to the system when they are freed.

    For the start of a process, before it has threads. Does nothing where the C library is another than glibc,
    or the environment says MALLOC_ARENA_MAX, or MALLOC_MMAP_THRESHOLD_.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return
    if "MALLOC_ARENA_MAX" not in os.environ:
        set_option(_M_ARENA_MAX, arenas)
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        set_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        # With the threshold fixed, glibc would give back the end of its heap at every turn, and ask again.
        set_option(_M_TRIM_THRESHOLD, _HEAP_BYTES)


def return_freed_memory() -> None:
    """Have the C library return what it keeps; does nothing where it is another than glibc.

    Takes some milliseconds, in which other threads may wait for memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


async def return_when_at_rest(ended_calls: Callable[[], int], calls_in_progress: Callable[[], int]) -> None:
    """For ever: return freed memory, once, when calls have ended and then none has come for `REST_SECONDS`.

    Args:
        ended_calls: How many calls have ended so far.
        calls_in_progress: How many have not.
    """
    seen = returned = ended_calls()
    while True:
        await asyncio.sleep(REST_SECONDS)
        ended = ended_calls()
        if seen == ended > returned and not calls_in_progress():
            await asyncio.to_thread(return_freed_memory)
            returned = ended
        seen = ended
