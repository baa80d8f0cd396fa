"""What is sent when: decided by the seed, as the arrival process says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dragoman_loadtest.options import Misbehaviour, Traffic
from dragoman_loadtest.schedule import Fate, Schedule, closed_loop, read_trace, schedule

ARRIVALS = ("poisson", "constant", "burst", "ramp")
WELL_BEHAVED = Misbehaviour()


def open_loop(seconds: float = 100.0, seed: int = 1, texts: int = 50, **traffic: Any) -> Schedule:
    return schedule(Traffic(**{"rate": 100.0, **traffic}), WELL_BEHAVED, texts, seconds, seed)


def trace(folder: Path, content: str, texts: int = 9, seed: int = 1, **traffic: Any) -> Schedule:
    file = folder / "trace.csv"
    file.write_text(content)
    return read_trace(file, Traffic(trace=file, **traffic), WELL_BEHAVED, texts, seed)


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_the_seed_decides_everything(arrivals: str) -> None:
    one, same, other = (open_loop(seed=seed, arrivals=arrivals) for seed in (1, 1, 2))
    assert one.sha256 == same.sha256 != other.sha256
    assert (one.entries == same.entries).all()


@settings(deadline=None)
@given(st.sampled_from(ARRIVALS), st.floats(0.1, 500.0), st.floats(0.5, 20.0), st.integers(0, 99))
def test_times_rise_and_stay_within_the_phase(arrivals: str, rate: float, seconds: float, seed: int) -> None:
    at = open_loop(seconds, seed, arrivals=arrivals, rate=rate).entries["at"]
    assert (np.diff(at) >= 0.0).all()
    assert ((at >= 0.0) & (at <= seconds)).all()


def test_poisson_arrivals_have_the_rate_and_exponential_gaps() -> None:
    at = open_loop(seconds=200.0).entries["at"]
    assert len(at) == pytest.approx(20_000, rel=0.03)
    assert stats.kstest(np.diff(at), "expon", args=(0.0, 0.01)).pvalue > 0.01


def test_constant_arrivals_are_evenly_spaced() -> None:
    at = open_loop(seconds=10.0, rate=8.0, arrivals="constant").entries["at"]
    assert at == pytest.approx(np.arange(80) / 8.0)


def test_a_burst_is_of_requests_at_one_moment() -> None:
    at = open_loop(arrivals="burst", burst=7).entries["at"]
    _, together = np.unique(at, return_counts=True)
    assert set(together) == {7}
    assert len(at) == pytest.approx(10_000, rel=0.1)


def test_a_ramp_grows_evenly_to_its_rate() -> None:
    at = open_loop(seconds=400.0, arrivals="ramp").entries["at"]
    counts, _ = np.histogram(at, bins=4, range=(0.0, 400.0))
    assert counts == pytest.approx(10_000 * np.array([0.125, 0.375, 0.625, 0.875]), rel=0.1)
    assert np.count_nonzero(at > 390.0) == pytest.approx(1000, rel=0.15)


@given(st.integers(1, 30), st.integers(0, 200), st.integers(0, 9))
def test_a_shuffled_draw_takes_every_text_once_before_any_again(texts: int, count: int, seed: int) -> None:
    made = open_loop(1.0, seed, texts, arrivals="constant", rate=count + 0.1)
    items = made.entries["item"]
    for first in range(0, len(items), texts):
        part = items[first : first + texts]
        assert len(set(part)) == len(part)
        assert set(part) <= set(range(texts))


def test_the_passes_of_a_shuffled_draw_differ_in_order() -> None:
    items = open_loop(2.0, texts=100, arrivals="constant").entries["item"]
    assert sorted(items[:100]) == sorted(items[100:])
    assert (items[:100] != items[100:]).any()


def test_a_uniform_draw_takes_every_text_on_its_own() -> None:
    items = open_loop(texts=10, draw="uniform", arrivals="constant").entries["item"]
    assert stats.chisquare(np.bincount(items, minlength=10)).pvalue > 0.01
    assert len(set(items[:10])) < 10


def test_fates_have_their_shares() -> None:
    bad = Misbehaviour(cancel_share=0.2, cancel_within_seconds=0.4, slow_share=0.1)
    entries = schedule(Traffic(rate=1000.0), bad, 10, 20.0, 1).entries
    shares = {fate: np.mean(entries["fate"] == fate) for fate in Fate}
    assert shares == pytest.approx({Fate.PLAIN: 0.7, Fate.CANCEL: 0.2, Fate.READ_SLOWLY: 0.1}, abs=0.02)
    assert entries["patience"].min() >= 0.0
    assert entries["patience"].max() <= 0.4
    assert entries["patience"].mean() == pytest.approx(0.2, abs=0.01)


def test_without_misbehaviour_every_request_is_plain_and_has_the_timeout() -> None:
    entries = open_loop(timeout_seconds=7.0).entries
    assert set(entries["fate"]) == {Fate.PLAIN}
    assert set(entries["timeout"]) == {7.0}


def test_deadlines_are_drawn_by_their_weights() -> None:
    bad = Misbehaviour(deadlines="500ms:1,2s:3")
    timeouts = schedule(Traffic(rate=1000.0), bad, 10, 10.0, 1).entries["timeout"]
    assert set(timeouts) == {0.5, 2.0}
    assert np.mean(timeouts == 2.0) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_max_requests_cuts_the_end(arrivals: str) -> None:
    whole, cut = open_loop(arrivals=arrivals), open_loop(arrivals=arrivals, max_requests=30)
    assert len(cut) == 30
    assert (cut.entries["at"] == whole.entries["at"][:30]).all()


def test_the_shares_of_processes_are_the_whole() -> None:
    made = open_loop(seconds=1.0)
    parts = [made.share(i, 3) for i in range(3)]
    assert sorted(np.concatenate(parts)["at"]) == list(made.entries["at"])
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_closed_loop_plans_texts_but_no_times() -> None:
    made = closed_loop(Traffic(concurrency=4, max_requests=500), WELL_BEHAVED, 50, 1)
    assert len(made) == 500
    assert set(made.entries["at"]) == {0.0}
    assert set(made.entries["item"]) == set(range(50))
    assert made.sha256 == closed_loop(Traffic(concurrency=4, max_requests=500), WELL_BEHAVED, 50, 1).sha256


def test_a_trace_is_replayed_in_order_from_its_first_request(tmp_path: Path) -> None:
    made = trace(tmp_path, "line,seconds\n3,12.5\n1,10\n9,11\n")
    assert list(made.entries["at"]) == [0.0, 1.0, 2.5]
    assert list(made.entries["item"]) == [0, 8, 2]


def test_a_trace_without_lines_draws_its_texts(tmp_path: Path) -> None:
    made = trace(tmp_path, "seconds\n" + "".join(f"{i}\n" for i in range(9)))
    assert set(made.entries["item"]) == set(range(9))
    assert made.sha256 == trace(tmp_path, "seconds\n" + "".join(f"{i}\n" for i in range(9))).sha256


def test_a_trace_is_cut_at_its_earliest_requests(tmp_path: Path) -> None:
    made = trace(tmp_path, "seconds,line\n5,1\n1,2\n3,3\n", max_requests=2)
    assert list(made.entries["at"]) == [0.0, 2.0]
    assert list(made.entries["item"]) == [1, 2]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("seconds\n1\nsoon\n", 3),
        ("seconds\n-1\n", 2),
        ("seconds\nnan\n", 2),
        ("seconds\ninf\n", 2),
        ("time\n1\n", 2),
        ("seconds,line\n1,x\n", 2),
        ("seconds,line\n1,1\n2,10\n", 3),
        ("seconds,line\n1,0\n", 2),
        ("seconds,line\n1,-3\n", 2),
        ("seconds\n1\n\n\nsoon\n", 5),
    ],
)
def test_an_error_in_a_trace_names_file_and_line(tmp_path: Path, content: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"trace\.csv:{line}: "):
        trace(tmp_path, content)


def test_a_trace_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trace\.csv: no request"):
        trace(tmp_path, "seconds\n")
    with pytest.raises(ValueError, match=r"trace\.csv: cannot be read"):
        trace(tmp_path, f"seconds\n{'1' * 200_000}\n")
    with pytest.raises(ValueError, match=r"gone\.csv: cannot be read"):
        read_trace(tmp_path / "gone.csv", Traffic(), WELL_BEHAVED, 9, 1)
