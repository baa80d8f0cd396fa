"""MLPerf's own load generator as the referee: it decides what is sent when, and what that shows.

https://github.com/mlcommons/inference/tree/master/loadgen. Our part is to send the texts it names.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from dragoman_loadtest.samples import Code
from dragoman_loadtest.session import Session
from dragoman_loadtest.slo import Objective
from dragoman_loadtest.store import description, write_run
from dragoman_loadtest.wire import Wire, serialised

__all__ = ["referee"]

_NANOSECONDS = 1e9
_MIN_QUERIES = 100
_FINE_BELOW = 20.0  # requests per second below which LoadGen searches to tenths


def referee(session: Session, *, find_peak: bool) -> dict[str, Any]:
    """Let LoadGen test the session's server in its server scenario; its logs go to the session's folder.

    Raises:
        ImportError: mlcommons-loadgen is not installed.
        ValueError: the objectives are not one quantile of the latency.
    """
    plan = session.plan
    objective = _objective(plan.objectives)
    folder = session.out / "loadgen"
    folder.mkdir(parents=True, exist_ok=True)
    with _Sut(session) as sut:
        _start(sut, session, objective, folder, find_peak)
    found = _found(_SUMMARY_FIELDS, folder / "mlperf_log_summary.txt")
    if find_peak:
        found |= _found(_DETAIL_FIELDS, folder / "mlperf_log_detail.txt")
    found["failed_requests"] = sut.failed
    run = {
        **description(plan, "peak" if find_peak else "run", session.model),
        "engine": "loadgen",
        "loadgen": found,
    }
    write_run(session.out, run)
    return run


def _objective(objectives: tuple[Objective, ...]) -> Objective:
    if len(objectives) != 1 or objectives[0].metric != "latency":
        raise ValueError("--engine loadgen needs one objective of the latency, such as --slo 'p97<250ms'")
    return objectives[0]


def _start(sut: _Sut, session: Session, objective: Objective, folder: Path, find_peak: bool) -> None:
    import mlperf_loadgen as lg

    traffic, seconds = session.plan.traffic, session.plan.phases.duration_seconds
    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.Server
    settings.mode = lg.TestMode.FindPeakPerformance if find_peak else lg.TestMode.PerformanceOnly
    settings.server_target_qps = traffic.rate
    settings.server_target_latency_ns = int(objective.bound * _NANOSECONDS)
    settings.server_target_latency_percentile = objective.share
    settings.server_find_peak_qps_decimals_of_precision = 0 if traffic.rate >= _FINE_BELOW else 1
    settings.server_find_peak_qps_boundary_step_size = 1
    settings.min_duration_ms = int(1e3 * seconds)
    settings.min_query_count = _MIN_QUERIES
    settings.schedule_rng_seed = traffic.seed
    settings.sample_index_rng_seed = traffic.seed + 1
    settings.qsl_rng_seed = traffic.seed + 2
    output = lg.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs = lg.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    texts = len(session.plan.corpus.texts)
    handle = lg.ConstructSUT(sut.issue, sut.flush)
    library = lg.ConstructQSL(texts, texts, lambda samples: None, lambda samples: None)
    try:
        lg.StartTestWithLogSettings(handle, library, settings, logs)
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(handle)


class _Sut:
    """The system under test as LoadGen sees it: takes queries, reports their completion."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._unary, _ = serialised(session.plan.corpus.texts, session.plan.options)
        self._timeout = session.plan.traffic.timeout_seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.failed = 0

    def __enter__(self) -> _Sut:
        self._thread.start()
        self._wire = self._called(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._called(self._wire.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _called(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _connect(self) -> Wire:
        return Wire(self._session.plan.target)

    def issue(self, samples: list[Any]) -> None:
        """LoadGen asks for these now."""
        queries = [(sample.id, sample.index) for sample in samples]
        self._loop.call_soon_threadsafe(self._begin, queries)

    def _begin(self, queries: list[tuple[int, int]]) -> None:
        for number, item in queries:
            self._loop.create_task(self._translate(number, item))

    async def _translate(self, number: int, item: int) -> None:
        import mlperf_loadgen as lg

        outcome = await self._wire.unary(self._unary[item], self._timeout, None)
        self.failed += outcome.code is not Code.OK
        lg.QuerySamplesComplete([lg.QuerySampleResponse(number, 0, 0)])

    def flush(self) -> None:
        """Nothing is held back."""


_Fields = tuple[tuple[str, str, Callable[[str], Any]], ...]
_SUMMARY_FIELDS: _Fields = (
    ("result", r"Result is : (\w+)", str),
    ("scheduled_per_second", r"Scheduled samples per second\s*: ([\d.]+)", float),
    ("completed_per_second", r"Completed samples per second\s*: ([\d.]+)", float),
    ("p50_nanoseconds", r"50.00 percentile latency \(ns\)\s*: (\d+)", int),
    ("p97_nanoseconds", r"97.00 percentile latency \(ns\)\s*: (\d+)", int),
    ("p99_nanoseconds", r"99.00 percentile latency \(ns\)\s*: (\d+)", int),
)
_DETAIL_FIELDS: _Fields = (("peak_per_second", r"Found peak performance field: ([\d.]+)", float),)


def _found(fields: _Fields, file: Path) -> dict[str, Any]:
    """What LoadGen says in a log of its."""
    text = file.read_text(encoding="utf-8", errors="replace")
    matches = ((name, re.search(pattern, text), convert) for name, pattern, convert in fields)
    return {name: convert(match[1]) for name, match, convert in matches if match}
