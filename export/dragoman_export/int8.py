"""A float graph to one whose linear layers multiply integers, on the CPU.

Activations become integers by one of two kinds of scale. Row-wise: every row gets a scale of its own, from
its largest entry, when it is multiplied, which suits any model and costs seven nodes a layer. Static: every
layer's scale is fixed by the largest input it was seen to have, which costs one node and saturates what is
larger; `smoothing.py` makes inputs suit it. Either way weights have a scale for each column, and what a row
becomes does not depend on the rows beside it; sums of integers do not depend on their order. The runtime's
kernel wants unsigned activations and signed weights (`MatMulIntegerToFloat`). Norms, softmax and the residual
sums stay in float32.
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

from dragoman_export.graphs import MASKED_LOGIT

__all__ = ["quantise", "quantise_weight"]

_CONTRIB = "com.microsoft"
_LEVELS = 127.0
_ZERO_POINT = 128
_UNSIGNED_LEVELS = 255.0  # of inputs that are never negative, whose zero point is 0
_TINY = 1e-8  # a column of zeros has a scale too
_MASKED_PRODUCT = -1e30  # still far below every logit when it is multiplied by a row's largest entry
_TABLES_LEFT = "positions"
_ATTENTION = "GroupQueryAttention"


def quantise_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers and the scale of each column: `weight` is about `integers * scales`.

    Args:
        weight: `[in, out]`.
    """
    scales = np.maximum(np.abs(weight).max(axis=0) / _LEVELS, _TINY).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


def quantise(model: onnx.ModelProto, peaks: Mapping[str, float] | None = None) -> None:
    """Make a float32 graph as `to_onnx` writes it an int8 one.

    Linear layers (a product with a constant matrix) become integer products; embedding tables are kept as
    integers too.

    Args:
        model: The graph, changed in place.
        peaks: Of linear layers, by the name of their bias, the largest absolute input: these get static
            scales, the others row-wise ones.
    """
    _Rewriter(model.graph, peaks or {}).rewrite()
    _drop_turns(model.graph)
    if all(entry.domain != _CONTRIB for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))


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


