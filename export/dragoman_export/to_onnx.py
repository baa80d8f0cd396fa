"""Torch modules to ONNX files: names, free dimensions and a quiet exporter."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from dragoman_export.graphs import DecodeStepGraph, EncoderGraph, search_block, state_tensors
from dragoman_export.operators import TRANSLATIONS
from dragoman_model.transformer import Transformer
from dragoman_server.state_tensor import StateTensor

__all__ = ["OPSET", "decode_step_onnx", "encoder_onnx"]

OPSET = 21
"""Understood by every ONNX Runtime since 1.20."""

_Axes = Mapping[int, str] | list[Mapping[int, str]]
# The exporter takes a dimension of 1 for a constant: the example inputs are larger everywhere.
_ROWS, _SOURCE, _CAPACITY = 2, 3, 5


def encoder_onnx(model: Transformer) -> bytes:
    """The encoder graph of `model`, as `graphs` describes it."""
    ids = torch.zeros(_ROWS, _SOURCE, dtype=torch.int64)
    lengths = torch.full((_ROWS,), _SOURCE, dtype=torch.int32)
    outputs = [tensor.name for tensor in state_tensors(model) if tensor.kind == "memory"]
    axes: list[_Axes] = [{0: "batch", 1: "source"}, {0: "batch"}]
    return _to_onnx(EncoderGraph(model), (ids, lengths), axes, ["source_ids", "source_lengths"], outputs)


def decode_step_onnx(model: Transformer, masked_ids: Sequence[int], block: int | None = None) -> bytes:
    """The decode-step graph of `model`, as `graphs` describes it.

    Args:
        model: Whose weights to use.
        masked_ids: Tokens that must never follow.
        block: In which the best continuations are searched; by default what suits a CPU.
    """
    if block is None:
        block = search_block(model.config.target_vocabulary_size)
    state = state_tensors(model)
    caches = [tensor for tensor in state if tensor.kind == "kv_cache"]
    memories = [tensor for tensor in state if tensor.kind == "memory"]
    inputs = ["token", "length", "source_length", "target_bound", "source_bound", "top_k"]
    inputs += [f"past_{tensor.name}" for tensor in caches] + [tensor.name for tensor in memories]
    outputs = ["log_prob", "token_id", *(f"present_{tensor.name}" for tensor in caches)]
    rows: _Axes = {0: "rows"}
    cache_axes: _Axes = [{0: "rows", 2: "capacity"}] * len(caches)
    memory_axes: _Axes = [{0: "rows", 2: "source_capacity"}] * len(memories)
    axes: list[_Axes] = [rows, rows, rows, {}, {}, {}, cache_axes, memory_axes]
    arguments = _step_arguments(caches, memories)
    return _to_onnx(DecodeStepGraph(model, masked_ids, block), arguments, axes, inputs, outputs)


def _step_arguments(
    caches: Sequence[StateTensor], memories: Sequence[StateTensor]
) -> tuple[Tensor | list[Tensor], ...]:
    lengths = torch.ones(_ROWS, dtype=torch.int32)
    return (
        torch.zeros(_ROWS, 1, dtype=torch.int64),
        lengths,
        lengths.clone(),  # the exporter takes one tensor given twice for one input
        torch.tensor(_CAPACITY, dtype=torch.int32),
        torch.tensor(_SOURCE, dtype=torch.int32),
        torch.tensor([2]),
        [torch.zeros(tensor.shape(_ROWS, _CAPACITY)) for tensor in caches],
        [torch.zeros(tensor.shape(_ROWS, _SOURCE)) for tensor in memories],
    )


def _to_onnx(
    module: nn.Module,
    arguments: tuple[Tensor | list[Tensor], ...],
    axes: Sequence[_Axes],
    inputs: list[str],
    outputs: list[str],
) -> bytes:
    with _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            arguments,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple(axes),
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return _without_annotations(program.model_proto)


def _without_annotations(model: onnx.ModelProto) -> bytes:
    """Serialise without the stack traces and file paths that the exporter attaches to every node."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    annotated: tuple[Any, ...] = (model, graph, *graph.node, *graph.initializer, *values)
    for part in annotated:
        part.doc_string = ""
        del part.metadata_props[:]
    return model.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide what the exporter says of its own insides: deprecations, and packages that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=UserWarning, message="# The axis name: .* will not be")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
