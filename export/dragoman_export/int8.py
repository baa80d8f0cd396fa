"""A float graph to one whose linear layers multiply integers, on the CPU.

Every row of activations gets a scale of its own when it is multiplied, every column of weights one for good:
what a row becomes does not depend on the rows beside it, and sums of integers do not depend on their order.
The runtime's kernel wants unsigned activations and signed weights (`MatMulIntegerToFloat`). Norms, softmax,
attention and the residual sums stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["quantise_rows", "quantise_weight"]

_CONTRIB = "com.microsoft"
_LEVELS = 127.0
_ZERO_POINT = 128
_TINY = 1e-8  # a row of zeros has a scale too
_TABLES_LEFT = "positions"


def quantise_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers and the scale of each column: `weight` is about `integers * scales`.

    Args:
        weight: `[in, out]`.
    """
    scales = np.maximum(np.abs(weight).max(axis=0) / _LEVELS, _TINY).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


def quantise_rows(model: bytes) -> bytes:
    """The int8 form of a float32 graph as `to_onnx` writes it.

    Linear layers (a product with a constant matrix) become integer products; embedding tables are kept as
    integers too, the very ones of the output layer where it is tied to them.
    """
    proto = onnx.load_model_from_string(model)
    rewriter = _Rewriter(proto.graph)
    rewriter.rewrite()
    if all(entry.domain != _CONTRIB for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    return proto.SerializeToString(deterministic=True)


class _Rewriter:
    """Replaces the nodes of one graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._floats: Mapping[str, NDArray[np.float32]] = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT
        }
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[np.generic]] = {}
        self._quantised: dict[str, tuple[str, str]] = {}
        """Activations that are integers already: name to integers and scale."""
        self._weights: dict[tuple[str, bool], tuple[str, str]] = {}

    def rewrite(self) -> None:
        """Replace what can be, and drop the float weights that nothing reads any more."""
        for node in list(self._graph.node):
            weight = self._floats.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
            if weight is not None and weight.ndim == 2:
                self._linear(node)
            elif node.op_type == "Gather" and self._is_embedding(node.input[0]):
                self._embedding(node)
            else:
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        read = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        self._graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in self._constants.items()
        )

    def _is_embedding(self, name: str) -> bool:
        table = self._floats.get(name)
        return table is not None and table.ndim == 2 and not name.endswith(_TABLES_LEFT)

    def _linear(self, node: onnx.NodeProto) -> None:
        transposed = bool({a.name: a.i for a in node.attribute}.get("transB", 0))
        integers, scales = self._weight(node.input[1], transposed)
        activations, row_scale = self._rows(node.input[0])
        one, zero_point = (
            self._constant("one", np.float32(1.0)),
            self._constant("zero", np.uint8(_ZERO_POINT)),
        )
        inputs = [activations, integers, one, scales, zero_point]
        product = self._node("MatMulIntegerToFloat", inputs, domain=_CONTRIB)
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias:
            self._node("Add", [self._node("Mul", [product, row_scale]), bias], node.output[0])
        else:
            self._node("Mul", [product, row_scale], node.output[0])

    def _rows(self, name: str) -> tuple[str, str]:
        """Integers of an activation, and the scale of each of its rows; made once for all who multiply it."""
        if name not in self._quantised:
            last = self._constant("last_axis", np.array([-1], np.int64))
            peak = self._node("ReduceMax", [self._node("Abs", [name]), last], keepdims=1)
            step = self._node("Mul", [peak, self._constant("step", np.float32(1.0 / _LEVELS))])
            scale = self._node("Max", [step, self._constant("tiny", np.float32(_TINY))])
            one = self._constant("one", np.float32(1.0))
            zero_point = self._constant("zero", np.uint8(_ZERO_POINT))
            scaled = self._node("Div", [name, scale])
            self._quantised[name] = self._node("QuantizeLinear", [scaled, one, zero_point]), scale
        return self._quantised[name]

    def _embedding(self, node: onnx.NodeProto) -> None:
        """Look integers up, columns of the output layer's where that is the same table, and scale them."""
        table, ids = node.input[0], node.input[1]
        tied = any(self._multiplies(other, table) for other in self._graph.node)
        integers, scales = self._weight(table, transposed=True)
        if tied:  # [d_model, vocabulary], as the product wants it
            looked_up = self._node("Gather", [integers, ids], axis=1)  # [d_model, *ids]
            rank = self._rank(ids)
            looked_up = self._node("Transpose", [looked_up], perm=[*range(1, rank + 1), 0])
        else:  # [vocabulary, d_model]
            rows = f"{integers}.rows"
            self._constants[rows] = self._constants.pop(integers).T
            looked_up = self._node("Gather", [rows, ids], axis=0)
        scale = self._node("Gather", [scales, ids], axis=0)
        last = self._constant("last_axis", np.array([-1], np.int64))
        floats = self._node("Cast", [looked_up], to=onnx.TensorProto.FLOAT)
        self._node("Mul", [floats, self._node("Unsqueeze", [scale, last])], node.output[0])

    @staticmethod
    def _multiplies(node: onnx.NodeProto, weight: str) -> bool:
        return node.op_type in ("MatMul", "Gemm") and node.input[1] == weight

    def _rank(self, name: str) -> int:
        """Of an id tensor: the graph's input, or that input squeezed to one axis."""
        shapes = {value.name: len(value.type.tensor_type.shape.dim) for value in self._graph.input}
        return shapes.get(name, 1)

    def _weight(self, name: str, transposed: bool) -> tuple[str, str]:
        """The names of a weight's integers `[in, out]` and scales `[out]`."""
        key = (name, transposed)
        if key not in self._weights:
            float_weight = self._floats[name]
            integers, scales = quantise_weight(float_weight.T if transposed else float_weight)
            names = f"{name}.int8", f"{name}.scales"
            self._constants[names[0]], self._constants[names[1]] = integers, scales
            self._weights[key] = names
        return self._weights[key]

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self._constants[f"int8.{name}"] = np.asarray(value)
        return f"int8.{name}"

    def _node(
        self,
        kind: str,
        inputs: Sequence[str],
        output: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> str:
        output = output or f"int8.{kind}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output
