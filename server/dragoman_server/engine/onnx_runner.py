"""The network on ONNX Runtime, on the CPU.

Sessions hold the weights and are shared; every runner has its own state, so that several engine threads run
one model at once. A runner's arrays are bound to the session as they are: a step writes tokens and lengths
into them, and the runtime adds to the caches in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dragoman_server.engine.onnx_sessions import LoadedModel, input_name, output_name
from dragoman_server.engine.runner import Extent, FloatArray, IntArray, RunnerLimits, SlotCopy
from dragoman_server.engine.slab import Slab

__all__ = ["OnnxRunner"]


@dataclass(frozen=True, slots=True)
class _Binding:
    """A step of a fixed number of rows, bound to the first rows of the runner's arrays."""

    io: onnxruntime.IOBinding
    log_prob: FloatArray
    token_id: IntArray
    inputs: tuple[NDArray[Any], ...]
    """The bound arrays, which must live as long as the binding."""


class OnnxRunner:
    """Runs one model for one engine thread; see `Runner` for the verbs.

    Args:
        model: Sessions, which other runners may use at the same time.
        max_rows: Slots.
        max_bytes: For what the decoder keeps of all slots.
    """

    def __init__(self, model: LoadedModel, max_rows: int, max_bytes: float = math.inf) -> None:
        manifest = model.manifest
        self._model = model
        self._limits = RunnerLimits(
            max_rows=max_rows,
            max_source_tokens=manifest.limits.max_source_tokens,
            max_target_tokens=manifest.limits.max_target_tokens,
            vocabulary_size=manifest.dimensions.target_vocabulary_size,
        )
        self._memory_names = [tensor.name for tensor in model.state if tensor.kind == "memory"]
        extent = Extent(max_rows, self._limits.max_target_tokens, self._limits.max_source_tokens)
        self._bindings: dict[tuple[int, int], _Binding] = {}
        # Bindings hold arrays, which are to be gone before there are new ones.
        self._slab = Slab(model.state, extent, max_bytes, before_resize=self._bindings.clear)
        self._tokens = np.zeros((max_rows, 1), np.int64)
        self._lengths = np.zeros(max_rows, np.int32)

    @property
    def limits(self) -> RunnerLimits:
        """Bounds of rows, source and target lengths."""
        return self._limits

    def fits(self, extent: Extent) -> bool:
        """Whether there is memory for `extent`; if so there is for every smaller one."""
        return self._slab.fits(extent)

    def reserve(self, extent: Extent) -> None:
        """Make room for `extent`, which holds all that is in use; what lies beyond may be lost.

        Raises:
            ValueError: it does not fit.
        """
        self._slab.reserve(extent)

    def encode(self, sources: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> None:
        """Encode a batch; leave the memory of `sources[i]` in every slot of `slots[i]`, history empty.

        Raises:
            ValueError: a source is empty or longer than the limit, or a slot does not exist.
        """
        lengths = [len(source) for source in sources]
        if min(lengths) < 1:
            raise ValueError("a source must have at least one token")
        self._slab.grow(Extent(1 + max(map(max, slots)), 1, max(lengths)))
        ids = np.full((len(sources), max(lengths)), self._model.manifest.special_ids.pad, np.int64)
        for row, source in zip(ids, sources, strict=True):
            row[: len(source)] = source
        feeds = {"source_ids": ids, "source_lengths": np.array(lengths, np.int32)}
        memories = self._model.encoder.run(self._memory_names, feeds)
        self._slab.store(dict(zip(self._memory_names, memories, strict=True)), lengths, slots)

    def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> tuple[FloatArray, IntArray]:
        """Feed one token to each of rows `0 .. n - 1`; see `Runner.step`.

        Raises:
            ValueError: there are more rows than slots, or a row is as long as the limit already.
        """
        rows = len(tokens)
        longest = max(lengths.tolist())
        if rows > self._slab.extent.rows or longest >= self._slab.extent.positions:
            self._slab.grow(Extent(rows, 1 + longest, 1))
        self._tokens[:rows, 0] = tokens
        self._lengths[:rows] = lengths
        binding = self._binding(rows, top_k)
        self._model.decode_step.run_with_iobinding(binding.io)
        return binding.log_prob.copy(), binding.token_id.copy()

    def copy(self, copies: Sequence[SlotCopy]) -> None:
        """Carry out copies; no slot is both a source and a target among them."""
        rows = (max(copy.source, copy.target) for copy in copies)
        self._slab.grow(Extent(1 + max(rows, default=0), 1, 1))
        self._slab.copy(copies)

    def _binding(self, rows: int, top_k: int) -> _Binding:
        if (rows, top_k) not in self._bindings:
            self._bindings[rows, top_k] = self._bind(rows, top_k)
        return self._bindings[rows, top_k]

    def _bind(self, rows: int, top_k: int) -> _Binding:
        slab = self._slab
        io = self._model.decode_step.io_binding()
        inputs: dict[str, NDArray[Any]] = {
            "token": self._tokens[:rows],
            "length": self._lengths[:rows],
            "source_length": slab.source_lengths[:rows],
            "target_bound": np.array(slab.extent.positions, np.int32),
            "source_bound": np.array(slab.extent.source_positions, np.int32),
            "top_k": np.array([top_k], np.int64),
        }
        outputs: dict[str, NDArray[Any]] = {
            "log_prob": np.empty((rows, top_k), np.float32),
            "token_id": np.empty((rows, top_k), np.int64),
        }
        for tensor in self._model.state:
            inputs[input_name(tensor)] = slab.arrays[tensor.name][:rows]
            if tensor.is_returned:
                outputs[output_name(tensor)] = inputs[input_name(tensor)]
        _bind_views(io.bind_ortvalue_input, inputs)
        _bind_views(io.bind_ortvalue_output, outputs)
        return _Binding(io, outputs["log_prob"], outputs["token_id"], tuple(inputs.values()))


def _bind_views(bind: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Bind arrays without copying them; the caller keeps them alive."""
    for name, array in arrays.items():
        bind(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
