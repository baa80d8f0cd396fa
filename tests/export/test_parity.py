"""Exported graphs, run as the server runs them, against torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from dragoman_model.checkpoint import load_checkpoint
from dragoman_model.reference import forced_log_probs
from dragoman_model.transformer import Transformer
from dragoman_server.bundle import Bundle
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import load_model
from dragoman_server.engine.runner import FloatArray
from dragoman_server.special_ids import BOS_ID, EOS_ID

STEPS = 36  # past the capacity that caches begin with
LENGTHS = [7, 1, 30, 12]


@pytest.fixture
def model(exported: tuple[Path, Bundle]) -> Transformer:
    return load_checkpoint(exported[0]).model


@pytest.fixture
def runner(exported: tuple[Path, Bundle]) -> OnnxRunner:
    return OnnxRunner(load_model(exported[1]), max_rows=len(LENGTHS))


@pytest.fixture
def sources(model: Transformer) -> list[list[int]]:
    generator = np.random.default_rng(0)
    size = model.config.source_vocabulary_size
    return [[*generator.integers(4, size, length - 1).tolist(), EOS_ID] for length in LENGTHS]


@pytest.fixture
def targets(model: Transformer) -> list[list[int]]:
    size = model.config.target_vocabulary_size
    drawn: list[list[int]] = np.random.default_rng(1).integers(4, size, (len(LENGTHS), STEPS)).tolist()
    return drawn


def poison(runner: OnnxRunner) -> None:
    """Fill all state with NaN, which no result may depend on."""
    for array in runner._slab.arrays.values():
        array.fill(np.nan)


def full_step(runner: OnnxRunner, tokens: Sequence[int], lengths: Sequence[int]) -> FloatArray:
    """Log-probabilities `[rows, vocabulary]` in order of the tokens."""
    log_prob, ids = runner.step(np.array(tokens), np.array(lengths), runner.limits.vocabulary_size)
    full = np.empty_like(log_prob)
    np.put_along_axis(full, ids, log_prob, axis=-1)
    return full


def test_rows_that_join_at_any_time_agree_with_torch(
    model: Transformer, runner: OnnxRunner, sources: list[list[int]], targets: list[list[int]]
) -> None:
    expected = [
        forced_log_probs(model, source, target).numpy()
        for source, target in zip(sources, targets, strict=True)
    ]
    poison(runner)
    joins = [0, 2, 3, 7]
    for now in range(STEPS):
        for row, join in enumerate(joins):
            if join == now:
                runner.encode([sources[row]], [[row]])
        rows = sum(join <= now for join in joins)
        lengths = [now - join for join in joins[:rows]]
        tokens = [[BOS_ID, *targets[row]][length] for row, length in enumerate(lengths)]
        found = full_step(runner, tokens, lengths)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(found[row], expected[row][length], atol=2e-5, rtol=1e-4)


def test_a_batch_says_what_its_sentences_say_alone(
    runner: OnnxRunner, sources: list[list[int]], targets: list[list[int]]
) -> None:
    rows = range(len(sources))
    runner.encode(sources, [[row] for row in rows])
    together = [full_step(runner, [targets[row][t] for row in rows], [t for _ in rows]) for t in range(8)]
    for row in rows:
        runner.encode([sources[row]], [[0]])
        for t in range(8):
            alone = full_step(runner, [targets[row][t]], [t])
            np.testing.assert_allclose(alone[0], together[t][row], atol=1e-5, rtol=1e-5)


def test_padding_and_start_symbol_are_ruled_out(runner: OnnxRunner, sources: list[list[int]]) -> None:
    runner.encode(sources[:1], [[0]])
    assert (full_step(runner, [BOS_ID], [0])[0, [0, BOS_ID]] < -1e8).all()


def test_files_hold_one_copy_of_the_table_and_no_trace_of_the_machine(exported: tuple[Path, Bundle]) -> None:
    checkpoint, bundle = exported
    config = load_checkpoint(checkpoint).config
    for graph in ("encoder.fp32.onnx", "decode_step.fp32.onnx"):
        content = bundle.read(graph)
        assert str(Path(__file__).parents[2]).encode() not in content
        tables = [
            tensor
            for tensor in onnx.load_from_string(content).graph.initializer
            if sorted(tensor.dims) == sorted((config.target_vocabulary_size, config.d_model))
        ]
        assert len(tables) <= (1 if config.tied_output else 2)
