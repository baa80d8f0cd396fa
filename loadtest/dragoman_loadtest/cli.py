"""The command `dragoman loadtest`."""

from __future__ import annotations

import contextlib
import json as json_format
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from dragoman.options import TranslateOptions
from dragoman_loadtest.compare import Comparison, compare_answered, compare_records
from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.live import LiveView
from dragoman_loadtest.options import Judgement, Misbehaviour, Mode, Phases, Target, Traffic
from dragoman_loadtest.preset import mlperf_departures, mlperf_gnmt
from dragoman_loadtest.report import render
from dragoman_loadtest.run import Moment, Plan
from dragoman_loadtest.session import Session
from dragoman_loadtest.slo import parse_objectives
from dragoman_loadtest.store import read_records, read_run, write_run
from dragoman_loadtest.tables import print_comparisons, print_run

__all__ = ["app", "compare", "loadtest"]

_FLAGS = Parameter(name="*")
_EXITS = {None: 0, "pass": 0, "fail": 1, "undecided": 3}
_EXIT_REGRESSION = 1
_EXIT_INVALID = 4

app = App(name="loadtest", help="Load test a server: what it carries, and whether it is right while it does.")


@app.default
def loadtest(
    *,
    corpus: Path,
    target: Annotated[Target, _FLAGS] = Target(),  # noqa: B008  # frozen
    traffic: Annotated[Traffic, _FLAGS] = Traffic(),  # noqa: B008
    options: Annotated[TranslateOptions, _FLAGS] = TranslateOptions(),  # noqa: B008
    phases: Annotated[Phases, _FLAGS] = Phases(),  # noqa: B008
    judgement: Annotated[Judgement, _FLAGS] = Judgement(),  # noqa: B008
    misbehaviour: Annotated[Misbehaviour, _FLAGS] = Misbehaviour(),  # noqa: B008
    mode: Annotated[Mode, _FLAGS] = Mode(),  # noqa: B008
    threshold: float = 0.1,
    out: Path | None = None,
    report: Path | None = None,
    json: bool = False,
) -> int:
    """Load a running server with the texts of a file, and report what it carried.

    Args:
        corpus: Texts to translate, one a line.
        target: Which server.
        traffic: What is sent, when.
        options: Model, languages and search.
        phases: Warm-up, measurement, drain.
        judgement: What the run has to show.
        misbehaviour: Clients that cancel, dawdle or die.
        mode: One run, or a search.
        threshold: With --ab, growth of a quantile that counts as a regression.
        out: Folder for run.json, requests.csv, latency.hlog, report.html; by default one below loadtests/.
        report: File for the HTML report instead of report.html in that folder.
        json: Print run.json.

    Returns:
        The exit code: 0 objectives met, or none; 1 not met; 3 undecided; 4 the client was the bottleneck.
    """
    if mode.preset == "mlperf-gnmt":
        traffic, phases, judgement = mlperf_gnmt(traffic, phases, judgement)
    if mode.find_peak and not judgement.slo:
        judgement = replace(judgement, slo="p97<250ms")
    if mode.sweep and mode.peak is None and not judgement.slo:
        raise ValueError("--sweep needs --slo to search the peak, or --peak")
    plan = Plan(
        target=target,
        traffic=traffic,
        options=options,
        corpus=Corpus.read(corpus, judgement.reference),
        phases=phases,
        misbehaviour=misbehaviour,
        objectives=parse_objectives(judgement.slo),
        confidence=judgement.confidence,
        early_stop=judgement.early_stop,
    )
    folder = out or Path("loadtests") / time.strftime("%Y-%m-%d-%H%M%S")
    console = Console(stderr=json)
    session = Session(plan, folder, _Terminal(console), judgement.check)
    if mode.ab is not None:
        return _alternate(session, mode, threshold, console, json)
    run = _run(session, mode)
    if mode.preset is not None and "figures" in run:
        run["departures"] = mlperf_departures(plan.corpus, run["figures"])
        write_run(folder, run)
    return _finish(run, folder, report, console, json)


def _run(session: Session, mode: Mode) -> dict[str, Any]:
    if mode.engine == "loadgen":
        from dragoman_loadtest.referee import referee

        return referee(session, find_peak=mode.find_peak)
    if mode.find_peak:
        return session.peak()
    if mode.sweep:
        return session.sweep(mode.peak)
    return session.single()


def _finish(run: dict[str, Any], folder: Path, report: Path | None, console: Console, json: bool) -> int:
    if json:
        sys.stdout.write(json_format.dumps(run, ensure_ascii=False) + "\n")
    else:
        print_run(run, console)
    if "loadgen" in run:  # which judges by itself, and whose pictures are not ours
        console.print(f"its logs are in {folder / 'loadgen'}", style="dim", highlight=False, soft_wrap=True)
        return 0 if run["loadgen"].get("peak_per_second") or run["loadgen"].get("result") == "VALID" else 1
    page = report or folder / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(run), encoding="utf-8")
    console.print(
        f"pictures in {page}, every figure in {folder / 'run.json'}",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    return _exit_code(run)


def _exit_code(run: dict[str, Any]) -> int:
    if run["kind"] != "run":
        return 0 if run["kind"] == "sweep" or run["peak"]["rate"] else 1
    figures = run["figures"]
    return _EXITS[figures["verdict"]] if figures["self_check"]["valid"] else _EXIT_INVALID


def _alternate(session: Session, mode: Mode, threshold: float, console: Console, json: bool) -> int:
    assert mode.ab is not None
    target = replace(session.plan.target, endpoint=mode.ab, metrics=None)
    other = Session(replace(session.plan, target=target), session.out / "b", session.progress, False)
    session.out /= "a"
    return _print_comparisons(session.alternate(other, mode.rounds, threshold), console, json)


@app.command
def compare(
    a: Path, b: Path, /, *, threshold: float = 0.1, different_load: bool = False, json: bool = False
) -> int:
    """Compare two runs of the same load: how much slower is B, and is that more than chance?

    Args:
        a: Folder of the run to compare with.
        b: Folder of the run in question.
        threshold: Growth of a quantile that counts as a regression, where chance is ruled out.
        different_load: Compare runs of different schedules all the same.
        json: Print the comparison as JSON.

    Returns:
        The exit code: 1 where a quantile regressed.
    """
    runs = [read_run(folder) for folder in (a, b)]
    if len({run.get("schedule_sha256") for run in runs}) > 1 and not different_load:
        raise ValueError(
            f"{a} and {b} sent different requests: run both with the same corpus, rate, duration and seed, "
            "or add --different-load"
        )
    before, after = read_records(a), read_records(b)
    comparisons = [*compare_records(before, after, threshold), compare_answered(before, after)]
    return _print_comparisons(comparisons, Console(stderr=json), json)


def _print_comparisons(comparisons: list[Comparison], console: Console, json: bool) -> int:
    if json:
        sys.stdout.write(json_format.dumps([asdict(found) for found in comparisons]) + "\n")
    else:
        print_comparisons(comparisons, console)
    return _EXIT_REGRESSION if any(found.regression for found in comparisons) else 0


class _Terminal:
    """Progress on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def watching(self, title: str) -> Iterator[Callable[[Moment], None]]:
        with LiveView(self._console, title) as view:
            yield view

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def asking(self, done: int, total: int) -> None:
        if self._console.is_terminal:
            end = "\n" if done == total else "\r"
            self._console.print(f"asking the unloaded server: {done} of {total}", end=end, highlight=False)
