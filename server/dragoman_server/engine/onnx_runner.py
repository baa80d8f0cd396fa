"""The network on ONNX Runtime, on the CPU: the only module that imports it.

Sessions hold the weights and are shared; every runner has its own state, so that several engine threads run
one model at once. A runner's arrays are bound to the session as they are: a step writes tokens and lengths
into them, and the runtime adds to the caches in place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dragoman_server.bundle import Bundle
from dragoman_server.engine.graph_scan import GraphScanError, scan_graph
from dragoman_server.engine.runner import Extent, FloatArray, IntArray, RunnerLimits, SlotCopy
from dragoman_server.engine.slab import Slab
from dragoman_server.errors import BundleError
from dragoman_server.manifest import Manifest
from dragoman_server.state_tensor import StateTensor

__all__ = ["LoadedModel", "OnnxRunner", "graph_values", "load_model", "load_ungated", "session_options"]

_Shape = tuple[int | None, ...]
_Signature = dict[str, tuple[str, _Shape]]
_FLOAT, _INT32, _INT64 = "tensor(float)", "tensor(int32)", "tensor(int64)"
_ELEMENTS = {"float32": _FLOAT, "float16": "tensor(float16)", "int8": "tensor(int8)"}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The sessions of one precision of one bundle; threads may share them."""

    manifest: Manifest
    state: tuple[StateTensor, ...]
    encoder: onnxruntime.InferenceSession
    decode_step: onnxruntime.InferenceSession


def load_model(bundle: Bundle, precision: str = "fp32", threads: int = 1) -> LoadedModel:
    """Load the graphs of a bundle that has passed its export gate.

    Args:
        bundle: Read with its checks.
        precision: One of the manifest's.
        threads: Per call of a session; 1 where several runners work at once.

    Raises:
        BundleError: the bundle lacks that precision, its gate has not passed, a file is altered, or a graph
            does not load or does not have the inputs and outputs that the manifest asks for.
    """
    gate = bundle.manifest.gates.get(precision)
    if precision in bundle.manifest.precisions and not (gate and gate.passed):
        raise BundleError(
            f"{bundle.path}: the gate of {precision} has not passed; export the checkpoint again"
        )
    return load_ungated(bundle, precision, threads)


def load_ungated(bundle: Bundle, precision: str, threads: int) -> LoadedModel:
    """`load_model` for the gate itself, which has yet to find whether the graphs are right."""
    graphs = bundle.manifest.precisions.get(precision)
    if graphs is None:
        known = ", ".join(sorted(bundle.manifest.precisions))
        raise BundleError(f"{bundle.path} has no precision {precision!r}; it has {known}")
    encoder = _session(bundle, graphs.encoder, threads)
    decode_step = _session(bundle, graphs.decode_step, threads)
    state = graphs.state
    _require_signature(graphs.encoder, encoder, _encoder_inputs(), _encoder_outputs(state))
    _require_signature(graphs.decode_step, decode_step, _step_inputs(state), _step_outputs(state))
    return LoadedModel(bundle.manifest, state, encoder, decode_step)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """How every graph is run, by `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails raises
    # On CPU the fused kernel is several times slower than the two nodes it replaces.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    # The runtime has a format of its own, which it would recognise, and which nothing here looks through.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Weights that a graph keeps in other files would be read unchecked: nothing is found below this path.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def graph_values(
    content: bytes, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """The outputs `names` of a graph that belongs to no bundle, run once: to find what is wrong with one."""
    session = onnxruntime.InferenceSession(content, session_options(1), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _session(bundle: Bundle, file: str, threads: int) -> onnxruntime.InferenceSession:
    content = bundle.read(file)
    try:
        scan_graph(content)
    except GraphScanError as error:
        raise BundleError(f"{bundle.path}: {file} {error}; export the checkpoint again") from error
    try:
        return onnxruntime.InferenceSession(
            content, session_options(threads), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime's exceptions have no base of their own
        reason = " ".join(str(error).split())
        raise BundleError(f"{bundle.path}: {file} is no graph that ONNX Runtime loads: {reason}") from error


def _encoder_inputs() -> _Signature:
    return {"source_ids": (_INT64, (None, None)), "source_lengths": (_INT32, (None,))}


def _encoder_outputs(state: Sequence[StateTensor]) -> _Signature:
    return {tensor.name: _described(tensor) for tensor in state if tensor.kind == "memory"}


def _step_inputs(state: Sequence[StateTensor]) -> _Signature:
    return {
        "token": (_INT64, (None, 1)),
        "length": (_INT32, (None,)),
        "source_length": (_INT32, (None,)),
        "target_bound": (_INT32, ()),
        "source_bound": (_INT32, ()),
        "top_k": (_INT64, (1,)),
        **{_input_name(tensor): _described(tensor) for tensor in state},
    }


def _step_outputs(state: Sequence[StateTensor]) -> _Signature:
    caches = {_output_name(tensor): _described(tensor) for tensor in state if tensor.is_returned}
    return {"log_prob": (_FLOAT, (None, None)), "token_id": (_INT64, (None, None)), **caches}


def _input_name(tensor: StateTensor) -> str:
    return f"past_{tensor.name}" if tensor.kind == "kv_cache" else tensor.name


def _output_name(tensor: StateTensor) -> str:
    return f"present_{tensor.name}"


def _described(tensor: StateTensor) -> tuple[str, _Shape]:
    return _ELEMENTS[tensor.type], tuple(tensor.sizes.get(axis) for axis in tensor.axes)


def _require_signature(
    file: str, session: onnxruntime.InferenceSession, inputs: _Signature, outputs: _Signature
) -> None:
    for side, expected, found in (
        ("input", inputs, _signature(session.get_inputs())),
        ("output", outputs, _signature(session.get_outputs())),
    ):
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise BundleError(
                    f"{file}: {side} {name} is {found.get(name)} where the manifest asks for "
                    f"{expected.get(name)}; export the checkpoint again"
                )


def _signature(values: Iterable[Any]) -> _Signature:
    return {
        value.name: (value.type, tuple(size if isinstance(size, int) else None for size in value.shape))
        for value in values
    }


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
        self._slab.grow(Extent(rows, 1 + int(lengths.max()), 1))
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
            inputs[_input_name(tensor)] = slab.arrays[tensor.name][:rows]
            if tensor.is_returned:
                outputs[_output_name(tensor)] = inputs[_input_name(tensor)]
        _bind_views(io.bind_ortvalue_input, inputs)
        _bind_views(io.bind_ortvalue_output, outputs)
        return _Binding(io, outputs["log_prob"], outputs["token_id"], tuple(inputs.values()))


def _bind_views(bind: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Bind arrays without copying them; the caller keeps them alive."""
    for name, array in arrays.items():
        bind(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
