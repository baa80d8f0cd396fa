"""Float16 graphs: half the size, near to the float ones, served like any other precision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import dragoman
from dragoman_export.cli import export
from dragoman_export.gate import FP16_TOLERANCE, INT8_TOLERANCE
from dragoman_export.options import ExportOptions
from dragoman_export.writer import export_checkpoint
from dragoman_model.checkpoint import load_checkpoint
from dragoman_model.evaluation import checkpoint_translator
from dragoman_model.reference import forced_log_probs
from dragoman_server.bundle import Bundle
from dragoman_server.engine.messages import DecodingOptions
from dragoman_server.engine.onnx_device_runner import DeviceRunner
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import load_model
from dragoman_server.engine.runner import FloatArray, Runner

SOURCES = [[5, 9, 3], [7, 3], [4, 8, 11, 12, 3], [6, 6, 6, 6, 6, 6, 3]]
FED = [2, 5, 9, 4, 7, 11]


@pytest.fixture(scope="module")
def half(exported: tuple[Path, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of float16, of every variant; `exported` has the same in float32."""
    out = tmp_path_factory.mktemp("models") / "tiny" / "1"
    return export_checkpoint(exported[0], out, ExportOptions(precision=("fp16",)))


def steps(
    bundle: Bundle, sources: list[list[int]], kind: Callable[..., Runner] = OnnxRunner
) -> list[FloatArray]:
    """Log-probabilities of the whole vocabulary, in its order, at every step along `FED`."""
    runner = kind(load_model(bundle, "fp16"), max_rows=len(sources))
    runner.encode(sources, [[row] for row in range(len(sources))])
    found = []
    for step, token in enumerate(FED):
        rows = len(sources)
        log_prob, ids = runner.step(np.full(rows, token), np.full(rows, step), runner.limits.vocabulary_size)
        ordered = np.empty_like(log_prob)
        np.put_along_axis(ordered, ids, log_prob, axis=1)
        found.append(ordered)
    return found


def test_float16_says_nearly_what_torch_says(exported: tuple[Path, Bundle], half: Bundle) -> None:
    model = load_checkpoint(exported[0]).model
    found = np.stack(steps(half, SOURCES), axis=1)  # [rows, steps, vocabulary]
    for row, source in zip(found, SOURCES, strict=True):
        expected = forced_log_probs(model, source, FED[1:]).numpy()
        likely = expected > -20.0  # neither padding nor start symbol
        difference = np.abs(row - expected)[likely]
        assert 0.0 < difference.max() < 0.1
        assert difference.mean() < 0.01
        assert (row[~likely] < -1e8).all()


def test_a_row_says_in_company_what_it_says_alone(half: Bundle) -> None:
    together = steps(half, SOURCES)
    for row, source in enumerate(SOURCES):
        for alone, beside in zip(steps(half, [source]), together, strict=True):
            np.testing.assert_allclose(alone[0], beside[row], atol=0.02)


def test_the_gate_asks_more_of_float16_than_of_integers(exported: tuple[Path, Bundle], half: Bundle) -> None:
    single, gate = exported[1].manifest.gates["fp32"], half.manifest.gates["fp16"]
    assert gate.passed
    assert gate.tolerance == FP16_TOLERANCE < INT8_TOLERANCE
    assert gate.mean_log_prob_loss <= FP16_TOLERANCE
    assert gate.max_log_prob_difference > single.max_log_prob_difference
    card = half.read("MODEL_CARD.md").decode()
    assert "fp16 is meant for CUDA" in card
    assert "| checked on | the CPU provider |" in card


def weights(bundle: Bundle, file: str) -> dict[str, onnx.TensorProto]:
    graph = onnx.load_model_from_string(bundle.read(file)).graph
    return {tensor.name: tensor for tensor in graph.initializer}


