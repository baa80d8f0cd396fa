"""What the machine could do at best: bytes a second from memory, operations a second of matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from dragoman_server.engine.onnx_sessions import LoadedModel, session_options

_ROWS, _INNER, _COLUMNS = 256, 1024, 4096
_BYTES = 512 * 2**20
_SECONDS = 1.0


@dataclass(frozen=True)
class Floor:
    """Of one core."""

    bytes_per_second: float
    """Read from memory, not from a cache."""
    operations_per_second: float
    """Multiplications and additions, of a large matrix product in the precision in question."""

    def step_seconds(self, model: LoadedModel, rows: int, target_tokens: int, source_tokens: int) -> float:
        """The least time of a decode step: to read its bytes or compute its products, the longer of both."""
        size = model.manifest.dimensions
        layer = 6 * size.d_model**2 + 2 * size.d_model * size.d_ff
        weights = size.decoder_layers * layer + size.d_model * size.target_vocabulary_size
        positions = target_tokens + source_tokens
        attention = 4 * size.d_model * positions * size.decoder_layers
        itemsize = np.dtype(model.state[0].type).itemsize  # weights and state have one type
        state = 2 * size.decoder_layers * size.d_model * positions * itemsize
        read = (weights * itemsize + rows * state) / self.bytes_per_second
        computed = rows * (2 * weights + attention) / self.operations_per_second
        return max(read, computed)


def measure(precision: str) -> Floor:
    """The floor of one core, each figure the best that was seen within a second."""
    block = np.ones(_BYTES // 8)
    reading = _best(lambda: float(block.sum()))
    return Floor(_BYTES / reading, 2 * _ROWS * _INNER * _COLUMNS / _best(_product(precision)))


def _product(precision: str) -> Callable[[], object]:
    """A call that multiplies two large matrices on one thread, by the runtime itself."""
    import onnxruntime  # not before the server's package, which switches its telemetry off

    random = np.random.default_rng(0)
    if precision == "int8":
        operator, outcome, types = "MatMulInteger", TensorProto.INT32, (TensorProto.UINT8, TensorProto.INT8)
        left = random.integers(0, 255, (_ROWS, _INNER), np.uint8)
        right = random.integers(-127, 127, (_INNER, _COLUMNS), np.int8)
    else:
        operator, outcome, types = "MatMul", TensorProto.FLOAT, (TensorProto.FLOAT, TensorProto.FLOAT)
        left = random.standard_normal((_ROWS, _INNER), np.float32)
        right = random.standard_normal((_INNER, _COLUMNS), np.float32)
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", types[0], left.shape)],
        [helper.make_tensor_value_info("product", outcome, [_ROWS, _COLUMNS])],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(threads=1), providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"left": left})


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest call; the median of the fastest tenth, lest a clock's error count."""
    call()
    times = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(sorted(times)[: max(1, len(times) // 10)])
