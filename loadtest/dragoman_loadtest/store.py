"""The folder a load test leaves behind: run.json, requests.csv, latency.hlog, report.html."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogWriter
from numpy.typing import NDArray

from dragoman_loadtest.machine import describe_machine
from dragoman_loadtest.measures import seconds_of, timed
from dragoman_loadtest.run import Measurement, Plan
from dragoman_loadtest.samples import RECORD

__all__ = ["SCHEMA", "description", "read_records", "read_run", "write_requests", "write_run"]

SCHEMA = 1
_MICROSECONDS = 1e6
_LONGEST_SECONDS = 3600
_SIGNIFICANT_DIGITS = 3
_PACKAGES = ("grpcio", "protobuf", "numpy", "scipy")


def description(plan: Plan, kind: str, model: dict[str, Any]) -> dict[str, Any]:
    """What was run, on what, against what; `kind` is run, peak or sweep."""
    settings = {
        "target": {**asdict(plan.target), "token_file": plan.target.token_file is not None},
        "traffic": asdict(plan.traffic),
        "misbehaviour": asdict(plan.misbehaviour),
        "phases": asdict(plan.phases),
        "decoding": asdict(plan.options),
    }
    return {
        "schema": SCHEMA,
        "kind": kind,
        "made_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": json.loads(json.dumps(settings, default=str)),
        "corpus": {"name": plan.corpus.name, "texts": len(plan.corpus.texts), "sha256": plan.corpus.sha256},
        "model": model,
        "machine": describe_machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("dragoman", *_PACKAGES)},
    }


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """Write `run.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_run(folder: Path) -> dict[str, Any]:
    """Read the `run.json` of a folder.

    Raises:
        ValueError: there is none, or of another schema.
    """
    file = folder / "run.json" if folder.is_dir() else folder
    try:
        run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = run["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no folder of a load test: it has no readable run.json") from error
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema}; this version reads {SCHEMA}")
    return run


def write_requests(folder: Path, measurement: Measurement) -> None:
    """Write `requests.csv`, one line a request, and `latency.hlog`, an HdrHistogram log of each second."""
    folder.mkdir(parents=True, exist_ok=True)
    records = measurement.samples.records
    names = RECORD.names or ()
    with (folder / "requests.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows(records.tolist())
    _write_histograms(folder / "latency.hlog", records)


def read_records(folder: Path) -> NDArray[Any]:
    """Read `requests.csv` back.

    Raises:
        ValueError: there is none, or not such a file.
    """
    file = folder / "requests.csv"
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = csv.reader(stream)
            if tuple(next(rows, ())) != RECORD.names:
                raise ValueError("other columns")
            truncated = (RECORD.names or ()).index("truncated")
            values = [[*row[:truncated], row[truncated] == "True", *row[truncated + 1 :]] for row in rows]
        return np.array([tuple(value) for value in values], RECORD)
    except (OSError, ValueError, IndexError, OverflowError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _write_histograms(file: Path, records: NDArray[Any]) -> None:
    chosen = records[timed(records)]
    seconds = np.floor(chosen["scheduled"]).astype(int)
    latency = np.maximum(seconds_of(chosen, "latency") * _MICROSECONDS, 1.0)
    with file.open("w", encoding="utf-8") as stream:
        log = HistogramLogWriter(stream)
        log.output_comment("[Latency from the scheduled time, in microseconds]")
        log.output_log_format_version()
        log.output_legend()
        for second in np.unique(seconds):
            histogram = HdrHistogram(1, int(_LONGEST_SECONDS * _MICROSECONDS), _SIGNIFICANT_DIGITS)
            for value in latency[seconds == second]:
                histogram.record_value(int(value))
            start = int(second) * 1000
            histogram.set_start_time_stamp(start)
            histogram.set_end_time_stamp(start + 1000)
            log.output_interval_histogram(histogram)
