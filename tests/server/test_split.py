"""How cores are divided, and how fast a division is."""

from __future__ import annotations

import time

import pytest

from dragoman_server.engine.split import Split, rows_per_second, splits


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(2, 1), (1, 2)]),
        (3, [(3, 1), (1, 3)]),
        (16, [(16, 1), (8, 9), (4, 13), (1, 16)]),
    ],
)
def test_what_is_tried_keeps_every_core_busy(cores, expected):
    found = splits(cores)
    assert [(split.workers, split.threads) for split in found] == expected
    assert all(split.workers + split.threads - 1 == cores for split in found)


@pytest.mark.parametrize(
    ("workers", "threads", "expected"),
    [
        (3, 0, Split(3, 6)),
        (0, 2, Split(7, 2)),
        (2, 5, Split(2, 5)),
        (20, 0, Split(20, 1)),
        (0, 20, Split(1, 20)),
    ],
)
def test_what_is_asked_for_is_not_tried_against_others(workers, threads, expected):
    assert splits(8, workers, threads) == [expected]


def test_all_runners_are_stepped_at_once_and_their_rows_counted(scripted_runner):
    class Sleepy(scripted_runner):
        def step(self, tokens, lengths, top_k):
            time.sleep(0.02)
            return super().step(tokens, lengths, top_k)

    runners = [Sleepy(max_rows=4), Sleepy(max_rows=4)]
    found = rows_per_second(runners)
    # Two runners, 4 rows every 20 ms.
    assert found <= 2 * 4 / 0.02
    for runner in runners:
        assert set(runner.rows) == {4}
        assert len(runner.rows) > 3
    assert all(sources == [(0,) * 16] * 4 for runner in runners for sources in runner.encoded)


def test_a_model_smaller_than_the_trial_is_tried_within_its_limits(scripted_runner):
    runner = scripted_runner(max_rows=2, max_source=3, max_target=2)
    assert rows_per_second([runner]) > 0.0
    assert set(runner.rows) == {2}


def test_what_fails_is_not_hidden(scripted_runner):
    class Broken(scripted_runner):
        def encode(self, sources, slots):
            raise RuntimeError("no such weights")

    with pytest.raises(RuntimeError, match="no such weights"):
        rows_per_second([Broken()])
