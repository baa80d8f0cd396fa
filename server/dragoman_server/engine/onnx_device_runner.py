"""The network on ONNX Runtime, on a device with memory of its own.

What the decoder keeps never leaves the device: it has its full size from the start, so that its addresses
stay the same. A step sends tokens and lengths in one copy and gets the best continuations back in another.
Its shapes are rounded up to those of a few buckets; on CUDA the work of each bucket is captured once, on the
thread that decodes, and replayed from then on.

Everything but the capture is the same on the CPU, where it is tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dragoman_server.engine.onnx_device_arrays import DeviceArray, RowMover
from dragoman_server.engine.onnx_sessions import Device, LoadedModel, input_name, output_name
from dragoman_server.engine.runner import Extent, FloatArray, IntArray, RunnerLimits, SlotCopy
from dragoman_server.state_tensor import StateTensor

__all__ = ["DeviceRunner", "state_bytes"]

_FINE_ROWS = 32
"""From so many rows on there is a bucket between a power of two and the next."""
_LEAST_LENGTH = 64
_NOT_CAPTURED = "-1"


def state_bytes(state: Sequence[StateTensor], extent: Extent) -> int:
    """Memory that the state of `extent` takes on a device."""
    return sum(
        math.prod(tensor.shape(extent.rows, _length(tensor, extent))) * np.dtype(tensor.type).itemsize
        for tensor in state
    )


class _Group:
    """State tensors that differ by name alone, in one array `[tensors, rows, before, length, after]`."""

    def __init__(self, tensors: Sequence[StateTensor], extent: Extent, device: Device) -> None:
        self.tensors = tensors
        self.kind = tensors[0].kind
        self._length = _length(tensors[0], extent)
        self._device = device
        self.array = self._zeros(extent.rows, self._length)

    def tensor(self, index: int, rows: int) -> DeviceArray:
        """The first rows of a tensor, in the shape that the model gives it."""
        return self.array.at(index).viewed(self.tensors[index].shape(rows, self._length))

    def outputs(self, memory: DeviceArray, rows: int, length: int) -> tuple[DeviceArray, list[DeviceArray]]:
        """What an encoder run writes, in `memory`: as an array like this one, and tensor by tensor."""
        whole = memory.viewed(self._shape(rows, length), self.array.type)
        return whole, [
            whole.at(index).viewed(tensor.shape(rows, length)) for index, tensor in enumerate(self.tensors)
        ]

    def bytes(self, rows: int, length: int) -> int:
        """Memory that `outputs` needs."""
        return math.prod(self._shape(rows, length)) * self.array.type.itemsize

    def _zeros(self, rows: int, length: int) -> DeviceArray:
        return DeviceArray.zeros(self._shape(rows, length), self.tensors[0].type, self._device)

    def _shape(self, rows: int, length: int) -> tuple[int, ...]:
        first = self.tensors[0]
        growing = first.axes.index(first.growing_axis)
        shape = first.shape(rows, length)
        return len(self.tensors), rows, math.prod(shape[1:growing]), length, math.prod(shape[growing + 1 :])


class _Shape(NamedTuple):
    """What a step's work depends on, rounded up to what is captured."""

    rows: int
    length: int
    """At least the longest history, and the longest source."""
    top_k: int


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A step of one shape, bound."""

    io: onnxruntime.IOBinding
    options: onnxruntime.RunOptions
    sent: NDArray[np.uint8]
    """What goes to the device: `tokens`, `lengths` and `source_lengths` are views of it."""
    tokens: IntArray
    lengths: NDArray[np.int32]
    source_lengths: NDArray[np.int32]
    received: onnxruntime.OrtValue
    """What comes back: token ids, then log-probabilities."""
    inputs: onnxruntime.OrtValue
    """Where what is sent goes to."""


class DeviceRunner:
    """Runs one model for one engine thread; see `Runner` for the verbs.

    Args:
        model: Whose sessions run on its `device`; used by this runner alone.
        max_rows: Slots.
        max_bytes: For what the decoder keeps of all slots.
        top_ks: Numbers of continuations that are usual; a step that asks for more than the largest is not
            captured.

    Raises:
        ValueError: the slots do not fit in `max_bytes`.
    """

    def __init__(
        self, model: LoadedModel, max_rows: int, max_bytes: float = math.inf, top_ks: Sequence[int] = (1, 16)
    ) -> None:
        manifest = model.manifest
        self._model = model
        self._limits = RunnerLimits(
            max_rows=max_rows,
            max_source_tokens=manifest.limits.max_source_tokens,
            max_target_tokens=manifest.limits.max_target_tokens,
            vocabulary_size=manifest.dimensions.target_vocabulary_size,
        )
        self._extent = Extent(max_rows, self._limits.max_target_tokens, self._limits.max_source_tokens)
        needed = state_bytes(model.state, self._extent)
        if needed > max_bytes:
            raise ValueError(
                f"{max_rows} slots of the longest sentences take {needed} bytes of {max_bytes:.0f}"
            )
        self._groups = [_Group(tensors, self._extent, model.device) for tensors in _alike(model.state)]
        self._mover = RowMover(model.device)
        self._source_lengths = np.ones(max_rows, np.int32)
        self._encoded = DeviceArray.zeros((0,), np.uint8, model.device)
        self._top_ks = sorted({min(count, self._limits.vocabulary_size) for count in top_ks})
        self._buckets: dict[_Shape, _Bucket] = {}
        self._is_captured = model.device == "cpu"

    @property
    def limits(self) -> RunnerLimits:
        """Bounds of rows, source and target lengths."""
        return self._limits

    def fits(self, extent: Extent) -> bool:
        """Whether there is memory for `extent`: for all that the limits allow, from the start."""
        return self._extent.covers(extent)

    def reserve(self, extent: Extent) -> None:
        """Nothing: all memory is there.

        Raises:
            ValueError: `extent` is beyond the limits.
        """
        if not self.fits(extent):
            raise ValueError(f"{extent} exceeds what the model can hold, {self._extent}")

    def encode(self, sources: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> None:
        """Encode a batch; leave the memory of `sources[i]` in every slot of `slots[i]`, history empty.

        Raises:
            ValueError: a source is empty or longer than the limit, or a slot does not exist.
        """
        self._capture()
        lengths = [len(source) for source in sources]
        if min(lengths) < 1:
            raise ValueError("a source must have at least one token")
        self.reserve(Extent(1 + max(map(max, slots)), 1, max(lengths)))
        ids = np.full((len(sources), max(lengths)), self._model.manifest.special_ids.pad, np.int64)
        for row, source in zip(ids, sources, strict=True):
            row[: len(source)] = source
        io = self._model.encoder.io_binding()
        io.bind_cpu_input("source_ids", ids)
        io.bind_cpu_input("source_lengths", np.array(lengths, np.int32))
        encoded = self._bind_memories(io, *ids.shape)
        self._model.encoder.run_with_iobinding(io)
        chosen = [source for source, targets in enumerate(slots) for _ in targets]
        rows = [slot for targets in slots for slot in targets]
        for group, memories in encoded:
            self._mover.move(memories, group.array, chosen, rows)
        self._source_lengths[rows] = [lengths[source] for source in chosen]

    def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> tuple[FloatArray, IntArray]:
        """Feed one token to each of rows `0 .. n - 1`; see `Runner.step`.

        Raises:
            ValueError: there are more rows than slots, or a row is as long as the limit already.
        """
        self._capture()
        rows = len(tokens)
        positions, sources = 1 + int(lengths.max()), int(self._source_lengths[:rows].max())
        self.reserve(Extent(rows, positions, sources))
        bucket = self._bucket(self._shape(rows, max(positions, sources), top_k))
        bucket.tokens[:rows] = tokens
        bucket.lengths[:rows] = lengths
        bucket.source_lengths[:rows] = self._source_lengths[:rows]
        return self._run(bucket, rows, top_k)

    def copy(self, copies: Sequence[SlotCopy]) -> None:
        """Carry out copies; no slot is both a source and a target among them.

        Histories are copied whole: before `start` they are the same, and beyond `stop` nobody looks.
        """
        rows = (max(copy.source, copy.target) for copy in copies)
        self.reserve(Extent(1 + max(rows, default=0), 1, 1))
        with_memory = [copy for copy in copies if copy.with_memory]
        for group in self._groups:
            meant = copies if group.kind == "kv_cache" else with_memory
            if meant:
                targets = [copy.target for copy in meant]
                self._mover.move(group.array, group.array, [copy.source for copy in meant], targets)
        for copy in with_memory:
            self._source_lengths[copy.target] = self._source_lengths[copy.source]

    def _bind_memories(
        self, io: onnxruntime.IOBinding, rows: int, length: int
    ) -> list[tuple[_Group, DeviceArray]]:
        """Have the encoder write into memory that is there already, one group's tensors after the other's."""
        groups = [group for group in self._groups if group.kind == "memory"]
        needed = sum(group.bytes(rows, length) for group in groups)
        if self._encoded.bytes < needed:
            self._encoded = DeviceArray.zeros((needed,), np.uint8, self._model.device)
        offset, bound = 0, []
        for group in groups:
            size = group.bytes(rows, length)
            whole, tensors = group.outputs(self._encoded.viewed((size,), offset=offset), rows, length)
            for tensor, array in zip(group.tensors, tensors, strict=True):
                array.bind_output(io, tensor.name)
            bound.append((group, whole))
            offset += size
        return bound

    def _capture(self) -> None:
        """Run every bucket once, the largest first; only on the first call, when no slot holds anything."""
        if self._is_captured:
            return
        self._is_captured = True
        lengths = _sizes(_LEAST_LENGTH, max(self._extent.positions, self._extent.source_positions))
        for top_k in reversed(self._top_ks):
            for length in reversed(lengths):
                for rows in reversed(_row_sizes(self._limits.max_rows)):
                    self._run(self._bucket(_Shape(rows, length, top_k)), rows, top_k)

    def _run(self, bucket: _Bucket, rows: int, top_k: int) -> tuple[FloatArray, IntArray]:
        bucket.inputs.update_inplace(bucket.sent)
        self._model.decode_step.run_with_iobinding(bucket.io, bucket.options)
        ids, log_probs = _results(bucket.received.numpy(), len(bucket.tokens))
        return log_probs[:rows, :top_k].copy(), ids[:rows, :top_k].copy()

    def _shape(self, rows: int, length: int, top_k: int) -> _Shape:
        longest = max(self._extent.positions, self._extent.source_positions)
        return _Shape(
            _at_least(rows, _row_sizes(self._limits.max_rows)),
            _at_least(length, _sizes(_LEAST_LENGTH, longest)),
            _at_least(top_k, self._top_ks) if top_k <= self._top_ks[-1] else top_k,
        )

    def _bucket(self, shape: _Shape) -> _Bucket:
        if shape not in self._buckets:
            options = onnxruntime.RunOptions()
            if self._model.device != "cpu":
                usual = shape.top_k in self._top_ks
                number = str(1 + len(self._buckets)) if usual else _NOT_CAPTURED
                options.add_run_config_entry("gpu_graph_id", number)
            self._buckets[shape] = self._bind(shape, options)
        return self._buckets[shape]

    def _bind(self, shape: _Shape, options: onnxruntime.RunOptions) -> _Bucket:
        rows, device = shape.rows, self._model.device
        io = self._model.decode_step.io_binding()
        sent = np.zeros(rows * 16, np.uint8)
        inputs = DeviceArray.zeros(sent.shape, np.uint8, device)
        inputs.viewed((rows, 1), np.int64).bind_input(io, "token")
        inputs.viewed((rows,), np.int32, offset=8 * rows).bind_input(io, "length")
        inputs.viewed((rows,), np.int32, offset=12 * rows).bind_input(io, "source_length")
        for name, bound in (
            ("target_bound", min(shape.length, self._extent.positions)),
            ("source_bound", min(shape.length, self._extent.source_positions)),
        ):
            io.bind_cpu_input(name, np.array(bound, np.int32))
        io.bind_cpu_input("top_k", np.array([shape.top_k], np.int64))
        best = (rows, shape.top_k)
        received = DeviceArray.zeros((12 * math.prod(best),), np.uint8, device)
        received.viewed(best, np.int64).bind_output(io, "token_id")
        received.viewed(best, np.float32, offset=8 * math.prod(best)).bind_output(io, "log_prob")
        for group in self._groups:
            for index, tensor in enumerate(group.tensors):
                array = group.tensor(index, rows)
                array.bind_input(io, input_name(tensor))
                if tensor.is_returned:
                    array.bind_output(io, output_name(tensor))
        lengths: NDArray[np.int32] = sent[8 * rows :].view(np.int32)
        lengths[rows:] = 1
        return _Bucket(
            io,
            options,
            sent,
            sent[: 8 * rows].view(np.int64),
            lengths[:rows],
            lengths[rows:],
            received.owner,
            inputs.owner,
        )


def _results(content: NDArray[np.uint8], rows: int) -> tuple[IntArray, FloatArray]:
    """Token ids and log-probabilities, each `[rows, top_k]`, of what came back."""
    ids = len(content) // 12 * 8
    return content[:ids].view(np.int64).reshape(rows, -1), content[ids:].view(np.float32).reshape(rows, -1)


def _alike(state: Sequence[StateTensor]) -> list[list[StateTensor]]:
    groups: list[list[StateTensor]] = []
    for tensor in state:
        group = next((one for one in groups if replace(tensor, name=one[0].name) == one[0]), None)
        if group is None:
            groups.append([tensor])
        else:
            group.append(tensor)
    return groups


def _length(tensor: StateTensor, extent: Extent) -> int:
    """Positions along the growing axis of `tensor`."""
    return extent.positions if tensor.kind == "kv_cache" else extent.source_positions


def _sizes(least: int, most: int) -> list[int]:
    """Powers of two times `least`, and `most`."""
    sizes = [most]
    while least < most:
        sizes.append(least)
        least *= 2
    return sorted(sizes)


def _row_sizes(most: int) -> list[int]:
    between = [size * 3 // 2 for size in _sizes(_FINE_ROWS, most) if size * 3 // 2 < most]
    return sorted({*_sizes(1, most), *between})


def _at_least(needed: int, sizes: Sequence[int]) -> int:
    return min(size for size in sizes if size >= needed)
