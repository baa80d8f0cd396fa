"""Keys and values kept as integers: a quarter of the memory that a step has to read.

Every channel of a key or value, `[heads, head_dim]`, has a scale that is fixed when the model is exported;
what is larger than was seen then is clipped. The runtime's attention rounds what joins a cache, and computes
with float queries. It wants to give such a cache back even where it adds nothing, which the cross-attention
does not: there the decode step has an output `present_NAME` for a `memory` as well, bound to the same array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dragoman_server.state_tensor import StateTensor

__all__ = ["cache_scales", "int8_state", "round_memories", "take_integers"]

_LEVELS = 127.0
_ROOM = 1.5
"""How much larger than what was seen a value may be before it is clipped."""
_TINY = 1e-8
_KEY, _VALUE, _KEY_SCALE = 3, 4, 12
"""Inputs of `GroupQueryAttention`: past keys and values, and the keys' scales, which the values' follow."""


def int8_state(state: Iterable[StateTensor]) -> tuple[StateTensor, ...]:
    """The same tensors in integers."""
    return tuple(dataclasses.replace(tensor, type="int8") for tensor in state)


def cache_scales(peaks: NDArray[np.float32]) -> NDArray[np.float32]:
    """What one integer stands for, `[1, heads, 1, head_dim]`, where `[heads, head_dim]` was the most seen."""
    scales: NDArray[np.float32] = np.maximum(peaks * np.float32(_ROOM / _LEVELS), np.float32(_TINY))
    return scales[None, :, None, :]


def round_memories(encoder: onnx.ModelProto, scales: Mapping[str, NDArray[np.float32]]) -> None:
    """Make an encoder's outputs integers.

    Args:
        encoder: Changed in place.
        scales: Of every output, as `cache_scales` gives them.
    """
    graph = encoder.graph
    makers = {name: node for node in graph.node for name in node.output}
    graph.initializer.extend(
        (
            numpy_helper.from_array(np.array(1.0, np.float32), "state.one"),
            numpy_helper.from_array(np.array(0, np.int8), "state.zero"),
        )
    )
    for output in graph.output:
        name = output.name
        floats, scaled = f"{name}.float", f"{name}.scaled"
        outputs = makers[name].output
        outputs[list(outputs).index(name)] = floats
        scale = _initializer(graph, f"{name}.scale", scales[name])
        graph.node.append(helper.make_node("Div", [floats, scale], [scaled]))
        graph.node.append(helper.make_node("QuantizeLinear", [scaled, "state.one", "state.zero"], [name]))
        output.type.tensor_type.elem_type = onnx.TensorProto.INT8


def take_integers(decode_step: onnx.ModelProto, scales: Mapping[str, NDArray[np.float32]]) -> None:
    """Make a decode step attend to integers.

    Args:
        decode_step: Changed in place.
        scales: Of every state tensor, as `cache_scales` gives them.
    """
    graph = decode_step.graph
    for value in (*graph.input, *graph.output):
        if value.name.removeprefix("past_").removeprefix("present_") in scales:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    inputs = {value.name: value for value in graph.input}
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        names = [node.input[i].removeprefix("past_") for i in (_KEY, _VALUE)]
        if len(node.output) == 1:
            node.output.extend(f"present_{name}" for name in names)
            for name in names:
                graph.output.append(inputs[name])
                graph.output[-1].name = f"present_{name}"
        node.input.extend([""] * (_KEY_SCALE - len(node.input)))
        node.input.extend(_initializer(graph, f"{name}.scale", scales[name]) for name in names)
        for part in "kv":
            node.attribute.append(helper.make_attribute(f"{part}_quant_type", "PER_CHANNEL"))
        node.attribute.append(helper.make_attribute("kv_cache_bit_width", 8))


def _initializer(graph: onnx.GraphProto, name: str, value: NDArray[np.float32]) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name
