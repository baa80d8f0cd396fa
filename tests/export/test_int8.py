"""Integer graphs: small, near to the float ones, and indifferent to who shares a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dragoman_export import int8_choice, precisions, writer
from dragoman_export.activation_peaks import input_peaks
from dragoman_export.cli import export
from dragoman_export.int8 import quantise_weight
from dragoman_export.int8_choice import prefers_static
from dragoman_export.int8_state import cache_scales
from dragoman_export.options import ExportError, ExportOptions, Precision
from dragoman_export.writer import export_checkpoint
from dragoman_server.bundle import Bundle
from dragoman_server.config import ServerConfig
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import LoadedModel, load_model
from dragoman_server.engine.runner import FloatArray, IntArray
from dragoman_server.loading import load
from dragoman_server.manifest import Gate
from dragoman_server.metrics import ServerMetrics

WORDS = ("the", "a", "dog", "cat", "woman", "man", "who", "sees", "walks", "sleeps", "runs", "old")
SOURCES = [[5, 9, 3], [7, 3], [4, 8, 11, 12, 3], [6, 6, 6, 6, 6, 6, 3]]


@pytest.fixture(scope="session", params=["row-wise", "static"])
def both(
    request: pytest.FixtureRequest, exported: tuple[Path, Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A bundle of both precisions, of every variant, with either kind of activation scales."""
    out = tmp_path_factory.mktemp("models") / "tiny" / "1"
    text = out.parent.parent / "text"
    text.write_text("\n".join(" ".join(WORDS[i : i + 5]) for i in range(len(WORDS) - 4)))
    options = ExportOptions(precision=("fp32", "int8"), int8_scales=request.param, calibration=text)
    bundle = export_checkpoint(exported[0], out, options)
    assert bundle.manifest.precisions["int8"].activation_scales == request.param
    return bundle


def steps(bundle: Bundle, precision: str, sources: list[list[int]], fed: IntArray) -> list[FloatArray]:
    """Log-probabilities of the whole vocabulary, in its order, at every step along `fed` `[steps]`."""
    runner = OnnxRunner(load_model(bundle, precision), max_rows=len(sources))
    runner.encode(sources, [[row] for row in range(len(sources))])
    vocabulary = runner.limits.vocabulary_size
    found = []
    for step, token in enumerate(fed):
        rows = len(sources)
        log_prob, ids = runner.step(np.full(rows, token), np.full(rows, step), vocabulary)
        ordered = np.empty_like(log_prob)
        np.put_along_axis(ordered, ids, log_prob, axis=1)
        found.append(ordered)
    return found


def test_integers_say_nearly_what_floats_say(both: Bundle) -> None:
    fed = np.array([2, 5, 9, 4, 7])
    exact, rounded = (steps(both, p, SOURCES, fed) for p in ("fp32", "int8"))
    for one, other in zip(exact, rounded, strict=True):
        likely = one > np.log(1e-4)
        assert np.abs(one - other)[likely].mean() < 0.2  # random weights say much with little
        assert np.abs(one - other)[likely].max() > 0.0  # they are not the same graphs


def test_a_row_does_not_depend_on_its_neighbours(both: Bundle) -> None:
    fed = np.array([2, 5, 9, 4, 7, 11])
    together = steps(both, "int8", SOURCES, fed)
    for row, source in enumerate(SOURCES):
        alone = steps(both, "int8", [source], fed)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], other[row])


def test_keys_and_values_are_integers_near_to_the_floats(both: Bundle) -> None:
    graphs = both.manifest.precisions["int8"]
    assert {tensor.type for tensor in graphs.state} == {"int8"}
    feeds = {"source_ids": np.array([SOURCES[2]]), "source_lengths": np.array([5], np.int32)}
    names = [tensor.name for tensor in graphs.state if tensor.kind == "memory"]
    if graphs.activation_scales == "static":
        names = [name for name in names if "key" in name]  # values are smoothed, and are other floats
    floats, integers = (load_model(both, p).encoder.run(names, feeds) for p in ("fp32", "int8"))
    step = onnx.load_model_from_string(both.read(graphs.decode_step)).graph
    initializers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in step.initializer}
    for name, exact, rounded in zip(names, floats, integers, strict=True):
        scale = initializers[f"{name}.scale"]
        assert rounded.dtype == np.int8
        assert np.abs(rounded * scale - exact).mean() < 0.1 * np.abs(exact).mean()


