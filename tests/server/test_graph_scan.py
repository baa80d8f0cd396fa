"""What an ONNX file declares is looked at before the runtime makes room for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dragoman_server.engine.graph_scan import GraphScanError, scan_graph

FLOAT = TensorProto.FLOAT


def model() -> onnx.ModelProto:
    """Adds a weight to its input."""
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["rows", 3]) for name in "xy")
    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "weight")
    return helper.make_model(
        helper.make_graph([helper.make_node("Add", ["x", "weight"], ["y"])], "g", [x], [y], [weight])
    )


def dims(*sizes: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = sizes

    return change


def node(*arguments: object, **attributes: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node(*arguments, **attributes))

    return change


def function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("d", "f", ["a"], ["b"], [], []))


def branches(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    node("Add", ["x", "x"], ["z"], then_branch=inner)(model)


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.append(10**9)


def elsewhere(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def segments(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].segment.begin = 0


def no_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def test_a_plain_graph_passes() -> None:
    scan_graph(model().SerializeToString())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dims(10**9), "of more numbers than it holds"),
        (dims(1000, 1000, 1000), "of more numbers than it holds"),
        (dims(-1, 6), "of more numbers than it holds"),
        (dims(*[1] * 9), "of more numbers than it holds"),
        (elsewhere, "keeps weights in another file"),
        (segments, "a weight in segments"),
        (sparse, "sparse weights"),
        (function, "functions of its own"),
        (branches, "a tensor or a graph within it"),
        (no_nodes, "no ONNX file with a graph"),
        (node("Loop", ["x"], ["z"]), "has a node 'Loop'"),
        (node("Tile", ["x", "weight"], ["z"]), "has a node 'Tile'"),
        (node("Add", ["weight", "weight"], ["z"]), "Add that depends on no input"),
        (node("Expand", ["x", "weight"], ["z"]), "Expand to a shape that nothing else has"),
    ],
)
def test_what_no_bundle_needs_is_refused(change: Callable[[onnx.ModelProto], None], message: str) -> None:
    changed = model()
    change(changed)
    with pytest.raises(GraphScanError, match=message):
        scan_graph(changed.SerializeToString())


def test_a_value_may_take_the_shape_of_another() -> None:
    changed = model()
    node("Shape", ["x"], ["shape"])(changed)
    node("Expand", ["weight", "shape"], ["z"])(changed)
    scan_graph(changed.SerializeToString())


def field(number: int, kind: int, content: bytes) -> bytes:
    """A field of a message shorter than 128 bytes."""
    return bytes([number << 3 | kind]) + (bytes([len(content)]) if kind == 2 else b"") + content


HUGE = b"\x80\x94\xeb\xdc\x03"
"""10**9 as a varint."""


@pytest.mark.parametrize(
    "encoded",
    [
        field(1, 0, HUGE),
        field(1, 2, HUGE),
        field(1, 0, HUGE) + field(1, 2, b""),
        field(1, 2, b"") + field(1, 0, HUGE),
        field(1, 0, HUGE) + field(1, 1, bytes(8)),
        field(1, 5, bytes(4)) + field(1, 0, HUGE),
    ],
    ids=["plain", "packed", "empty after", "empty before", "as eight bytes", "as four bytes"],
)
def test_sizes_are_read_as_the_runtime_reads_them(encoded: bytes) -> None:
    tensor = TensorProto.FromString(encoded + field(2, 0, b"\x01"))
    assert list(tensor.dims) == [10**9]
    graph = field(5, 2, encoded + field(2, 0, b"\x01")) + field(1, 2, field(4, 2, b"Add"))
    with pytest.raises(GraphScanError, match="of more numbers than it holds"):
        scan_graph(field(7, 2, graph))


def test_graphs_in_two_pieces_are_one() -> None:
    pieces = model(), model()
    del pieces[0].graph.node[:]
    del pieces[1].graph.initializer[:]
    pieces[1].graph.node[0].input[0] = "weight"
    content = b"".join(piece.SerializeToString() for piece in pieces)
    assert len(onnx.load_model_from_string(content).graph.initializer) == 1
    with pytest.raises(GraphScanError, match="depends on no input"):
        scan_graph(content)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_scanned_or_refused(content: bytes) -> None:
    with pytest.raises(GraphScanError):
        scan_graph(content)


@settings(deadline=None)
@given(st.data())
def test_any_damage_is_scanned_or_refused(data: st.DataObject) -> None:
    content = bytearray(model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        scan_graph(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except GraphScanError:
        return
