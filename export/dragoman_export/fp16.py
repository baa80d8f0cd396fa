"""A float32 graph to a float16 one, half its size: meant for GPUs.

Weights, activations, keys and values become float16. What loses most by it stays float32: everything from the
scores of the vocabulary on, where a softmax adds up thousands of terms and the mask of what must never follow
is beyond float16's largest number; and, within LayerNormalization, the sums (its `stash_type`). The fused
SkipLayerNormalization adds up in float16 on CUDA: it is not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dragoman_server.state_tensor import StateTensor

__all__ = ["fp16_state", "halve"]

_ATTENTION = "GroupQueryAttention"
_PAST_KEY = 3
"""Its place among the inputs of attention."""


def fp16_state(state: Iterable[StateTensor]) -> tuple[StateTensor, ...]:
    """The same tensors in float16."""
    return tuple(dataclasses.replace(tensor, type="float16") for tensor in state)


def halve(model: onnx.ModelProto) -> None:
    """Make a float32 graph as `to_onnx` writes it a float16 one; values keep their names.

    Args:
        model: The graph, changed in place. What is beyond float16's largest number becomes infinite, which no
            gate lets pass.
    """
    _Halver(model.graph).rewrite()


class _Halver:
    """Rewrites one graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights: dict[str, NDArray[np.float32]] = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        self._nodes: list[onnx.NodeProto] = []
        self._single: set[str] = set()
        """Names of weights and values that stay float32."""

    def rewrite(self) -> None:
        """Rewrite the nodes, then the weights and the types of inputs and outputs."""
        scores = {node.input[0] for node in self._graph.node if node.op_type == "LogSoftmax"}
        for node in self._graph.node:
            if node.op_type == "Gemm" and node.output[0] in scores:
                self._scores(node)
            else:
                if node.op_type == _ATTENTION and not node.input[_PAST_KEY]:
                    # On CUDA the kernel writes keys and values out where it is not given any.
                    node.output.extend([f"{node.output[0]}.key", f"{node.output[0]}.value"])
                self._nodes.append(node)
                if self._single.intersection(node.input):
                    self._single.update(node.output)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.value_info[:]  # their types are no longer true
        for tensor in self._graph.initializer:
            if tensor.name in self._weights.keys() - self._single:
                with np.errstate(over="ignore"):
                    halved = self._weights[tensor.name].astype(np.float16)
                tensor.CopyFrom(numpy_helper.from_array(halved, tensor.name))
        for value in (*self._graph.input, *self._graph.output):
            kind = value.type.tensor_type
            if kind.elem_type == TensorProto.FLOAT and value.name not in self._single:
                kind.elem_type = TensorProto.FLOAT16

    def _scores(self, node: onnx.NodeProto) -> None:
        """The product in float16, all that follows in float32: the mask, and the softmax after it."""
        x, weight, *bias = node.input
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        product = f"{node.output[0]}.float16"
        self._nodes.append(helper.make_node("Gemm", [x, weight], [product], **attributes))
        single = f"{node.output[0]}.float32" if bias else node.output[0]
        self._cast(product, single, TensorProto.FLOAT)
        if bias:
            self._nodes.append(helper.make_node("Add", [single, *bias], [node.output[0]]))
        self._single.update((*bias, node.output[0]))

    def _cast(self, name: str, output: str, kind: int) -> str:
        self._nodes.append(helper.make_node("Cast", [name], [output], to=kind))
        return output
