"""Which part of an export is at fault, for a gate that has failed.

Weights that are not the checkpoint's are found by looking at them. Where all are right, the graphs run once
more with the value of every part as an output, beside torch, whose modules tell the same: the first value
that differs is what was computed wrongly. Each decoder position gets torch's own keys and values, so that
an error of one does not become the next one's. Of reduced precision, which differs everywhere, each part is
compared with torch's module on the very same input: the worst one costs most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from dragoman_export.graphs import MASKED_LOGIT
from dragoman_export.parts import Part, Side, graph_parts, in_words
from dragoman_model.transformer import DecoderState, Transformer
from dragoman_server.engine.onnx_sessions import graph_values

__all__ = ["MAX_ROUNDING", "Forced", "GraphPair", "computing_fault", "rounding_fault"]

GraphPair: TypeAlias = tuple[bytes, bytes]
"""Encoder and decode step of one precision, as ONNX files."""
MAX_ROUNDING = {"fp16": 0.01, "int8": 0.1}
"""What rounding may cost any part, as a share of its output. The mean over all tokens can hide a part that is
ruined, as errors cancel out. Sound int8 layers were seen to lose 5 % at most; one of 4 bits loses 16 %."""

_LARGEST = 1e-4
"""Of a value's root mean square: a larger difference is not float32's."""
_LONGEST = 32
_TINY = 1e-30

_Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Run:
    """One graph and torch on the same input."""

    parts: list[Part]
    values: Mapping[str, _Array]
    """What the graph computed, by name; numbers as float32."""
    seen: Mapping[str, tuple[Tensor, Tensor]]
    """What went into and came out of torch's modules, by name."""
    initializers: Mapping[str, _Array]


@dataclass(frozen=True, slots=True)
class Forced:
    """A sentence, and what the decoder is fed."""

    source: Sequence[int]
    """Source ids, end-of-sentence included."""
    target: Sequence[int]
    """Target ids without start symbol."""
    bos: int
    """The start symbol."""

    @property
    def fed(self) -> list[int]:
        """What the decoder reads, position by position."""
        return [self.bos, *self.target][:_LONGEST]


def computing_fault(model: Transformer, floats: GraphPair, text: Forced) -> str:
    """The first part of float32 graphs that computes something else than torch does, in words.

    Args:
        model: The reference, in evaluation mode.
        floats: Graphs whose weights are the model's.
        text: To run both on.

    Returns:
        Words; empty where every part agrees with torch's.
    """
    with np.errstate(all="ignore"):  # of infinities and NaN, which are findings
        for run in _runs(model, floats, floats, text):
            for part in run.parts:
                entered, left = run.seen[part.module]
                if part.input in run.values and _differs(run.values[part.input], entered):
                    return f"what enters {in_words(part.module)}, whose weights are right"
                if _differs(run.values[part.output], left):
                    return f"{in_words(part.module)}, whose weights are right{_offset(part, run)}"
    return ""


def rounding_fault(
    model: Transformer, floats: GraphPair, reduced: GraphPair, text: Forced, bound: float = 0.0
) -> str:
    """The part of graphs of reduced precision whose rounding costs most, in words.

    Args:
        model: The reference, in evaluation mode.
        floats: The float32 graphs.
        reduced: What was made of them.
        text: To run both on.
        bound: What any part's rounding may cost, as a share of its output.

    Returns:
        Words; empty where no part's costs more than `bound`.
    """
    costs: list[tuple[float, str]] = []
    with np.errstate(all="ignore"):
        for run in _runs(model, floats, reduced, text):
            costs += [_part_cost(model, part, run) for part in run.parts if part.weight]
        costs += _state_costs(model, reduced, text)
    cost, words = max(costs, key=lambda entry: entry[0])  # of equal ones, the first
    if cost <= bound:
        return ""
    if not np.isfinite(cost):
        return f"{words}, whose output is not finite: the numbers are too large for this precision"
    return f"{words}, where rounding costs most: {cost:.1%} of its size"


