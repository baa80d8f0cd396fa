"""Whether a graph can run on CUDA, captured: by its operators, their types and where they read.

A graph is captured only where every node has a kernel for CUDA, none has branches, and nothing passes between
the device's memory and the host's on the way. ONNX Runtime would put what has no kernel on the CPU instead,
and the copies beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx
from onnx import TensorProto, helper

__all__ = ["STEP_HOST_INPUTS", "cuda_findings"]

STEP_HOST_INPUTS = ("target_bound", "source_bound", "top_k")
"""Inputs of the decode step that the runner leaves in the host's memory."""

_HALF, _SINGLE, _BOOL = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.BOOL
_FLOATS = frozenset({_HALF, _SINGLE})
_NUMBERS = _FLOATS | {TensorProto.INT32, TensorProto.INT64}
_ANY = _NUMBERS | {_BOOL}
_MICROSOFT = "com.microsoft"
_BRANCHES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)

_KERNELS: Mapping[tuple[str, str], frozenset[int]] = {
    **{("", name): _NUMBERS for name in ("Add", "Mul", "Sub", "TopK")},
    **{
        ("", name): _ANY
        for name in (
            *("Cast", "Concat", "Gather", "Reshape", "ScatterND", "Shape", "Slice", "Split", "Squeeze"),
            *("Transpose", "Unsqueeze"),
        )
    },
    **{
        ("", name): _FLOATS
        for name in ("Gelu", "Gemm", "LayerNormalization", "LogSoftmax", "MatMul", "Relu", "Sigmoid")
    },
    ("", "Pad"): _FLOATS | {_BOOL},
    (_MICROSOFT, "GroupQueryAttention"): frozenset({_HALF}),
}
"""Types of the first input for which the CUDA provider of onnxruntime-gpu 1.31.1 registers a kernel, in opset
21; of the operators that our graphs have, and of the types that they have."""

_HOST_INPUTS: Mapping[str, frozenset[int]] = {
    "GroupQueryAttention": frozenset({6}),
    "Pad": frozenset({1, 2, 3}),
    "Reshape": frozenset({1}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "TopK": frozenset({1}),
    "Unsqueeze": frozenset({1}),
}
"""Places of the inputs that these kernels read in the host's memory."""


def cuda_findings(model: onnx.ModelProto, host_inputs: Collection[str] = ()) -> list[str]:
    """What keeps a graph from running on CUDA as one capture, a line each; empty where nothing does.

    Args:
        model: The graph.
        host_inputs: Those of its inputs that are in the host's memory.
    """
    return list(_Check(model.graph, host_inputs).findings())


class _Check:
    """Goes through one graph, in the order in which it is computed."""

    def __init__(self, graph: onnx.GraphProto, host_inputs: Collection[str]) -> None:
        self._graph = graph
        self._given_on_host = set(host_inputs)
        self._constants = {tensor.name for tensor in graph.initializer}
        self._shapes: set[str] = set()
        """Values computed from shapes alone, which ONNX Runtime computes on the host."""
        self._types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}

    def findings(self) -> Iterator[str]:
        """What is wrong, node by node."""
        for node in self._graph.node:
            name = f"{node.op_type} {node.name or node.output[0]}"
            if any(
                one.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for one in node.attribute
            ):
                yield f"{name} is control flow, which cannot be captured"
                continue
            if node.op_type == "Constant":
                self._constants.update(node.output)
                self._types[node.output[0]] = _constant_type(node)
                continue
            yield from self._kernel(node, name)
            yield from self._memory(node, name)
            self._follow(node)

    def _kernel(self, node: onnx.NodeProto, name: str) -> Iterator[str]:
        kernels = _KERNELS.get((node.domain, node.op_type))
        kind = self._types.get(node.input[0], 0)
        if kernels is None:
            yield f"{name}: CUDA is not known to have this operator"
        elif kind not in kernels:
            yield f"{name}: CUDA has no kernel of it for {TensorProto.DataType.Name(kind).lower()}"

    def _memory(self, node: onnx.NodeProto, name: str) -> Iterator[str]:
        if self._is_shape(node):
            return
        places = _HOST_INPUTS.get(node.op_type, frozenset())
        for place, value in enumerate(node.input):
            if not value or value in self._constants:
                continue
            is_on_host = value in self._shapes or value in self._given_on_host
            if place in places and not is_on_host:
                yield f"{name} reads {value} in the host's memory, and it is in the device's"
            elif place not in places and is_on_host:
                yield f"{name} reads {value} in the device's memory, and it is in the host's"

    def _is_shape(self, node: onnx.NodeProto) -> bool:
        """Whether it looks at shapes alone, or computes with nothing but them."""
        places = _HOST_INPUTS.get(node.op_type, frozenset())
        values = {value for place, value in enumerate(node.input) if value and place not in places}
        return node.op_type == "Shape" or (bool(values - self._constants) and values <= self._known_on_host)

    @property
    def _known_on_host(self) -> set[str]:
        return self._shapes | self._constants

    def _follow(self, node: onnx.NodeProto) -> None:
        if self._is_shape(node):
            self._shapes.update(node.output)
        kind = self._types.get(node.input[0], 0)
        if node.op_type == "Cast":
            kind = next(one.i for one in node.attribute if one.name == "to")
        elif node.op_type == "Shape":
            kind = TensorProto.INT64
        self._types |= dict.fromkeys(node.output, kind)
        if node.op_type == "TopK":
            self._types[node.output[1]] = TensorProto.INT64


def _constant_type(node: onnx.NodeProto) -> int:
    [attribute] = node.attribute
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return value.data_type
    return TensorProto.INT64 if "int" in attribute.name else TensorProto.FLOAT