def test_no_float_matrix_is_left_but_positions(both: Bundle) -> None:
    graphs = both.manifest.precisions["int8"]
    for file in (graphs.encoder, graphs.decode_step):
        graph = onnx.load_model_from_string(both.read(file)).graph
        matrices = [
            tensor.name
            for tensor in graph.initializer
            if len(tensor.dims) == 2 and tensor.dims[1] > 1 and tensor.data_type == onnx.TensorProto.FLOAT
        ]
        assert all("positions" in name for name in matrices), matrices
        assert any(node.op_type == "MatMulIntegerToFloat" for node in graph.node)


def test_static_scales_take_two_nodes_a_layer(both: Bundle) -> None:
    graphs = both.manifest.precisions["int8"]
    for file in (graphs.encoder, graphs.decode_step):
        nodes = onnx.load_model_from_string(both.read(file)).graph.node
        makers = {name: node.op_type for node in nodes for name in node.output}
        inputs = {node.input[0] for node in nodes if node.op_type == "MatMulIntegerToFloat"}
        assert {makers[name] for name in inputs} == {"QuantizeLinear"}
        largest = sum(name.startswith("int8.ReduceMax") for name in makers)
        if graphs.activation_scales == "static":
            assert largest == 0
            assert "Relu" not in makers.values()  # what saturates at zero needs none
        else:
            assert largest == len(inputs)


def test_the_gate_counts_what_rounding_costs(both: Bundle) -> None:
    gates = both.manifest.gates
    assert gates["int8"].passed
    assert gates["int8"].max_log_prob_difference > gates["fp32"].max_log_prob_difference
    assert gates["int8"].mean_log_prob_loss <= gates["int8"].tolerance


