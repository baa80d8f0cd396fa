"""The graphs for CUDA can run there, as far as their structure tells, and what cannot is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dragoman_export.cuda_check import STEP_HOST_INPUTS, cuda_findings
from dragoman_export.options import ExportError, ExportOptions
from dragoman_export.writer import export_checkpoint
from dragoman_server.bundle import Bundle

MOVE_ROWS = Path(__file__).parent.parent.parent / "server/dragoman_server/engine/move_rows.onnx"


@pytest.fixture(scope="module")
def half(plain: tuple[Path, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("models") / "tiny" / "1"
    return export_checkpoint(plain[0], out, ExportOptions(precision=("fp16",)))


@pytest.fixture
def step(half: Bundle) -> onnx.ModelProto:
    return onnx.load_model_from_string(half.read("decode_step.fp16.onnx"))


def first(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def test_the_graphs_for_cuda_run_there(half: Bundle, step: onnx.ModelProto) -> None:
    encoder = onnx.load_model_from_string(half.read("encoder.fp16.onnx"))
    assert cuda_findings(encoder) == []
    assert cuda_findings(step, STEP_HOST_INPUTS) == []
    assert cuda_findings(onnx.load(MOVE_ROWS), ["pads"]) == []


@pytest.mark.parametrize("activation", ["gelu", "swish"])
def test_so_do_those_of_other_activations(
    make_checkpoint: Callable[..., Path], tmp_path: Path, activation: str
) -> None:
    options = ExportOptions(precision=("fp16",))
    bundle = export_checkpoint(make_checkpoint(activation=activation), tmp_path / "tiny" / "1", options)
    assert bundle.manifest.gates["fp16"].passed


def test_attention_in_float32_is_found(step: onnx.ModelProto) -> None:
    node = first(step, "GroupQueryAttention")
    before = list(step.graph.node).index(node)
    step.graph.node.insert(
        before, helper.make_node("Cast", [node.input[0]], ["planted"], to=TensorProto.FLOAT)
    )
    node.input[0] = "planted"
    findings = cuda_findings(step, STEP_HOST_INPUTS)
    assert "CUDA has no kernel of it for float" in findings[0]
    assert findings[0].startswith("GroupQueryAttention ")


def test_control_flow_is_found(step: onnx.ModelProto) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["length"], ["same"])],
        "branch",
        [],
        [helper.make_tensor_value_info("same", TensorProto.INT32, None)],
    )
    step.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    step.graph.node.insert(
        0, helper.make_node("If", ["always"], ["planted"], then_branch=branch, else_branch=branch)
    )
    assert cuda_findings(step, STEP_HOST_INPUTS) == ["If planted is control flow, which cannot be captured"]


def test_an_input_that_the_device_computes_and_the_host_needs_is_found(step: onnx.ModelProto) -> None:
    node = first(step, "TopK")
    step.graph.node.insert(0, helper.make_node("Squeeze", ["token"], ["planted"]))
    node.input[1] = "planted"
    [finding] = cuda_findings(step, STEP_HOST_INPUTS)
    assert finding.endswith("reads planted in the host's memory, and it is in the device's")


def test_an_input_of_the_host_that_the_device_needs_is_found(step: onnx.ModelProto) -> None:
    step.graph.node.insert(0, helper.make_node("Add", ["length", "target_bound"], ["planted"]))
    assert cuda_findings(step, STEP_HOST_INPUTS) == [
        "Add planted reads target_bound in the device's memory, and it is in the host's"
    ]


def test_an_input_that_nobody_leaves_on_the_host_is_found(step: onnx.ModelProto) -> None:
    findings = cuda_findings(step, [name for name in STEP_HOST_INPUTS if name != "top_k"])
    assert len(findings) == 1
    assert findings[0].endswith("reads top_k in the host's memory, and it is in the device's")


def test_an_operator_without_a_kernel_is_found(step: onnx.ModelProto) -> None:
    first(step, "Relu").op_type = "MatMulIntegerToFloat"
    assert cuda_findings(step, STEP_HOST_INPUTS)[0].endswith("CUDA is not known to have this operator")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_graphs_for_the_cpu_are_not_for_cuda(
    plain: tuple[Path, Bundle], tmp_path: Path, precision: str
) -> None:
    options = ExportOptions(precision=(precision,))
    bundle = export_checkpoint(plain[0], tmp_path / "tiny" / "1", options)
    file = bundle.manifest.precisions[precision].decode_step
    assert cuda_findings(onnx.load_model_from_string(bundle.read(file)), STEP_HOST_INPUTS)


def test_what_does_not_run_on_cuda_is_not_exported_for_it(
    plain: tuple[Path, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dragoman_export.precisions.halve", lambda model: None)
    with pytest.raises(ExportError, match=r"not run on CUDA: GroupQueryAttention .* for float"):
        export_checkpoint(plain[0], tmp_path / "tiny" / "1", ExportOptions(precision=("fp16",)))
