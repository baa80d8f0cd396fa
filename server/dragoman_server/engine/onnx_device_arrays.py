"""Arrays in a device's memory, and the one thing that is done to them outside the model: rows are moved.

ONNX Runtime has no operations on what it keeps on a device but sessions, so that a move is one:
`move_rows.onnx`, written by `scripts/generate_move_rows.py`, which writes into the array that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike

from dragoman_server.engine.onnx_sessions import Device, session

__all__ = ["DeviceArray", "RowMover"]

_MOVED = np.dtype(np.float32)
"""The type as which rows are moved, whatever they hold: one that every device can."""
_LENGTH_AXIS, _AXES = 3, 5


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """An array in a device's memory, or a part of one without gaps."""

    owner: onnxruntime.OrtValue
    """Has the memory, as bytes."""
    address: int
    shape: tuple[int, ...]
    type: np.dtype[np.generic]

    @classmethod
    def zeros(cls, shape: Sequence[int], element_type: DTypeLike, device: Device) -> DeviceArray:
        """A new array of zeros."""
        kind = np.dtype(element_type)
        content = np.zeros(max(1, math.prod(shape)) * kind.itemsize, np.uint8)
        owner = onnxruntime.OrtValue.ortvalue_from_numpy(content, device, 0)
        return cls(owner, owner.data_ptr(), tuple(shape), kind)

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return math.prod(self.shape) * self.type.itemsize

    def at(self, index: int) -> DeviceArray:
        """The part `[index]`."""
        part = math.prod(self.shape[1:]) * self.type.itemsize
        return DeviceArray(self.owner, self.address + index * part, self.shape[1:], self.type)

    def viewed(
        self, shape: Sequence[int], element_type: DTypeLike | None = None, offset: int = 0
    ) -> DeviceArray:
        """The memory from byte `offset` on, or its first part, as an array of that shape and type."""
        kind = self.type if element_type is None else np.dtype(element_type)
        view = DeviceArray(self.owner, self.address + offset, tuple(shape), kind)
        assert offset + view.bytes <= self.bytes
        return view

    def bind_input(self, io: onnxruntime.IOBinding, name: str) -> None:
        """Have a session read it."""
        io.bind_input(name, self.owner.device_name(), 0, self.type, self.shape, self.address)

    def bind_output(self, io: onnxruntime.IOBinding, name: str) -> None:
        """Have a session write it."""
        io.bind_output(name, self.owner.device_name(), 0, self.type, self.shape, self.address)


class RowMover:
    """Moves rows of arrays `[tensors, rows, before, length, after]`, of any type, within a device."""

    def __init__(self, device: Device) -> None:
        graph = resources.files("dragoman_server.engine").joinpath("move_rows.onnx").read_bytes()
        self._session = session(graph, device, threads=1)

    def move(
        self, source: DeviceArray, target: DeviceArray, chosen: Sequence[int], rows: Sequence[int]
    ) -> None:
        """Copy `chosen[i]` of the rows of `source` to row `rows[i]` of `target`.

        Args:
            source: May be `target` itself, if no row is both chosen and written.
            target: At least as long; what its rows have beyond the length of `source` becomes zero.
            chosen: Rows of `source`.
            rows: Rows of `target`, distinct.
        """
        read, written = _as_moved(source), _as_moved(target)
        pads = np.zeros(2 * _AXES, np.int64)
        pads[_AXES + _LENGTH_AXIS] = written.shape[_LENGTH_AXIS] - read.shape[_LENGTH_AXIS]
        tensors = target.shape[0]
        io = self._session.io_binding()
        read.bind_input(io, "source")
        written.bind_input(io, "target")
        written.bind_output(io, "moved")
        io.bind_cpu_input("chosen", np.array(chosen, np.int64))
        io.bind_cpu_input("pads", pads)
        io.bind_cpu_input("places", np.stack(np.meshgrid(range(tensors), rows, indexing="ij"), axis=-1))
        self._session.run_with_iobinding(io)


def _as_moved(array: DeviceArray) -> DeviceArray:
    *axes, last = array.shape
    elements, rest = divmod(last * array.type.itemsize, _MOVED.itemsize)
    assert not rest, f"{array.shape} of {array.type} are no whole {_MOVED}"
    return array.viewed((*axes, elements), _MOVED)
