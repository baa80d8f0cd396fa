"""How many threads the machine grants this process: its cgroup quota and affinity, not its host's cores."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["choose_threads"]


_CGROUPS = Path("/sys/fs/cgroup")


def choose_threads(cgroups: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Threads that can run at once, at least 1.

    Args:
        cgroups: Where the control groups are mounted, version 1 or 2.
        membership: The file that names this process's group; the quotas of its ancestors bind too.
    """
    granted = len(os.sched_getaffinity(0))
    for quota in _quotas(cgroups, membership):
        granted = min(granted, math.ceil(quota))
    return max(1, granted)


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Quotas in CPUs: of a container's own root, of the process's group and of its ancestors."""
    for line in (*_lines(membership), "0::/"):
        _, controllers, group = line.split(":", maxsplit=2)
        if controllers == "":
            for path in _upwards(cgroups, group):
                yield from _quota(_words(path / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for path in _upwards(cgroups / "cpu", group):
                yield from _quota(_words(path / "cpu.cfs_quota_us") + _words(path / "cpu.cfs_period_us"))


def _upwards(root: Path, group: str) -> list[Path]:
    below = Path(group.lstrip("/"))
    return [root / path for path in (below, *below.parents)]


def _quota(words: list[str]) -> list[float]:
    """`[quota]` of the words `allowed period`, in microseconds; nothing where there is no bound."""
    if len(words) != 2 or words[0] in ("max", "-1"):
        return []
    return [int(words[0]) / int(words[1])]


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
