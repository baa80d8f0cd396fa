"""Records that come in pieces are kept in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dragoman_loadtest.samples import RECORD, Code, Collection, Samples


def report(first: int, count: int) -> Samples:
    records = np.zeros(count, RECORD)
    records["request"] = np.arange(first, first + count)
    gaps = np.full(count, first, np.float32)
    return Samples(records, [f"answer {first + i}" for i in range(count)], gaps, {"UNAVAILABLE: gone": count})


@given(st.lists(st.integers(0, 3000), max_size=6))
def test_a_collection_holds_what_was_added_in_order(counts: list[int]) -> None:
    collection, total = Collection(), 0
    for count in counts:
        collection.add(report(total, count))
        total += count
    samples = collection.samples()
    assert list(samples.records["request"]) == list(range(total))
    assert samples.answers == [f"answer {i}" for i in range(total)]
    assert len(samples) == len(samples.gaps) == total
    assert sum(samples.errors.values()) == total


def test_records_seen_earlier_stay_as_they_were() -> None:
    collection = Collection()
    collection.add(report(0, 1000))
    seen = collection.records
    for i in range(1, 5):
        collection.add(report(1000 * i, 1000))
    assert list(seen["request"]) == list(range(1000))


def test_samples_are_a_copy() -> None:
    collection = Collection()
    collection.add(report(0, 1))
    samples = collection.samples()
    samples.records["request"] = 7
    samples.answers.append(None)
    assert collection.records["request"] == [0]
    assert len(collection.samples().answers) == 1


def test_no_report_gives_no_samples() -> None:
    samples = Collection().samples()
    assert (len(samples), samples.answers, len(samples.gaps), samples.errors) == (0, [], 0, {})


def test_every_code_fits_its_column() -> None:
    records = np.zeros(len(Code), RECORD)
    records["code"] = list(Code)
    assert [Code(code) for code in records["code"]] == list(Code)
