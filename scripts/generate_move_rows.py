"""Write the graph by which rows are moved in a device's memory: server/dragoman_server/engine/move_rows.onnx.

The serving package has no means to write graphs, and needs this one, whatever the model.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

FILE = Path(__file__).parent.parent / "server/dragoman_server/engine/move_rows.onnx"
SOURCE = ("tensors", "source_rows", "before", "source_length", "after")
TARGET = ("tensors", "target_rows", "before", "length", "after")


def move_rows() -> bytes:
    """Rows `chosen` of `source`, with `pads` more positions, to `places` (tensor, row) of `target`."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["source", "chosen"], ["rows"], axis=1),
            helper.make_node("Pad", ["rows", "pads"], ["padded"]),
            helper.make_node("ScatterND", ["target", "places", "padded"], ["moved"]),
        ],
        "move_rows",
        [
            # Whatever they hold: nothing computes with them.
            helper.make_tensor_value_info("source", TensorProto.FLOAT, SOURCE),
            helper.make_tensor_value_info("chosen", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("pads", TensorProto.INT64, [2 * len(SOURCE)]),
            helper.make_tensor_value_info("target", TensorProto.FLOAT, TARGET),
            helper.make_tensor_value_info("places", TensorProto.INT64, ["tensors", "rows", 2]),
        ],
        [helper.make_tensor_value_info("moved", TensorProto.FLOAT, TARGET)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


if __name__ == "__main__":
    FILE.write_bytes(move_rows())
