"""Faults on purpose strike what they are told to, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from dragoman_server.engine.faults import ENVIRONMENT, Fault, FaultyRunner, with_faults
from dragoman_server.engine.runner import SlotCopy

TOKENS, LENGTHS = np.array([1, 1]), np.array([0, 0])


@pytest.fixture
def faulty(scripted_runner):
    """A runner with the faults named, two sources encoded in slots 0 and 1."""

    def make(*faults):
        runner = FaultyRunner(scripted_runner(), [Fault.parse(fault) for fault in faults])
        runner.encode([(3, 4), (5,)], [(0,), (1,)])
        return runner

    return make


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("step:raise", Fault("step", "raise")),
        ("encode:sleep=0.25@3", Fault("encode", "sleep", 0.25, first=3, last=3)),
        ("step:raise@5-9", Fault("step", "raise", first=5, last=9)),
        ("copy:exit@2-", Fault("copy", "exit", first=2)),
        ("step:nan@token=37", Fault("step", "nan", token=37)),
        ("encode:leak=2048", Fault("encode", "leak", leak=2048)),
    ],
)
def test_faults_are_read(text, fault):
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    "text", ["", "step", "step:burn", "walk:raise", "step:sleep", "encode:leak", "step:raise@x"]
)
def test_what_is_no_fault_is_refused(text):
    with pytest.raises(ValueError, match=r"is no VERB:ACTION\[@WHEN\]"):
        Fault.parse(text)


def test_the_nth_call_fails(faulty):
    runner = faulty("step:raise@2")
    runner.step(TOKENS, LENGTHS, 1)
    with pytest.raises(RuntimeError, match="on purpose"):
        runner.step(TOKENS, LENGTHS + 1, 1)
    runner.step(TOKENS, LENGTHS + 1, 1)


def test_a_token_marks_the_rows_meant_wherever_they_go(faulty):
    runner = faulty("step:nan@token=4")
    log_probs, _ = runner.step(TOKENS, LENGTHS, 1)
    assert np.isnan(log_probs[:, 0]).tolist() == [True, False]
    runner.copy([SlotCopy(0, 2, 0, 1, with_memory=True)])
    runner.encode([(6,)], [(0,)])
    log_probs, _ = runner.step(np.array([1, 1, 1]), np.array([0, 1, 1]), 1)
    assert np.isnan(log_probs[:, 0]).tolist() == [False, False, True]


def test_the_environment_asks_for_faults_and_the_log_says_so(scripted_runner, monkeypatch, caplog):
    runner = scripted_runner()
    assert with_faults(runner) is runner
    assert not caplog.records
    monkeypatch.setenv(ENVIRONMENT, "encode:raise,step:nan")
    with pytest.raises(RuntimeError, match="on purpose"):
        with_faults(runner).encode([(3,)], [(0,)])
    assert "encode:raise,step:nan" in caplog.text
