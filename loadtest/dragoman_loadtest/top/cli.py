"""The command `dragoman top`."""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_format
import re
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from dragoman_loadtest.scrape import Growth, Scrape, scrape
from dragoman_loadtest.top.figures import ServerFigures, figures_of
from dragoman_loadtest.top.table import render

__all__ = ["top"]

_LEAST_INTERVAL = 0.1

_Seen = ServerFigures | ConnectionError


def top(
    *, metrics: str = "127.0.0.1:9090", interval: float = 1.0, once: bool = False, json: bool = False
) -> None:
    """Watch a running server: calls, tokens, queue, slots, refusals; until Ctrl-C, through its restarts.

    Args:
        metrics: HOST:PORT of the metrics, which `dragoman serve --metrics-port` opens.
        interval: Seconds between two readings; rates are of the time between them.
        once: Show one table, after two readings, and end.
        json: Print one JSON object for every reading after the first, {"error": ...} for one that failed.
    """
    if not re.fullmatch(r"[^\s/]+:\d+", metrics):
        raise ValueError(f"--metrics must be HOST:PORT, such as 127.0.0.1:9090, and not {metrics!r}")
    if not interval >= _LEAST_INTERVAL:
        raise ValueError(f"--interval must be at least {_LEAST_INTERVAL} seconds")
    first = _first(metrics)
    with contextlib.suppress(KeyboardInterrupt), _shown(metrics, json, once) as show:
        for seen in _watch(metrics, first, interval):
            if once and isinstance(seen, ConnectionError):
                raise seen
            show(seen)
            if once:
                return


def _first(address: str) -> Scrape:
    try:
        first = scrape(address)
    except ConnectionError as error:
        fix = "start a server with `dragoman serve --metrics-port`, or name another with --metrics"
        raise ConnectionError(f"no server shows its metrics at {address}: {fix} ({error})") from error
    if not any(first.select("dragoman_calls_in_progress")):
        raise ConnectionError(f"what answers at {address} is no dragoman server: name one with --metrics")
    return first


def _watch(address: str, before: Scrape | None, interval: float) -> Iterator[_Seen]:
    """Figures again and again, or why there are none; after a failure two readings are needed anew."""
    while True:
        time.sleep(interval)
        try:
            after = scrape(address)
        except ConnectionError as error:
            before = None
            yield error
            continue
        if before is not None:
            yield figures_of(Growth(before, after))
        before = after


@contextlib.contextmanager
def _shown(address: str, json: bool, once: bool) -> Iterator[Callable[[_Seen], None]]:
    """What shows figures: JSON lines, a live view in a terminal, one table after the other elsewhere."""
    console = Console()
    if json:
        yield _print_json
    elif once or not console.is_terminal:
        yield lambda seen: console.print(_rendered(address, seen))
    else:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda seen: live.update(_rendered(address, seen), refresh=True)


def _print_json(seen: _Seen) -> None:
    record = {"error": str(seen)} if isinstance(seen, ConnectionError) else dataclasses.asdict(seen)
    sys.stdout.write(json_format.dumps(record) + "\n")
    sys.stdout.flush()


def _rendered(address: str, seen: _Seen) -> RenderableType:
    if isinstance(seen, ConnectionError):
        return Text(f"no answer, trying on: {seen}", style="yellow")
    return render(address, seen)
