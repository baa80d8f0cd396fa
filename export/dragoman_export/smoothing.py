"""Evens out the channels of activations that share one fixed int8 scale, which has to suit the largest.

A channel is divided by a factor where it is made, and the weights that read it are multiplied by the same: in
exact arithmetic nothing changes (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438, equation 4 with alpha 1/2).
Whatever makes a channel and has no other reader takes the factor at no cost: the norm before a layer, the
values of an attention, the layer before a ReLU. After a post-norm the residual sum reads it, too, so such
channels stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dragoman_model.transformer import DecoderLayer, EncoderLayer, Residual, Transformer

__all__ = ["smoothed"]

_LEAST = 0.1
"""Channels that were seen to be smaller than so much of the largest count as so large: they might yet be."""
_TINY = 1e-8


@dataclass(frozen=True, slots=True)
class _Joint:
    """Channels on their way from what makes them to all that read them."""

    maker: nn.LayerNorm | nn.Linear
    readers: Sequence[nn.Linear]

    @property
    def channels(self) -> slice:
        """Which of the maker's outputs the readers see: of packed queries, keys and values the last."""
        return slice(self.maker.weight.size(0) - self.readers[0].in_features, None)


def smoothed(model: Transformer, peaks: Mapping[nn.Linear, Tensor]) -> Transformer:
    """A copy of `model` that says the same, with smoother inputs of its linear layers.

    Args:
        model: In evaluation mode.
        peaks: Of its linear layers, the largest absolute input of each channel, `[in]`.
    """
    ours = copy.deepcopy(model)
    output = ours.decoder.output
    if output.weight is ours.decoder.embedding.tokens.weight:
        output.weight = nn.Parameter(output.weight.detach().clone())  # tied: the table stays as it is
    seen = dict(zip(_linears(ours), (peaks.get(layer) for layer in _linears(model)), strict=True))
    with torch.no_grad():
        for joint in _joints(ours):
            known = [peak for reader in joint.readers if (peak := seen[reader]) is not None]
            if len(known) == len(joint.readers):
                _even_out(joint, torch.stack(known).amax(dim=0))
    return ours


def _even_out(joint: _Joint, peaks: Tensor) -> None:
    columns = torch.stack([reader.weight.abs().amax(dim=0) for reader in joint.readers]).amax(dim=0)  # [in]
    factors = (_bounded(peaks) / _bounded(columns)).sqrt()
    weight, bias = joint.maker.weight[joint.channels], joint.maker.bias[joint.channels]
    weight.div_(factors if weight.dim() == 1 else factors.unsqueeze(1))
    bias.div_(factors)
    for reader in joint.readers:
        reader.weight.mul_(factors)


def _bounded(sizes: Tensor) -> Tensor:
    return sizes.clamp_min(max(_LEAST * sizes.max().item(), _TINY))


def _linears(model: Transformer) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def _joints(model: Transformer) -> Iterator[_Joint]:
    """Where a channel's factor can be hidden."""
    encoders = cast(list[EncoderLayer], list(model.encoder.layers))
    decoders = cast(list[DecoderLayer], list(model.decoder.layers))
    both: Sequence[EncoderLayer | DecoderLayer] = [*encoders, *decoders]
    for layer in both:
        yield from _before(layer.self_attention_residual, layer.self_attention.query_key_value)
        yield _Joint(layer.self_attention.query_key_value, [layer.self_attention.output])
        yield from _before(layer.feed_forward_residual, layer.feed_forward.inner)
        # Of the non-linearities this one alone lets a positive factor pass.
        if layer.feed_forward.activation is nn.functional.relu:
            yield _Joint(layer.feed_forward.inner, [layer.feed_forward.outer])
    for decoder in decoders:
        yield from _before(decoder.cross_attention_residual, decoder.cross_attention.query)
        yield _Joint(decoder.cross_attention.key_value, [decoder.cross_attention.output])
    if isinstance(model.encoder.final_norm, nn.LayerNorm):
        yield _Joint(model.encoder.final_norm, [decoder.cross_attention.key_value for decoder in decoders])
    if isinstance(model.decoder.final_norm, nn.LayerNorm):
        yield _Joint(model.decoder.final_norm, [model.decoder.output])


def _before(residual: Residual, reader: nn.Linear) -> Iterator[_Joint]:
    if residual.norm_first:
        yield _Joint(residual.norm, [reader])
