"""The graphs of a bundle as sessions of ONNX Runtime, which hold the weights and may be shared by threads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnxruntime
from numpy.typing import NDArray

from dragoman_server.bundle import Bundle
from dragoman_server.engine.graph_scan import GraphScanError, scan_graph
from dragoman_server.errors import BundleError, DeviceError
from dragoman_server.manifest import Manifest
from dragoman_server.state_tensor import StateTensor

__all__ = [
    "Device",
    "LoadedModel",
    "graph_values",
    "input_name",
    "load_model",
    "load_ungated",
    "output_name",
    "session",
    "session_options",
]

Device = Literal["cpu", "cuda"]
"""Where a network runs."""

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
    device: Device = "cpu"


def load_model(
    bundle: Bundle, precision: str = "fp32", threads: int = 1, device: Device = "cpu"
) -> LoadedModel:
    """Load the graphs of a bundle that has passed its export gate.

    Args:
        bundle: Read with its checks.
        precision: One of the manifest's.
        threads: Per call of a session; 1 where several runners work at once.
        device: Where they run; `onnx_cuda.require_cuda` says whether there is one.

    Raises:
        BundleError: the bundle lacks that precision, its gate has not passed, a file is altered, or a graph
            does not load or does not have the inputs and outputs that the manifest asks for.
        DeviceError: the graphs do not run on the device.
    """
    gate = bundle.manifest.gates.get(precision)
    if precision in bundle.manifest.precisions and not (gate and gate.passed):
        raise BundleError(
            f"{bundle.path}: the gate of {precision} has not passed; export the checkpoint again"
        )
    return load_ungated(bundle, precision, threads, device)


def load_ungated(bundle: Bundle, precision: str, threads: int, device: Device = "cpu") -> LoadedModel:
    """`load_model` for the gate itself, which has yet to find whether the graphs are right."""
    graphs = bundle.manifest.precisions.get(precision)
    if graphs is None:
        known = ", ".join(sorted(bundle.manifest.precisions))
        raise BundleError(f"{bundle.path} has no precision {precision!r}; it has {known}")
    encoder = _session(bundle, graphs.encoder, device, threads)
    decode_step = _session(bundle, graphs.decode_step, device, threads, captured=True)
    state = graphs.state
    _require_signature(graphs.encoder, encoder, _encoder_inputs(), _encoder_outputs(state))
    _require_signature(graphs.decode_step, decode_step, _step_inputs(state), _step_outputs(state))
    return LoadedModel(bundle.manifest, state, encoder, decode_step, device)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """How every graph is run, by `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails raises
    # On CPU the fused kernel is several times slower than the two nodes that it replaces; on CUDA it adds up
    # in float16.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    # The runtime has a format of its own, which it would recognise, and which nothing here looks through.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Weights that a graph keeps in other files would be read unchecked: nothing is found below this path.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


def session(
    content: bytes, device: Device, threads: int, captured: bool = False
) -> onnxruntime.InferenceSession:
    """A graph, loaded.

    Args:
        content: An ONNX file's.
        device: Where it runs: all of it that computes.
        threads: Of the CPU, per call.
        captured: Whether its runs are captured and replayed as CUDA graphs, where the device has them.

    Raises:
        DeviceError: the runtime would run it elsewhere.
        Exception: the runtime does not load it; its exceptions have no base of their own.
    """
    options = session_options(threads)
    if device == "cpu":
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    flags = {
        "enable_cuda_graph": "1" if captured else "0",
        "use_tf32": "0",  # its products have 10 bits after the point
        "arena_extend_strategy": "kSameAsRequested",
    }
    found = onnxruntime.InferenceSession(
        # Without this it would go on with the CPU, in silence.
        content,
        options,
        providers=[("CUDAExecutionProvider", flags)],
        enable_fallback=0,
    )
    if found.get_providers()[0] != "CUDAExecutionProvider":
        raise DeviceError(f"ONNX Runtime took {found.get_providers()[0]} instead of CUDAExecutionProvider")
    return found


def graph_values(
    content: bytes, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """The outputs `names` of a graph that belongs to no bundle, run once: to find what is wrong with one."""
    found = session(content, "cpu", threads=1).run(names, dict(feeds))
    return dict(zip(names, found, strict=True))


def _session(
    bundle: Bundle, file: str, device: Device, threads: int, captured: bool = False
) -> onnxruntime.InferenceSession:
    content = bundle.read(file)
    try:
        scan_graph(content)
    except GraphScanError as error:
        raise BundleError(f"{bundle.path}: {file} {error}; export the checkpoint again") from error
    try:
        return session(content, device, threads, captured)
    except DeviceError:
        raise
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
        **{input_name(tensor): _described(tensor) for tensor in state},
    }


def _step_outputs(state: Sequence[StateTensor]) -> _Signature:
    caches = {output_name(tensor): _described(tensor) for tensor in state if tensor.is_returned}
    return {"log_prob": (_FLOAT, (None, None)), "token_id": (_INT64, (None, None)), **caches}


def input_name(tensor: StateTensor) -> str:
    """What the decode step calls it among its inputs."""
    return f"past_{tensor.name}" if tensor.kind == "kv_cache" else tensor.name


def output_name(tensor: StateTensor) -> str:
    """What the decode step calls it among its outputs."""
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
