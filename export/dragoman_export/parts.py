"""A graph as the modules it is made of, so that what is wrong with it can be named.

The exporter keeps the names of parameters: whatever reads `decoder.layers.0.feed_forward.inner.bias` is that
layer. The matrices of the encoder have lost theirs, and are known by the bias that is added to their product.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from dragoman_export.graphs import MASKED_LOGIT
from dragoman_model.transformer import Transformer

__all__ = ["Part", "Side", "graph_parts", "in_words", "weight_fault"]

Side = Literal["encoder", "decoder"]

_WORDS = {
    "encoder.embedding.tokens": "source embedding",
    "decoder.embedding.tokens": "target embedding",
    "encoder.embedding": "source positions",
    "decoder.embedding": "target positions",
    "decoder.output": "output layer",
    "query_key_value": "query, key and value layer",
    "key_value": "key and value layer",
    "cross_attention.query": "cross-attention query layer",
    "self_attention": "self-attention",
    "cross_attention": "cross-attention",
    "feed_forward": "feed-forward",
    "_residual": "",
    "inner": "inner layer",
    "outer": "outer layer",
    "_": " ",
    ".": " ",
}
"""What is said for the names of modules; the order matters."""
_RELATIVE = 1e-5
"""Difference of two weights that are the same."""
_SHIFTED = 0.9
"""Share of a table's rows that are found a fixed number of rows further on, where it is off by that."""


@dataclass(frozen=True, slots=True)
class Part:
    """One module of the network in a graph."""

    module: str
    """Of the Transformer, such as `decoder.layers.0.feed_forward.inner`."""
    input: str
    """Name of the value that goes in; empty for embeddings."""
    output: str
    """Name of the value that comes out."""
    parameters: Mapping[str, NDArray[Any]]
    """By their names in the module, in torch's layout."""
    weight: str = ""
    """Name of a linear layer's or an embedding's matrix in the graph."""
    rectified: str = ""
    """Name of the value whose positive part is `input`, where there is one."""


def in_words(module: str) -> str:
    """A module's name for people: `encoder layer 2 self-attention output`."""
    text = re.sub(r"layers\.(\d+)\.", r"layer \1 ", module)
    for name, words in _WORDS.items():
        text = text.replace(name, words)
    return text


def graph_parts(graph: onnx.GraphProto, side: Side) -> list[Part]:
    """The parts of a float graph as `to_onnx` writes it, in the order in which they are computed."""
    reader = _Reader(graph, side)
    return [part for node in graph.node if (part := reader.part(node))]


class _Reader:
    """Recognises the parts of one graph."""

    def __init__(self, graph: onnx.GraphProto, side: Side) -> None:
        self._side = side
        self._arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}

    def part(self, node: onnx.NodeProto) -> Part | None:
        """The part whose output `node` makes."""
        match node.op_type:
            case "Gather" if node.input[0].endswith(".weight"):
                table = {"weight": self._arrays[node.input[0]]}
                return Part(f"{self._side}.embedding.tokens", "", node.output[0], table, node.input[0])
            case "LayerNormalization":
                names = zip(("weight", "bias"), node.input[1:], strict=True)
                parameters = {name: self._arrays[given] for name, given in names}
                return Part(_module(node.input[2]), node.input[0], node.output[0], parameters)
            case "Gemm":
                # The exporter drops a bias of zeros, which the output layer alone may have.
                bias = node.input[2] if len(node.input) > 2 else ""
                return self._linear(node, bias, node.output[0])
            case "Add":
                return self._sum(node)
        return None

    def _sum(self, node: onnx.NodeProto) -> Part | None:
        for one, other in (node.input, reversed(node.input)):
            maker = self._makers.get(one)
            if maker is None:
                continue
            if maker.op_type == "MatMul" and other in self._arrays:
                return self._linear(maker, other, node.output[0])
            if maker.input[0].endswith(".positions"):
                table = {"positions": self._arrays[maker.input[0]]}
                return Part(f"{self._side}.embedding", "", node.output[0], table)
        return None

    def _linear(self, product: onnx.NodeProto, bias: str, output: str) -> Part:
        x, weight = product.input[:2]
        transposed = any(a.name == "transB" and a.i for a in product.attribute)
        matrix = self._arrays[weight] if transposed else self._arrays[weight].T
        maker = self._makers.get(x)
        rectified = maker.input[0] if maker is not None and maker.op_type == "Relu" else ""
        parameters = {"weight": matrix, **({"bias": self._arrays[bias]} if bias else {})}
        return Part(_module(bias or "output_bias"), x, output, parameters, weight, rectified)