@dataclass(frozen=True, slots=True)
class _Integers:
    """An activation in integers: about `(values - zero_point) * step * row_scales`. All are names."""

    values: str
    step: str
    zero_point: str
    row_scales: str = ""
    """`[..., 1]`; empty where `step` is all of the scale."""


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
        self._integers: dict[tuple[str, float | None], _Integers] = {}
        """Activations that are integers already, by their name and static peak."""
        self._weights: dict[tuple[str, bool], tuple[str, str]] = {}
        self._row_zero_points = ""

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
        return node.op_type == "Relu" and all(
            self._linear(reader) is not None for reader in self._readers[node.output[0]]
        )

    def _is_embedding(self, name: str) -> bool:
        table = self._floats.get(name)
        return table is not None and table.ndim == 2 and not name.endswith(_TABLES_LEFT)

    def _multiply(self, linear: _Linear) -> None:
        weights, scales = self._weight(linear.weight, linear.transposed)
        width = self._constants[weights].shape[0]
        x = self._activations(linear.input, width, linear.peak)
        inputs = [x.values, weights, x.step, scales, x.zero_point, ""]
        if not x.row_scales:
            self._product([*inputs, linear.bias], linear.output)
        elif not linear.bias or self._is_mask(linear.bias):
            mask = self._mask(linear.bias) if linear.bias else ""
            self._node("Mul", [self._product([*inputs, mask]), x.row_scales], linear.output)
        else:
            scaled = self._node("Mul", [self._product(inputs), x.row_scales])
            self._node("Add", [scaled, linear.bias], linear.output)

    def _product(self, inputs: Sequence[str], output: str = "") -> str:
        return self._node("MatMulIntegerToFloat", inputs, output, domain=_CONTRIB)

    def _is_mask(self, bias: str) -> bool:
        """Whether it only forbids outputs: then it may be added before a row is scaled."""
        return bool(np.isin(self._floats[bias], (0.0, MASKED_LOGIT)).all())

    def _mask(self, bias: str) -> str:
        masked = np.where(self._floats[bias] < 0.0, _MASKED_PRODUCT, 0.0).astype(np.float32)
        return self._constant(f"{bias}.mask", masked)

    def _activations(self, name: str, width: int, peak: float | None) -> _Integers:
        """Integers of an activation `[..., width]`, made once for all who multiply it."""
        if (name, peak) not in self._integers:
            rectified = name in self._rectified
            source = self._rectified.get(name, name)
            levels = _UNSIGNED_LEVELS if rectified else _LEVELS
            zero_point = self._constant(
                "none" if rectified else "zero", np.uint8(0 if rectified else _ZERO_POINT)
            )
            if peak is None:
                inverse = self._constant(f"inverse.{levels:g}", np.float32(1.0 / levels))
                # A row of zeros divided by 0 is not a number, but some integer, and times 0 again.
                scales = self._node("Mul", [self._largest(source, rectified), inverse])
                zero_points = [] if rectified else [self._zero_points(scales)]
                inputs = [source, scales, *zero_points]
                # One block of the whole width: a scale for each row.
                values = self._node("QuantizeLinear", inputs, axis=-1, block_size=width)
                step = self._constant("one", np.float32(1.0))
            else:
                scales = ""
                step = self._constant(f"{name}.step", np.float32(max(peak / levels, _TINY)))
                values = self._node("QuantizeLinear", [source, step, zero_point])
            self._integers[name, peak] = _Integers(values, step, zero_point, scales)
        return self._integers[name, peak]

    def _zero_points(self, scales: str) -> str:
        """A zero point for each row, which `scales` has the shape of; all layers see the same rows."""
        if not self._row_zero_points:
            zero_point = self._constant("zero", np.uint8(_ZERO_POINT))
            self._row_zero_points = self._node("Expand", [zero_point, self._node("Shape", [scales])])
        return self._row_zero_points

    def _largest(self, name: str, rectified: bool) -> str:
        """The largest absolute entry of each row, or, where negative ones become 0, the largest or 0."""
        last = self._constant("last_axis", np.array([-1], np.int64))
        if not rectified:
            return self._node("ReduceMax", [self._node("Abs", [name]), last], keepdims=1)
        largest = self._node("ReduceMax", [name, last], keepdims=1)
        return self._node("Max", [largest, self._constant("nothing", np.float32(0.0))])

    def _embedding(self, node: onnx.NodeProto) -> None:
        """Look integers up, and scale them.

        Where the table is the output layer's too there are two copies of it: the runtime packs the one that
        is multiplied in its own way, and rows are read faster than columns.
        """
        table, ids = node.input[0], node.input[1]
        columns, column_scales = self._weight(table, transposed=True)  # [d_model, vocabulary]
        rows = self._constant(f"{table}.rows", self._constants[columns].T)
        scales = self._constant(f"{table}.row_scales", self._constants[column_scales][:, None])
        floats = self._node("Cast", [self._node("Gather", [rows, ids])], to=onnx.TensorProto.FLOAT)
        self._node("Mul", [floats, self._node("Gather", [scales, ids])], node.output[0])

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


def _drop_turns(graph: onnx.GraphProto) -> None:
    """Keep the activations of a decode step `[rows, 1, width]` throughout, as its attentions want them.

    A float graph has `[rows, width]`, and turns to and fro around each attention, because float products add
    their bias on matrices alone. Integer ones do so at any rank, and every node costs.

    Args:
        graph: Changed in place; an encoder has no such turns, and stays as it is.
    """
    attentions = [node for node in graph.node if node.op_type == _ATTENTION]
    makes = {node.output[0]: node for node in attentions}
    takes = {name for node in attentions for name in node.input[:3] if name}
    takes |= {node.input[0] for node in graph.node if node.op_type == "Slice" and node.output[0] in takes}
    same: dict[str, str] = {}
    axis = ""
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        source, target = node.input[0], node.output[0]
        if node.op_type == "Squeeze" and source in makes:
            makes[source].output[0] = target  # the name by which it is known elsewhere
        elif (node.op_type == "Squeeze" and source == "token") or (
            node.op_type == "Unsqueeze" and target in takes
        ):
            same[target], axis = source, node.input[1]
        # Positions are looked up by row, and scores are ranked by row.
        elif node.op_type == "Gather" and node.input[1] == "length":
            kept.append(helper.make_node("Unsqueeze", ["length", axis], ["int8.length"]))
            kept.append(helper.make_node("Gather", [source, "int8.length"], [target]))
        elif node.op_type == "LogSoftmax":
            kept.append(helper.make_node("Squeeze", [source, axis], ["int8.scores"]))
            node.input[0] = "int8.scores"
            kept.append(node)
        else:
            kept.append(node)
    if not axis:
        return
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]  # their shapes are no longer true
