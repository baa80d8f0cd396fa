"""The folder that a load test leaves behind reads back as it was written."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from numpy.typing import NDArray

from dragoman.options import TranslateOptions
from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.options import Misbehaviour, Phases, Target, Traffic
from dragoman_loadtest.run import Measurement, Plan
from dragoman_loadtest.samples import RECORD, Code, Samples
from dragoman_loadtest.schedule import ENTRY, Fate, Schedule
from dragoman_loadtest.store import (
    SCHEMA,
    description,
    read_records,
    read_run,
    write_requests,
    write_run,
)

PLAN = Plan(
    target=Target(),
    traffic=Traffic(rate=7.0, trace=Path("trace.csv")),
    options=TranslateOptions(beam_size=2),
    corpus=Corpus("texts", ("one", "two")),
)


def requests(count: int = 200) -> NDArray[Any]:
    """Requests over ten seconds, with values that do not come out even in decimal."""
    generator = np.random.default_rng(1)
    records = np.zeros(count, RECORD)
    records["request"] = np.arange(count)
    records["scheduled"] = np.sort(generator.uniform(0.0, 10.0, count))
    records["sent"] = records["scheduled"] + generator.exponential(1e-4, count)
    records["done"] = records["scheduled"] + generator.lognormal(-2.0, 1.0, count)
    records["first"] = np.where(generator.random(count) < 0.5, math.nan, records["done"])
    records["queue"] = generator.random(count)
    records["truncated"] = generator.random(count) < 0.5
    return records


def written(folder: Path, records: NDArray[Any]) -> Path:
    measurement = Measurement(
        schedule=Schedule(np.zeros(0, ENTRY)),
        samples=Samples(records, [None] * len(records)),
        seconds=10.0,
        drain_seconds=0.0,
        warm_up_seconds=0.0,
        was_steady=True,
        stopped_early=False,
        interrupted=False,
        processes=1,
        client_cpu_share=0.1,
        killed_clients=0,
        metrics_before={},
        metrics_after={},
        timeline=[],
        metrics_error="",
    )
    write_requests(folder / "new", measurement)
    return folder / "new"


def logged(folder: Path) -> list[HdrHistogram]:
    """The intervals of latency.hlog."""
    reader = HistogramLogReader(str(folder / "latency.hlog"), HdrHistogram(1, 3_600_000_000, 3))
    try:
        return list(iter(reader.get_next_interval_histogram, None))
    finally:
        reader.close()


@pytest.mark.parametrize("count", [0, 1, 200])
def test_requests_read_back_bit_by_bit(tmp_path: Path, count: int) -> None:
    records = requests(count)
    found = read_records(written(tmp_path, records))
    assert found.dtype == RECORD
    assert found.tobytes() == records.tobytes()


def test_every_fate_and_code_reads_back(tmp_path: Path) -> None:
    records = requests(len(Code) * len(Fate))
    records["code"] = list(Code) * len(Fate)
    records["fate"] = np.repeat(list(Fate), len(Code))
    found = read_records(written(tmp_path, records))
    assert (found["code"] == records["code"]).all()
    assert (found["fate"] == records["fate"]).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text.replace("request", "number", 1),
        lambda text: text.replace("0.", "o.", 1),
        lambda text: text[: text.rindex(",")],
        lambda text: text + "5,6\n",
        lambda text: text + "\n\n",
        lambda text: text.replace("\n1,", "\n99999999999,"),
    ],
    ids=["empty", "columns", "number", "cut", "short", "blank", "range"],
)
def test_requests_that_are_not_whole_are_refused_by_name(tmp_path: Path, spoil: Any) -> None:
    file = written(tmp_path, requests(3)) / "requests.csv"
    file.write_text(spoil(file.read_text()))
    with pytest.raises(ValueError, match=r"requests\.csv cannot be read"):
        read_records(file.parent)


def test_missing_requests_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"requests\.csv cannot be read"):
        read_records(tmp_path)


def test_the_histogram_log_has_every_timed_request(tmp_path: Path) -> None:
    records = requests()
    records["code"][:30] = Code.UNAVAILABLE
    records["fate"][30:40] = Fate.CANCEL
    records["code"][40:50] = Code.OPEN
    intervals = logged(written(tmp_path, records))
    assert sum(histogram.get_total_count() for histogram in intervals) == 160
    assert len(intervals) == len(set(np.floor(records["scheduled"][40:]).tolist()))


def test_the_histogram_log_has_the_latencies_of_each_second(tmp_path: Path) -> None:
    records = requests()
    latency = records["done"] - records["scheduled"]
    for histogram in logged(written(tmp_path, records)):
        second = histogram.get_start_time_stamp() / 1000
        inside = latency[np.floor(records["scheduled"]) == second]
        assert histogram.get_total_count() == len(inside)
        assert histogram.get_max_value() / 1e6 == pytest.approx(inside.max(), rel=2e-3)


def test_a_latency_beyond_an_hour_or_of_nothing_is_not_lost(tmp_path: Path) -> None:
    records = requests(3)
    records["done"][0] = records["scheduled"][0] + 4000.0
    records["done"][1] = records["scheduled"][1]
    intervals = logged(written(tmp_path, records))
    assert sum(histogram.get_total_count() for histogram in intervals) == 3


def test_without_requests_the_histogram_log_is_empty(tmp_path: Path) -> None:
    assert logged(written(tmp_path, requests(0))) == []


def test_a_run_reads_back_from_its_folder_or_file(tmp_path: Path) -> None:
    run = {"schema": SCHEMA, "text": "Grüße", "nothing": None}
    write_run(tmp_path / "new", run)
    assert read_run(tmp_path / "new") == read_run(tmp_path / "new" / "run.json") == run


@pytest.mark.parametrize("schema", [SCHEMA - 1, SCHEMA + 1, "1"])
def test_a_run_of_another_schema_is_refused(tmp_path: Path, schema: Any) -> None:
    write_run(tmp_path, {"schema": schema})
    with pytest.raises(ValueError, match=f"schema {schema}; this version reads {SCHEMA}"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{}", "[]", "null", "\xff"])
def test_what_is_no_run_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="no folder of a load test"):
        read_run(tmp_path)


def test_a_description_says_what_was_run_on_what() -> None:
    found = description(PLAN, "run", {"precision": "fp32"})
    json.dumps(found, allow_nan=False)
    assert (found["schema"], found["kind"], found["model"]) == (SCHEMA, "run", {"precision": "fp32"})
    assert found["settings"]["traffic"]["rate"] == 7.0
    assert found["settings"]["traffic"]["trace"] == "trace.csv"
    assert found["settings"]["decoding"]["beam_size"] == 2
    assert found["corpus"] == {"name": "texts", "texts": 2, "sha256": PLAN.corpus.sha256}
    assert found["machine"]["cpus"] >= 1
    assert found["versions"]["dragoman"]


@pytest.mark.parametrize(
    ("settings", "part"), [(Phases(), "phases"), (Misbehaviour(), "misbehaviour"), (Target(), "target")]
)
def test_a_description_has_every_setting(settings: Any, part: str) -> None:
    names = {field.name for field in dataclasses.fields(settings)}
    assert set(description(PLAN, "run", {})["settings"][part]) == names


def test_a_description_keeps_the_token_to_itself(tmp_path: Path) -> None:
    target = Target(tls=True, token_file=tmp_path / "hidden-token")
    found = description(dataclasses.replace(PLAN, target=target), "run", {})
    assert found["settings"]["target"]["token_file"] is True
    assert "hidden-token" not in json.dumps(found)