def _runs(model: Transformer, floats: GraphPair, tried: GraphPair, text: Forced) -> Iterator[_Run]:
    """Encoder and decode step of `tried`, whose parts are found in `floats`."""
    source = text.source
    encoder = _parts(model, floats[0], "encoder")
    with _watched(model, encoder) as seen:
        start = _start(model, source)
    feeds: dict[str, _Array] = {
        "source_ids": np.array([source], np.int64),
        "source_lengths": np.array([len(source)], np.int32),
    }
    yield _run(tried[0], encoder, feeds, seen)
    decoder = _parts(model, floats[1], "decoder")
    with _watched(model, decoder) as seen:
        _, state = model.decode(torch.tensor([text.fed]), start)
    feeds = _step_feeds(onnx.load_model_from_string(tried[1]).graph, state, text.fed)
    yield _run(tried[1], decoder, feeds, seen)


def _start(model: Transformer, source: Sequence[int]) -> DecoderState:
    return model.start(model.encode(torch.tensor([list(source)]), torch.tensor([len(source)])))


def _parts(model: Transformer, content: bytes, side: Side) -> list[Part]:
    """The parts of a float graph that torch has as modules, too."""
    modules = dict(model.named_modules(remove_duplicate=False))
    parts = graph_parts(onnx.load_model_from_string(content).graph, side)
    return [part for part in parts if part.module in modules]


def _run(
    content: bytes,
    parts: list[Part],
    feeds: Mapping[str, _Array],
    seen: Mapping[str, tuple[Tensor, Tensor]],
) -> _Run:
    """Run a graph with every part's input and output as outputs of its own."""
    model = onnx.load_model_from_string(content)
    parts = [part for part in parts if part.module in seen]
    made = {name for node in model.graph.node for name in node.output}
    names = [name for part in parts for name in (part.rectified, part.input, part.output) if name in made]
    names = [*dict.fromkeys(names)]
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    found = graph_values(model.SerializeToString(), feeds, names)
    values = {name: array.astype(np.float32) for name, array in found.items()}
    return _Run(parts, values, dict(seen), _initializers(model.graph))


