"""How large activations become when a model translates: what fixed int8 scales are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dragoman_export.graphs import DecodeStepGraph, EncoderGraph
from dragoman_model.reference import forced_log_probs
from dragoman_model.transformer import DecoderLayer, Transformer
from dragoman_server.special_ids import SpecialIds

__all__ = ["Pairs", "by_bias", "input_peaks", "state_peaks"]

Pairs = Iterable[tuple[Sequence[int], Sequence[int]]]
"""Source ids, end symbol included, and target ids without start symbol."""

_OURS = SpecialIds()
_Note = Callable[[nn.Linear, Tensor, Tensor], None]


def input_peaks(model: Transformer, pairs: Pairs, special: SpecialIds = _OURS) -> dict[nn.Linear, Tensor]:
    """The largest absolute inputs of every linear layer while `model`, in evaluation mode, reads `pairs`.

    Returns:
        For every channel: `[in]`.
    """
    peaks: dict[nn.Linear, Tensor] = {}

    def note(layer: nn.Linear, x: Tensor, _: Tensor) -> None:
        largest = x.abs().flatten(0, -2).amax(0)
        peaks[layer] = torch.maximum(peaks.get(layer, largest), largest)

    _watch(model, [layer for layer in model.modules() if isinstance(layer, nn.Linear)], pairs, special, note)
    return peaks


def state_peaks(model: Transformer, pairs: Pairs, special: SpecialIds = _OURS) -> dict[str, Tensor]:
    """The largest absolute keys and values while `model`, in evaluation mode, reads `pairs`.

    Returns:
        By the names of `state_tensors`, for every channel: `[heads, head_dim]`.
    """
    peaks: dict[str, Tensor] = {}
    makers: dict[nn.Linear, list[str]] = {}
    """The layers whose outputs end in keys and values."""
    for i, layer in enumerate(cast(Iterable[DecoderLayer], model.decoder.layers)):
        makers[layer.self_attention.query_key_value] = [f"self_key_{i}", f"self_value_{i}"]
        makers[layer.cross_attention.key_value] = [f"cross_key_{i}", f"cross_value_{i}"]

    def note(layer: nn.Linear, _: Tensor, y: Tensor) -> None:
        width = model.config.d_model
        largest = y.abs().flatten(0, -2).amax(0)[-2 * width :].view(2, width)
        for name, part in zip(makers[layer], largest, strict=True):
            seen = part.view(model.config.num_heads, model.config.head_dim)
            peaks[name] = torch.maximum(peaks.get(name, seen), seen)

    _watch(model, list(makers), pairs, special, note)
    return peaks


def _watch(
    model: Transformer, layers: Sequence[nn.Linear], pairs: Pairs, special: SpecialIds, note: _Note
) -> None:
    """Have `model` read `pairs` (teacher forcing); tell `note` what goes into and comes out of `layers`."""

    def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        note(cast(nn.Linear, layer), inputs[0], output)

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        with torch.inference_mode():
            for source, target in pairs:
                forced_log_probs(model, source, target, special)
    finally:
        for handle in handles:
            handle.remove()


def by_bias(graph: EncoderGraph | DecodeStepGraph, peaks: Mapping[nn.Linear, Tensor]) -> dict[str, float]:
    """The largest peak of each linear layer of a graph, by the name of its bias in the ONNX file."""
    named = {
        f"{name}.bias": peaks[layer].max().item()
        for name, layer in graph.named_modules()
        if isinstance(layer, nn.Linear) and layer in peaks
    }
    # The output layer's bias is the graph's own: it masks what must never follow.
    if "decoder.output.bias" in named:
        named["output_bias"] = named.pop("decoder.output.bias")
    return named
