"""A float graph to one whose linear layers multiply integers, on the CPU.

Activations become integers by one of two kinds of scale. Row-wise: every row gets a scale of its own when it
is multiplied, which suits any model and costs seven nodes a layer. Static: every layer's scale is fixed by
the largest input it was seen to have, which costs one node and saturates what is larger. Either way weights
have a scale for each column, and what a row becomes does not depend on the rows beside it; sums of integers
do not depend on their order. The runtime's kernel wants unsigned activations and signed weights
(`MatMulIntegerToFloat`). Norms, softmax, attention and the residual sums stay in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["quantise", "quantise_weight"]

_CONTRIB = "com.microsoft"
_LEVELS = 127.0
_ZERO_POINT = 128
_UNSIGNED_LEVELS = 255.0  # of inputs that are never negative, whose zero point is 0
_TINY = 1e-8  # a row of zeros has a scale too
_TABLES_LEFT = "positions"


def quantise_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers and the scale of each column: `weight` is about `integers * scales`.

    Args:
        weight: `[in, out]`.
    """
    scales = np.maximum(np.abs(weight).max(axis=0) / _LEVELS, _TINY).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


def quantise(model: bytes, peaks: Mapping[str, float] | None = None) -> bytes:
    """The int8 form of a float32 graph as `to_onnx` writes it.

    Linear layers (a product with a constant matrix) become integer products; embedding tables are kept as
    integers too, the very ones of the output layer where it is tied to them.

    Args:
        model: The graph.
        peaks: Of linear layers, by the name of their bias, the largest absolute input: these get static
            scales, the others row-wise ones.
    """
    proto = onnx.load_model_from_string(model)
    _Rewriter(proto.graph, peaks or {}).rewrite()
    if all(entry.domain != _CONTRIB for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    return proto.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class _Linear:
    """What becomes one integer product."""

    input: str
    weight: str
    transposed: bool
    """Whether the weight is `[out, in]`."""
    bias: str
    """Empty for none."""
    output: str
    peak: float | None
    """The largest absolute input, where it is known."""


class _Rewriter:
    """Replaces the nodes of one graph."""

    def __init__(self, graph: onnx.GraphProto, peaks: Mapping[str, float]) -> None:
        self._graph = graph
        self._peaks = peaks
        self._floats: Mapping[str, NDArray[np.float32]] = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT
        }
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._rectified = {
            node.output[0]: node.input[0] for node in graph.node if self._is_absorbed_relu(node)
        }
        """What such a Relu makes, and of what."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[np.generic]] = {}
        self._quantised: dict[tuple[str, float | None], tuple[str, str]] = {}
        """Activations that are integers already: name and peak to integers and scale."""
        self._weights: dict[tuple[str, bool], tuple[str, str]] = {}

    def rewrite(self) -> None:
        """Replace what can be, and drop the float weights that nothing reads any more."""
        replaced = set(self._rectified)
        for node in list(self._graph.node):
            if node.output[0] in replaced:
                continue
            linear = self._linear(node)
            if linear is not None:
                replaced.add(linear.output)  # where the bias was added by a node of its own
                self._multiply(linear)
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
            if name in read
        )

    def _linear(self, node: onnx.NodeProto) -> _Linear | None:
        """A product with a constant matrix, and the bias that is added to it there or right after."""
        weight = self._floats.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or weight.ndim != 2:
            return None
        bias, output = node.input[2] if len(node.input) > 2 else "", node.output[0]
        match self._readers[output]:
            case [onnx.NodeProto(op_type="Add") as add] if not bias:
                other = next(name for name in add.input if name != output)
                if other in self._floats and self._floats[other].ndim == 1:
                    bias, output = other, add.output[0]
        transposed = bool({a.name: a.i for a in node.attribute}.get("transB", 0))
        return _Linear(node.input[0], node.input[1], transposed, bias, output, self._peaks.get(bias))

    def _is_absorbed_relu(self, node: onnx.NodeProto) -> bool:
        """Whether all readers round its output to unsigned integers: what is negative becomes 0 anyway."""
        if node.op_type != "Relu":
            return False
        readers = [self._linear(reader) for reader in self._readers[node.output[0]]]
        return all(linear is not None and linear.peak is not None for linear in readers)

    def _is_embedding(self, name: str) -> bool:
        table = self._floats.get(name)
        return table is not None and table.ndim == 2 and not name.endswith(_TABLES_LEFT)

    def _multiply(self, linear: _Linear) -> None:
        integers, scales = self._weight(linear.weight, linear.transposed)
        if linear.peak is not None:
            activations, step, zero_point = self._fixed(linear.input, linear.peak)
            inputs = [activations, integers, step, scales, zero_point, "", linear.bias]
            self._node("MatMulIntegerToFloat", inputs, linear.output, domain=_CONTRIB)
            return
        activations, row_scale = self._rows(linear.input)
        one = self._constant("one", np.float32(1.0))
        inputs = [activations, integers, one, scales, self._zero_point()]
        product = self._node("MatMulIntegerToFloat", inputs, domain=_CONTRIB)
        if linear.bias:
            self._node("Add", [self._node("Mul", [product, row_scale]), linear.bias], linear.output)
        else:
            self._node("Mul", [product, row_scale], linear.output)

    def _fixed(self, name: str, peak: float) -> tuple[str, str, str]:
        """Integers of an activation, their scale and their zero point; made once for all who multiply it."""
        rectified = name in self._rectified
        levels = _UNSIGNED_LEVELS if rectified else _LEVELS
        zero_point = self._constant("none", np.uint8(0)) if rectified else self._zero_point()
        if (name, peak) not in self._quantised:
            step = self._constant(f"{name}.step", np.float32(max(peak / levels, _TINY)))
            inputs = [self._rectified.get(name, name), step, zero_point]
            self._quantised[name, peak] = self._node("QuantizeLinear", inputs), step
        return *self._quantised[name, peak], zero_point

    def _rows(self, name: str) -> tuple[str, str]:
        """Integers of an activation, and the scale of each of its rows; made once for all who multiply it."""
        if (name, None) not in self._quantised:
            last = self._constant("last_axis", np.array([-1], np.int64))
            peak = self._node("ReduceMax", [self._node("Abs", [name]), last], keepdims=1)
            step = self._node("Mul", [peak, self._constant("step", np.float32(1.0 / _LEVELS))])
            scale = self._node("Max", [step, self._constant("tiny", np.float32(_TINY))])
            one = self._constant("one", np.float32(1.0))
            scaled = self._node("Div", [name, scale])
            integers = self._node("QuantizeLinear", [scaled, one, self._zero_point()])
            self._quantised[name, None] = integers, scale
        return self._quantised[name, None]

    def _zero_point(self) -> str:
        return self._constant("zero", np.uint8(_ZERO_POINT))

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