def _initializers(graph: onnx.GraphProto) -> dict[str, _Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


@contextlib.contextmanager
def _watched(model: Transformer, parts: Iterable[Part]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What goes into and comes out of torch's modules while the context lasts, without gradients."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0], output

        return hook

    names = {part.module for part in parts}
    handles = [model.get_submodule(name).register_forward_hook(hook_of(name)) for name in names]
    try:
        with torch.inference_mode():
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def _step_feeds(graph: onnx.GraphProto, state: DecoderState, fed: Sequence[int]) -> dict[str, _Array]:
    """Feeds of a step with a row for every position of `fed`, after torch's keys and values before it."""
    rows, source = len(fed), int(state.source_lengths[0])
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    scales = _initializers(graph)
    feeds: dict[str, _Array] = {
        "token": np.array(fed, np.int64)[:, None],
        "length": np.arange(rows, dtype=np.int32),
        "source_length": np.full(rows, source, np.int32),
        "target_bound": np.array(rows, np.int32),
        "source_bound": np.array(source, np.int32),
        "top_k": np.array([1], np.int64),
    }
    for name, kept in _state(state).items():
        given = name if name in types else f"past_{name}"
        if types[given] == onnx.TensorProto.INT8:
            kept = _rounded(kept, scales[f"{name}.scale"])
        kind = onnx.helper.tensor_dtype_to_np_dtype(types[given])
        feeds[given] = np.repeat(kept.astype(kind), rows, axis=0)
    return feeds


def _state(state: DecoderState) -> dict[str, _Array]:
    """Torch's keys and values `[1, heads, positions, head_dim]` by the names of `state_tensors`."""
    kinds = {
        "self_key": state.self_keys,
        "self_value": state.self_values,
        "cross_key": state.cross_keys,
        "cross_value": state.cross_values,
    }
    return {f"{kind}_{i}": one.numpy() for kind, layers in kinds.items() for i, one in enumerate(layers)}


def _rounded(x: _Array, scale: _Array) -> _Array:
    return np.clip(np.rint(x / scale), -128, 127)


def _differs(found: _Array, expected: Tensor) -> bool:
    """Whether two values differ by more than float32 explains, where the mask of the output layer is not."""
    reference = expected.numpy().reshape(-1, expected.shape[-1])
    rows = found.reshape(reference.shape)
    worst = np.abs(rows - reference)[:, ~(rows[0] < MASKED_LOGIT / 2)].max()
    return not worst <= _LARGEST * _size(reference)  # unlike >, true of NaN as well


def _size(x: _Array) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _offset(part: Part, run: _Run) -> str:
    """What rows of the position table were added instead, where these are the right ones moved."""
    if "positions" not in part.parameters:
        return ""
    tokens = next(other for other in run.parts if other.module == f"{part.module}.tokens")
    found = run.values[part.output].reshape(-1, run.values[part.output].shape[-1])
    right = run.seen[part.module][1].numpy()[0] - part.parameters["positions"][: len(found)]  # tokens alone
    moved = found - right
    distances = np.square(moved[:, None] - part.parameters["positions"][None]).sum(axis=-1)
    shifts = set((distances.argmin(axis=1) - np.arange(len(found))).tolist())
    if len(shifts) > 1 or _differs(run.values[tokens.output], run.seen[tokens.module][1]):
        return ""
    return f": position 0 takes row {shifts.pop()} of the position table"


def _part_cost(model: Transformer, part: Part, run: _Run) -> tuple[float, str]:
    """What a layer's rounding costs, as a share of its output, and the layer in words."""
    found = run.values[part.output]
    if part.input:
        given = run.values.get(part.input)
        if given is None:  # rounding to unsigned integers stands for the rectifier
            given = np.maximum(run.values[part.rectified], 0.0)
        with torch.inference_mode():
            expected = model.get_submodule(part.module)(torch.from_numpy(given)).numpy()
    else:
        expected = run.seen[part.module][1].numpy()
    expected = expected.reshape(-1, expected.shape[-1])
    found = found.reshape(expected.shape)
    allowed = ~(found[0] < MASKED_LOGIT / 2)  # the graph's output layer has the mask in it
    cost = _relative(found[:, allowed], expected[:, allowed])
    return cost, f"{in_words(part.module)}{_levels(part, run.initializers, cost)}"


def _levels(part: Part, initializers: Mapping[str, _Array], cost: float) -> str:
    """Of a layer in integers, whether its weight or its inputs are to blame."""
    integers = initializers.get(f"{part.weight}.int8")
    if integers is None:
        return ""
    weight = part.parameters["weight"]
    restored = (integers * initializers[f"{part.weight}.scales"]).T
    if _relative(restored, weight) > cost / 2:
        return f" (its weight in {int(np.ptp(integers.astype(int))) + 1} levels: the scale is too coarse)"
    return " (its inputs: the scale is too small or too coarse)"


def _relative(found: _Array, expected: _Array) -> float:
    cost = _size(found - expected) / max(_size(expected), _TINY)
    return cost if np.isfinite(cost) else float("inf")


def _state_costs(model: Transformer, reduced: GraphPair, text: Forced) -> list[tuple[float, str]]:
    """What rounding the kept keys and values costs, as a share of them, and which they are."""
    scales = _initializers(onnx.load_model_from_string(reduced[1]).graph)
    with torch.inference_mode():
        _, state = model.decode(torch.tensor([text.fed]), _start(model, text.source))
    costs = []
    for name, kept in _state(state).items():
        scale = scales.get(f"{name}.scale")
        if scale is not None:
            kind, part, layer = name.split("_")
            words = f"decoder layer {layer} {kind}-attention, the {part}s that are kept"
            costs.append((_relative(_rounded(kept, scale) * scale, kept), words))
    return costs
