"""The gate passes the exported graphs, and nothing that differs from torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dragoman_export import gate
from dragoman_export.gate import TOLERANCE, check
from dragoman_export.options import Precision
from dragoman_export.torch_reference import TorchReference
from dragoman_model.checkpoint import load_checkpoint
from dragoman_server.bundle import Bundle
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import load_model
from dragoman_server.engine.runner import FloatArray, IntArray
from dragoman_server.manifest import Gate

SOURCES = [[5, 9, 3], [7, 3], [4, 8, 11, 12, 3]]
SENTENCE = "The old dog sees a cat."

Change = Callable[[FloatArray, IntArray], tuple[FloatArray, IntArray]]


class ChangedRunner(OnnxRunner):
    """Lies about its third step."""

    change: Change

    def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> tuple[FloatArray, IntArray]:
        result = super().step(tokens, lengths, top_k)
        return self.change(*result) if lengths[0] == 2 else result


@pytest.fixture
def gate_of(plain: tuple[Path, Bundle]) -> Callable[..., Gate]:
    checkpoint, bundle = plain

    def gate_of(change: Change, precision: Precision = "fp32") -> Gate:
        def runner_of(rows: int) -> ChangedRunner:
            runner = ChangedRunner(load_model(bundle), rows)
            runner.change = change
            return runner

        return check(TorchReference(load_checkpoint(checkpoint)), runner_of, SOURCES, SENTENCE, precision)

    return gate_of


def test_the_exported_graphs_pass(gate_of: Callable[..., Gate]) -> None:
    found = gate_of(lambda log_prob, ids: (log_prob, ids))
    assert found.passed
    assert found.sentences == 3
    assert (found.greedy_agreement, found.beam_agreement, found.same_alone) == (1.0, 1.0, 1.0)
    assert found.max_log_prob_difference < TOLERANCE / 10
    assert set(found.behaviour.values()) == {"same"}
    assert found.steps >= len(SOURCES)
    assert len({canary.text for canary in found.canaries}) == 3
    assert {canary.beam_size for canary in found.canaries} == {4}
    assert all(canary.score < 0.0 and canary.tolerance > TOLERANCE for canary in found.canaries)


def test_a_difference_beyond_the_tolerance_fails(gate_of: Callable[..., Gate]) -> None:
    found = gate_of(lambda log_prob, ids: (log_prob - 2 * np.float32(TOLERANCE), ids))
    assert not found.passed
    assert found.canaries == ()
    assert found.greedy_agreement == 1.0
    assert found.max_log_prob_difference == pytest.approx(2 * TOLERANCE, rel=0.1)


def test_another_choice_of_token_fails(gate_of: Callable[..., Gate]) -> None:
    def swap(log_prob: FloatArray, ids: IntArray) -> tuple[FloatArray, IntArray]:
        ids[0, :2] = ids[0, 1::-1]
        return log_prob, ids

    found = gate_of(swap)
    assert not found.passed
    assert found.greedy_agreement == pytest.approx(2 / 3)
    assert found.beam_agreement < 1.0


def test_company_that_changes_a_translation_fails_in_every_precision(
    gate_of: Callable[..., Gate],
) -> None:
    def disturbed(log_prob: FloatArray, ids: IntArray) -> tuple[FloatArray, IntArray]:
        if len(ids) > 4:  # more than one beam
            ids = (ids + 1) % 30
        return log_prob, ids

    for precision in ("fp32", "fp16", "int8"):
        found = gate_of(disturbed, precision)
        assert not found.passed
        assert found.greedy_agreement == 1.0
        assert found.mean_log_prob_loss < TOLERANCE
        assert found.same_alone < 1.0


def test_nan_fails(gate_of: Callable[..., Gate]) -> None:
    def spoil(log_prob: FloatArray, ids: IntArray) -> tuple[FloatArray, IntArray]:
        log_prob[1] = np.nan
        return log_prob, ids

    found = gate_of(spoil)
    assert not found.passed
    assert np.isnan(found.max_log_prob_difference)
    assert found.beam_agreement < 1.0  # the engine fails the request
    assert found.behaviour["capitals"] == "failed"


@pytest.mark.parametrize(
    ("precision", "outcome", "passed"),
    [
        ("fp32", "same", True),
        ("fp32", "other", False),
        ("fp32", "failed", False),
        ("fp16", "other", True),
        ("fp16", "failed", False),
        ("int8", "other", True),
        ("int8", "failed", False),
    ],
)
def test_whole_texts_have_to_be_answered_and_in_fp32_as_torch_does(
    gate_of: Callable[..., Gate],
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    outcome: str,
    passed: bool,
) -> None:
    monkeypatch.setattr(gate, "behaviour", lambda *_, **__: {"empty": "same", "capitals": outcome})
    assert gate_of(lambda log_prob, ids: (log_prob, ids), precision).passed is passed