def _module(parameter: str) -> str:
    """The Transformer's module that a graph's parameter belongs to."""
    if parameter == "output_bias":  # the graph's own: it masks what must never follow
        return "decoder.output"
    parameter = re.sub(r"^cross_attentions\.(\d+)", r"decoder.layers.\1.cross_attention", parameter)
    return parameter.rpartition(".")[0]


def weight_fault(model: Transformer, encoder: bytes, decode_step: bytes) -> str:
    """The first weight of the float graphs that is not the checkpoint's, in words; empty where all are.

    Every weight is compared, those of rare tokens too, which the sentences of the gate may not contain.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for part in _all_parts(encoder, decode_step):
        for name, found in part.parameters.items():
            expected = getattr(modules.get(part.module), name, None)
            if expected is None:  # as of the mask in the output layer
                continue
            reference = expected.detach().numpy()
            if part.module == "decoder.output" and name == "bias":
                reference = np.where(found <= MASKED_LOGIT, found, reference)
            difference = _difference(found, reference, _row_name(part))
            if difference:
                where = "position table" if name == "positions" else name
                return f"{in_words(part.module)}: the {where} {difference}"
    return ""


def _all_parts(encoder: bytes, decode_step: bytes) -> Iterator[Part]:
    yield from graph_parts(onnx.load_model_from_string(encoder).graph, "encoder")
    yield from graph_parts(onnx.load_model_from_string(decode_step).graph, "decoder")


def _row_name(part: Part) -> str:
    if part.module.endswith(".tokens"):
        return "token"
    return "position" if "positions" in part.parameters else "row"


def _difference(found: NDArray[Any], expected: NDArray[Any], row: str) -> str:
    """What makes `found` another than `expected`, as the end of a sentence; empty where they are equal."""
    if _same(found, expected):
        return ""
    if not np.isfinite(found).all():
        return "has entries that are not finite"
    if found.ndim == 2 and _same(found.T, expected):
        return "is the checkpoint's transposed"
    if found.shape != expected.shape:
        return f"has the shape {found.shape}, the checkpoint's {expected.shape}"
    factor = float(np.vdot(found, expected) / max(np.vdot(expected, expected), np.finfo(np.float32).tiny))
    if _same(found, factor * expected):
        return f"is {factor:.4g} times the checkpoint's"
    return _other_rows(found, expected, row)


def _same(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    return found.shape == expected.shape and np.allclose(found, expected, rtol=_RELATIVE, atol=0.0)


def _other_rows(found: NDArray[Any], expected: NDArray[Any], row: str) -> str:
    """`_difference` of arrays that differ in some of their rows, or entries, alone."""
    places = {entry.tobytes(): i for i, entry in enumerate(expected)}
    origins = [places.get(entry.tobytes()) for entry in found]
    shifts = [origin - i for i, origin in enumerate(origins) if origin is not None]
    shift = max(set(shifts), key=shifts.count, default=0)
    if shift and shifts.count(shift) >= _SHIFTED * len(found):
        return f"is off by {shift:+d}: {row} 0 has what the checkpoint has for {row} {shift}"
    differing = np.flatnonzero((found != expected).reshape(len(found), -1).any(axis=1))
    first = int(differing[0])
    if sorted(origin for origin in origins if origin is not None) == [*range(len(found))]:
        swapped = "the vocabulary is swapped" if row == "token" else "it is permuted"
        moved = f"{row} {first} has that of {origins[first]}"
        return f"has the checkpoint's rows in another order: {moved}, {swapped}"
    return f"differs in {len(differing)} of {len(found)} rows, first in that of {row} {first}"
