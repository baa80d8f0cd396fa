"""Looks through an ONNX file before the runtime does, for what would cost memory or lead out of the file.

The runtime makes room for whatever a file asks for, when it loads a graph or first runs it: one of a few
hundred bytes can take gigabytes. The graphs of a bundle need none of that, so it is refused.

The file is a Protocol Buffers message (onnx.proto), walked here field by field: weights are skipped, not
copied, and no message is nested deeper than a known few levels. Operators that make much of little are not
among those allowed, but a chain of others can still grow what it is given, when it runs or where the runtime
knows a shape beforehand: only a limit on the process's memory bounds that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

__all__ = ["GraphScanError", "scan_graph"]

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_TENSOR_DIMS, _TENSOR_SEGMENT, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 3, 8, 13, 14
_ATTRIBUTE_SCALARS = {1, 2, 3, 4, 7, 8, 9, 13, 20}
"""Name, numbers, strings, description and type: all but tensors, graphs and types."""

_KNOWN = (
    "Abs Add Cast Clip Concat DequantizeLinear Div Erf Exp Expand Gather GatherElements GatherND Gelu Gemm "
    "GroupQueryAttention Identity LayerNormalization LogSoftmax MatMul MatMulIntegerToFloat Max Min Mod Mul "
    "Neg Pow QuantizeLinear ReduceMax ReduceMean ReduceSum Relu Reshape Shape Sigmoid Slice Softmax Split "
    "Sqrt Squeeze Sub Swish Tanh TopK Transpose Unsqueeze Where"
)
"""What networks are made of that the exporter writes, or may one day write."""
_OPERATORS = frozenset(_KNOWN.split())
_MAX_RANK = 8

_MAX_VARINT = 10

_Value = int | memoryview | None
"""Of a varint, of a length-delimited field, or, which nothing here asks for, of a fixed width."""
_Node = tuple[str, list[str], list[str]]
"""Operator, inputs and outputs."""


class GraphScanError(ValueError):
    """A file that is no graph for a bundle; the message says what it asks for."""


def scan_graph(content: bytes) -> None:
    """Refuse an ONNX file that asks for more than a graph of a bundle needs.

    Raises:
        GraphScanError: it is no ONNX file, keeps weights elsewhere, declares a weight that it does not hold,
            has functions or graphs within its graph, an operator that is not known, or a node that depends on
            no input.
    """
    constants: set[str] = set()
    nodes: list[_Node] = []
    for number, value in _fields(memoryview(content)):
        if number in (_MODEL_TRAINING, _MODEL_FUNCTIONS):
            raise GraphScanError("has functions of its own")
        if number == _MODEL_GRAPH:
            _scan_graph(_content(value), constants, nodes)
    if not nodes:
        raise GraphScanError("is no ONNX file with a graph")
    _require_usual(nodes, constants)


def _require_usual(nodes: list[_Node], constants: set[str]) -> None:
    shapes = {output for operator, _, outputs in nodes if operator == "Shape" for output in outputs}
    for operator, inputs, _ in nodes:
        if operator not in _OPERATORS:
            raise GraphScanError(f"has a node {operator!r}, which no graph of a bundle has")
        # Whatever is computed from constants alone begins with a node that reads nothing else.
        if constants.issuperset(filter(None, inputs)):
            raise GraphScanError(f"has a node {operator} that depends on no input")
        if operator == "Expand" and inputs[-1] not in shapes:
            raise GraphScanError("has a node Expand to a shape that nothing else has")


def _scan_graph(graph: memoryview, constants: set[str], nodes: list[_Node]) -> None:
    for number, value in _fields(graph):
        if number == _GRAPH_SPARSE:
            raise GraphScanError("has sparse weights")
        if number == _GRAPH_INITIALIZER:
            constants.add(_scan_tensor(_content(value)))
        elif number == _GRAPH_NODE:
            nodes.append(_scan_node(_content(value)))


def _scan_node(node: memoryview) -> _Node:
    operator, inputs, outputs = "", [], []
    for number, value in _fields(node):
        if number == _NODE_INPUT:
            inputs.append(_text(value))
        elif number == _NODE_OUTPUT:
            outputs.append(_text(value))
        elif number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_ATTRIBUTE and any(
            kind not in _ATTRIBUTE_SCALARS for kind, _ in _fields(_content(value))
        ):
            raise GraphScanError("has a node with a tensor or a graph within it")
    return operator, inputs, outputs


def _scan_tensor(tensor: memoryview) -> str:
    """The name of a weight that the file holds."""
    name, dims = "", list[int]()
    for number, value in _fields(tensor):
        if number == _TENSOR_DIMS and value is not None:
            dims += [value] if isinstance(value, int) else _varints(value)
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value):
            raise GraphScanError("keeps weights in another file")
        elif number == _TENSOR_SEGMENT:
            raise GraphScanError("has a weight in segments")
    # A number takes a byte at least, whatever its type and encoding; a negative size reads as a large one.
    if len(dims) > _MAX_RANK or math.prod(dims) > tensor.nbytes:
        raise GraphScanError(f"declares a weight {name!r} of more numbers than it holds: {dims[:_MAX_RANK]}")
    return name


def _fields(message: memoryview) -> Iterator[tuple[int, _Value]]:
    """The numbers and values of a message's fields, in order."""
    at = 0
    while at < message.nbytes:
        key, at = _varint(message, at)
        value: _Value = None
        match key & 7:
            case 0:
                value, at = _varint(message, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(message, at)
                value, at = message[at : at + size], at + size
            case 5:
                at += 4
            case _:
                raise GraphScanError("is no ONNX file")
        if at > message.nbytes:
            raise GraphScanError("is no ONNX file, or is cut off")
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = 0
    for i, byte in enumerate(message[at : at + _MAX_VARINT]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise GraphScanError("is no ONNX file")


def _varints(message: memoryview) -> list[int]:
    values, at = [], 0
    while at < message.nbytes:
        value, at = _varint(message, at)
        values.append(value)
    return values


def _content(value: _Value) -> memoryview:
    if not isinstance(value, memoryview):
        raise GraphScanError("is no ONNX file")
    return value


def _text(value: _Value) -> str:
    return bytes(_content(value)).decode(errors="replace")