@given(st.integers(1, 20), st.integers(1, 20), st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_a_weight_is_off_by_half_a_step_at_most(rows: int, columns: int, size: float, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(0.0, size, (rows, columns)).astype(np.float32)
    integers, scales = quantise_weight(weight)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= 127
    assert (np.abs(integers * scales - weight) <= 0.5001 * scales).all()


def test_scales_too_small_for_the_text_fail_the_gate(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "text").write_text("the old dog sees a cat\n")
    options = ExportOptions(precision=("int8",), calibration=tmp_path / "text", int8_scales="static")

    def too_small(*arguments: Any) -> dict[nn.Linear, torch.Tensor]:
        return {layer: peak / 50.0 for layer, peak in input_peaks(*arguments).items()}

    monkeypatch.setattr(precisions, "input_peaks", too_small)
    with pytest.raises(ExportError, match="int8 export does not say"):
        export_checkpoint(make_checkpoint(), tmp_path / "tiny" / "1", options)
    assert not (tmp_path / "tiny" / "1").exists()
    code = export(
        make_checkpoint(), out=tmp_path / "tiny" / "1", options=replace(options, precision=("fp32", "int8"))
    )
    assert code == 1
    assert list(Bundle.open(tmp_path / "tiny" / "1").manifest.precisions) == ["fp32"]
    assert not list((tmp_path / "tiny" / "1").glob("*int8*"))
    assert "int8 is left out: it does not say" in caplog.text
    assert "(its inputs: the scale is too small or too coarse), where rounding costs most" in caplog.text


@pytest.mark.parametrize(
    ("speedup", "static_loss", "static_passes", "chosen"),
    [
        (1.2, 0.011, True, True),
        (1.2, 0.016, True, False),
        (1.02, 0.011, True, False),
        (1.2, float("nan"), False, False),
        (1.2, 0.011, False, False),
    ],
    ids=["faster", "dearer", "no faster", "broken", "failed"],
)
def test_static_scales_are_taken_where_they_are_faster_and_cost_next_to_nothing(
    monkeypatch: pytest.MonkeyPatch, speedup: float, static_loss: float, static_passes: bool, chosen: bool
) -> None:
    monkeypatch.setattr(int8_choice, "_speedup", lambda *_: speedup)
    gates = [
        Gate(passed, 32, 500, 0.5, loss, 0.02, 0.9, 0.9, 1.0, {})
        for passed, loss in ((True, 0.01), (static_passes, static_loss))
    ]
    assert prefers_static(None, None, *gates) is chosen


@pytest.mark.parametrize("static_is_better", [True, False])
def test_auto_exports_the_better_scales(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    static_is_better: bool,
) -> None:
    (tmp_path / "text").write_text("the old dog sees a cat\na woman who runs sees the dog\n")
    seen: list[tuple[LoadedModel, LoadedModel]] = []

    def prefers(row_wise: LoadedModel, static: LoadedModel, *gates: Gate) -> bool:
        seen.append((row_wise, static))
        return static_is_better

    monkeypatch.setattr(writer, "prefers_static", prefers)
    options = ExportOptions(precision=("int8",), calibration=tmp_path / "text")
    bundle = export_checkpoint(make_checkpoint(), tmp_path / "tiny" / "1", options)
    assert bundle.manifest.precisions["int8"].activation_scales == (
        "static" if static_is_better else "row-wise"
    )
    found, candidates = OnnxRunner(load_model(bundle, "int8"), 1), [OnnxRunner(one, 1) for one in seen[0]]
    results = []
    for runner in (found, *candidates):
        runner.encode([SOURCES[2]], [[0]])
        results.append(runner.step(np.array([2]), np.array([0]), 5)[0])
    assert not np.array_equal(results[1], results[2])
    np.testing.assert_array_equal(results[0], results[2 if static_is_better else 1])


def test_auto_needs_no_text(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    options = ExportOptions(precision=("int8",))
    bundle = export_checkpoint(make_checkpoint(), tmp_path / "tiny" / "1", options)
    assert bundle.manifest.precisions["int8"].activation_scales == "row-wise"


def test_the_speedup_is_that_of_the_median_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Runner:
        def __init__(self, model: Any, rows: int) -> None:
            self.steps = 0
            self.seconds = model.seconds

        def encode(self, sources: list[list[int]], slots: list[list[int]]) -> None:
            assert len(sources) == len(slots) == 2

        def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> None:
            nonlocal now
            self.steps += 1
            now += self.seconds * (100 if self.steps in (1, 10) else 1)  # cold at first, disturbed once

    monkeypatch.setattr(int8_choice, "OnnxRunner", Runner)
    monkeypatch.setattr(int8_choice.time, "perf_counter", lambda: now)
    special = SimpleNamespace(special_ids=SimpleNamespace(bos=2, eos=3))
    slow, fast = (SimpleNamespace(manifest=special, seconds=seconds) for seconds in (0.003, 0.002))
    assert int8_choice._speedup(slow, fast, rows=2) == pytest.approx(1.5)


def test_static_scales_ask_for_text() -> None:
    with pytest.raises(ValueError, match="name some with --calibration"):
        ExportOptions(precision=("int8",), int8_scales="static")


def test_a_column_of_zeros_stays_zero() -> None:
    integers, scales = quantise_weight(np.zeros((3, 2), np.float32))
    assert not integers.any()
    assert (scales > 0.0).all()


def test_half_as_much_again_as_was_seen_fits_into_a_cache() -> None:
    peaks = np.array([[0.5, 2.0], [0.0, 8.0]], np.float32)
    scales = cache_scales(peaks)
    assert scales.shape == (1, 2, 1, 2)
    np.testing.assert_allclose(scales[0, :, 0] * 127, peaks * 1.5, atol=1e-5)
    assert (scales > 0.0).all()


@pytest.mark.parametrize(("held", "taken"), [(("fp32", "int8"), "fp32"), (("int8",), "int8")])
def test_a_server_takes_the_precision_that_a_bundle_has(
    make_checkpoint: Callable[..., Path], tmp_path: Path, held: tuple[Precision, ...], taken: str
) -> None:
    out = tmp_path / "tiny" / "1"
    export_checkpoint(make_checkpoint(), out, ExportOptions(precision=held))
    loaded = load(out, ServerConfig(models=out, workers=1, threads=1), ServerMetrics())
    loaded.engine.close()
    assert loaded.served.description.precision == taken
