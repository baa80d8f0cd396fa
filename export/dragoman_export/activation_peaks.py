"""The largest inputs of linear layers, as translating shows them: what static int8 scales are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dragoman_export.graphs import DecodeStepGraph
from dragoman_model.reference import forced_log_probs
from dragoman_model.transformer import Transformer

__all__ = ["by_bias", "input_peaks"]


def input_peaks(
    model: Transformer, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]
) -> dict[nn.Linear, float]:
    """The largest absolute input of every linear layer while `model` reads `pairs` (teacher forcing).

    Args:
        model: In evaluation mode.
        pairs: Source ids, end symbol included, and target ids without start symbol.
    """
    peaks: dict[nn.Linear, float] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        peaks[layer] = max(peaks.get(layer, 0.0), inputs[0].abs().max().item())

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.inference_mode():
            for source, target in pairs:
                forced_log_probs(model, source, target)
    finally:
        for handle in handles:
            handle.remove()
    return peaks


def by_bias(graph: DecodeStepGraph, peaks: Mapping[nn.Linear, float]) -> dict[str, float]:
    """The peaks of a graph's linear layers by the names of their biases, as the ONNX file has them."""
    named = {
        f"{name}.bias": peaks[layer]
        for name, layer in graph.named_modules()
        if isinstance(layer, nn.Linear) and layer in peaks
    }
    # The output layer's bias is the graph's own: it masks what must never follow.
    if "decoder.output.bias" in named:
        named["output_bias"] = named.pop("decoder.output.bias")
    return named