def test_every_matrix_is_there_once_in_float16(exported: tuple[Path, Bundle], half: Bundle) -> None:
    for file in ("encoder", "decode_step"):
        single = weights(exported[1], f"{file}.fp32.onnx")
        halved = weights(half, f"{file}.fp16.onnx")
        assert halved.keys() == single.keys()
        floats = [name for name, tensor in halved.items() if tensor.data_type == TensorProto.FLOAT]
        assert floats == (["output_bias"] if file == "decode_step" else [])
        sizes = [
            sum(tensor.ByteSize() for tensor in every.values() if len(tensor.dims) == 2)
            for every in (single, halved)
        ]
        assert sizes[1] < 0.55 * sizes[0]


def test_what_follows_the_scores_and_what_norms_add_up_is_float32(half: Bundle) -> None:
    graph = onnx.load_model_from_string(half.read("decode_step.fp16.onnx")).graph
    single = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    for node in graph.node:
        if node.op_type == "Cast":
            (single.add if node.attribute[0].i == TensorProto.FLOAT else single.discard)(node.output[0])
        elif single.intersection(node.input):
            assert single.issuperset(name for name in node.input if name not in ("top_k",))
            single.update(node.output)
    singles = Counter(node.op_type for node in graph.node if single.intersection(node.output))
    assert singles["LogSoftmax"] == singles["TopK"] == 1
    assert singles["Gemm"] == singles["GroupQueryAttention"] == 0
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert norms
    for norm in norms:
        assert [one.i for one in norm.attribute if one.name == "stash_type"] in ([], [TensorProto.FLOAT])


def test_the_runner_for_devices_says_the_same(half: Bundle) -> None:
    np.testing.assert_array_equal(steps(half, SOURCES, DeviceRunner), steps(half, SOURCES))


def test_keys_and_values_are_float16(exported: tuple[Path, Bundle], half: Bundle) -> None:
    assert {tensor.type for tensor in half.manifest.precisions["fp16"].state} == {"float16"}
    sizes = []
    for bundle, precision in ((exported[1], "fp32"), (half, "fp16")):
        runner = OnnxRunner(load_model(bundle, precision), 4)
        runner.encode(SOURCES, [[row] for row in range(4)])
        sizes.append(sum(array.nbytes for array in runner._slab.arrays.values()))
    assert sizes[1] == sizes[0] / 2


def test_numbers_that_float16_cannot_hold_are_left_out_and_named(
    make_checkpoint: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint()
    checkpoint = load_checkpoint(folder)
    with torch.no_grad():
        layer = checkpoint.model.decoder.layers[1].feed_forward
        layer.inner.weight *= 1e6
        layer.outer.weight *= 1e-6
    checkpoint.save(folder)
    options = ExportOptions(precision=("fp32", "fp16"))
    assert export(folder, out=tmp_path / "tiny" / "1", options=options) == 1
    assert list(Bundle.open(tmp_path / "tiny" / "1").manifest.precisions) == ["fp32"]
    assert (
        "At fault: decoder layer 1 feed-forward inner layer, whose output is not finite: the numbers are too "
        "large for this precision" in caplog.text
    )


def test_float16_is_served(plain: tuple[Path, Bundle], tmp_path: Path) -> None:
    export_checkpoint(plain[0], tmp_path / "tiny" / "1", ExportOptions(precision=("fp16",)))
    command = ["serve", "--models", str(tmp_path), "--precision", "fp16", "--loop-tokens", "0", "--port", "0"]
    command += ["--json"]
    script = f"import sys; from dragoman.cli import main; sys.exit(main({command!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())["address"]
            with dragoman.Client(address) as client:
                model = client.model("tiny")
                [found] = client.translate(["the old dog sees a cat"])
        finally:
            server.terminate()
    assert model.precision == "fp16"
    expected = checkpoint_translator(load_checkpoint(plain[0]), DecodingOptions())(["the old dog sees a cat"])
    assert found.text == expected[0]
