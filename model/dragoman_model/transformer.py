"""The encoder-decoder Transformer of Vaswani et al. 2017 (arXiv:1706.03762), written out.

Two verbs: `encode` a source into a memory, `decode` target tokens given a state. Training decodes whole
sentences from a fresh state; generation feeds one token at a time and keeps the state that comes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dragoman_model.attention import CrossAttention, SelfAttention, causal_mask
from dragoman_model.config import Activation, ModelConfig
from dragoman_model.dropout import Dropout

__all__ = ["Decoder", "DecoderState", "Encoder", "Memory", "Transformer", "sinusoids"]


class Memory(NamedTuple):
    """What the encoder made of a batch of sources."""

    hidden: Tensor
    """`[batch, source, d_model]`; anything beyond a row's length."""
    lengths: Tensor
    """`[batch]`, tokens of each source."""


class DecoderState(NamedTuple):
    """Everything the decoder remembers, as plain tensors with the row on axis 0 (one tuple entry a layer)."""

    cross_keys: tuple[Tensor, ...]
    """`[batch, heads, source, head_dim]`, constant."""
    cross_values: tuple[Tensor, ...]
    source_lengths: Tensor
    """`[batch]`."""
    self_keys: tuple[Tensor, ...] = ()
    """`[batch, heads, past, head_dim]`, one position longer with every token; empty before the first."""
    self_values: tuple[Tensor, ...] = ()

    @property
    def past(self) -> int:
        """Tokens decoded so far."""
        return self.self_keys[0].size(2) if self.self_keys else 0

    def select(self, rows: Tensor) -> DecoderState:
        """The state of `rows` (indices into axis 0), in their order."""

        def chosen(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(tensor[rows] for tensor in tensors)

        return DecoderState(
            chosen(self.cross_keys),
            chosen(self.cross_values),
            self.source_lengths[rows],
            chosen(self.self_keys),
            chosen(self.self_values),
        )


def sinusoids(length: int, d_model: int) -> Tensor:
    """Sinusoidal positions `[length, d_model]` (section 3.5): sines in even columns, cosines in odd ones."""
    position = torch.arange(length, dtype=torch.float64).unsqueeze(1)  # [length, 1]
    inverse_wavelength = torch.exp(
        torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10000.0) / d_model)
    )
    angle = position * inverse_wavelength  # [length, d_model / 2]
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).float()  # [length, d_model]


class Embedding(nn.Module):
    """Token embedding times sqrt(d_model), plus position; the order that attention alone does not know."""

    def __init__(self, config: ModelConfig, tokens: nn.Embedding) -> None:
        super().__init__()
        self.tokens = tokens
        self.scale = math.sqrt(config.d_model) if config.scaled_embedding else 1.0
        self.dropout = Dropout(config.dropout)
        table = sinusoids(config.max_positions, config.d_model)
        self.positions: Tensor
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn_like(table) * config.d_model**-0.5)
        else:
            self.register_buffer("positions", table, persistent=False)

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embed `ids` `[batch, length]`, the first at position `start`, as `[batch, length, d_model]`.

        Raises:
            ValueError: the sequence is longer than the position table.
        """
        stop = start + ids.size(1)
        if stop > self.positions.size(0):
            raise ValueError(
                f"a sequence of {stop} tokens exceeds the model's max_positions ({self.positions.size(0)}): "
                "split the text, or train with more positions"
            )
        return self.dropout(self.tokens(ids) * self.scale + self.positions[start:stop])  # type: ignore[no-any-return]


_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
}


class FeedForward(nn.Module):
    """The non-linearity between attentions: max(0, x W1 + b1) W2 + b2 (equation 2), or with another one."""

    def __init__(self, config: ModelConfig, d_ff: int) -> None:
        super().__init__()
        self.inner = nn.Linear(config.d_model, d_ff)
        self.outer = nn.Linear(d_ff, config.d_model)
        self.activation = _ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Position-wise; `[batch, length, d_model]` in and out."""
        return self.outer(self.dropout(self.activation(self.inner(x))))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Adds a sub-layer's output to its input, and normalises: before the sub-layer or after the sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.norm_first = config.norm_first
        self.dropout = Dropout(config.dropout)

    def before(self, x: Tensor) -> Tensor:
        """What the sub-layer sees of `x` `[batch, length, d_model]`."""
        return self.norm(x) if self.norm_first else x

    def after(self, x: Tensor, output: Tensor) -> Tensor:
        """The residual sum of `x` and the sub-layer's `output`."""
        x = x + self.dropout(output)
        return x if self.norm_first else self.norm(x)


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.d_model, config.heads_of_encoder, config.attention_dropout)
        self.self_attention_residual = Residual(config)
        self.feed_forward = FeedForward(config, config.d_ff_of_encoder)
        self.feed_forward_residual = Residual(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x` is `[batch, source, d_model]`, `mask` `[batch, 1, 1, source]`."""
        attended, _ = self.self_attention(self.self_attention_residual.before(x), mask)
        x = self.self_attention_residual.after(x, attended)
        transformed = self.feed_forward(self.feed_forward_residual.before(x))
        return self.feed_forward_residual.after(x, transformed)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.d_model, config.num_heads, config.attention_dropout)
        self.self_attention_residual = Residual(config)
        self.cross_attention = CrossAttention(config.d_model, config.num_heads, config.attention_dropout)
        self.cross_attention_residual = Residual(config)
        self.feed_forward = FeedForward(config, config.d_ff)
        self.feed_forward_residual = Residual(config)

    def forward(
        self,
        x: Tensor,
        self_mask: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
        cross: tuple[Tensor, Tensor],
        cross_mask: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`x` is `[batch, length, d_model]`; returns it transformed, with the keys and values to remember."""
        attended, present = self.self_attention(self.self_attention_residual.before(x), self_mask, past)
        x = self.self_attention_residual.after(x, attended)
        attended = self.cross_attention(self.cross_attention_residual.before(x), *cross, cross_mask)
        x = self.cross_attention_residual.after(x, attended)
        transformed = self.feed_forward(self.feed_forward_residual.before(x))
        return self.feed_forward_residual.after(x, transformed), present


def _length_mask(lengths: Tensor, size: int) -> Tensor:
    """True for real tokens, `[batch, 1, 1, size]`."""
    return (torch.arange(size, device=lengths.device) < lengths.unsqueeze(1))[:, None, None, :]


class Encoder(nn.Module):
    """A stack of encoder layers over embedded source tokens."""

    def __init__(self, config: ModelConfig, tokens: nn.Embedding) -> None:
        super().__init__()
        self.embedding = Embedding(config, tokens)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.final_norm = nn.LayerNorm(config.d_model) if config.norm_first else nn.Identity()

    def forward(self, source: Tensor, lengths: Tensor) -> Memory:
        """Read `source` `[batch, source]`, right-padded, of which `lengths` `[batch]` tokens count."""
        mask = _length_mask(lengths, source.size(1))
        x = self.embedding(source)
        for layer in self.layers:
            x = layer(x, mask)
        return Memory(self.final_norm(x), lengths)


class Decoder(nn.Module):
    """A stack of decoder layers over embedded target tokens; ends in one score per word of the vocabulary."""

    def __init__(self, config: ModelConfig, tokens: nn.Embedding) -> None:
        super().__init__()
        self.embedding = Embedding(config, tokens)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.final_norm = nn.LayerNorm(config.d_model) if config.norm_first else nn.Identity()
        self.output = nn.Linear(config.d_model, config.target_vocabulary_size, bias=config.output_bias)
        if config.tied_output:
            self.output.weight = tokens.weight

    def start(self, memory: Memory) -> DecoderState:
        """The state before the first token: every layer's keys and values of the source."""
        layers = cast(list[DecoderLayer], list(self.layers))
        keys, values = zip(*(layer.cross_attention.project(memory.hidden) for layer in layers), strict=True)
        return DecoderState(keys, values, memory.lengths)

    def hidden(self, target: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """`forward` without the output projection: `[batch, length, d_model]`, and the state after it."""
        length, past = target.size(1), state.past
        self_mask = causal_mask(length, past, target.device) if length > 1 else None
        cross_mask = _length_mask(state.source_lengths, state.cross_keys[0].size(2))
        x = self.embedding(target, start=past)
        present: list[tuple[Tensor, Tensor]] = []
        for i, layer in enumerate(self.layers):
            remembered = (state.self_keys[i], state.self_values[i]) if past else None
            x, kept = layer(
                x, self_mask, remembered, (state.cross_keys[i], state.cross_values[i]), cross_mask
            )
            present.append(kept)
        keys, values = zip(*present, strict=True)
        return self.final_norm(x), state._replace(self_keys=keys, self_values=values)

    def forward(self, target: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Feed `target` `[batch, length]`; logits `[batch, length, vocabulary]` and the state after it."""
        x, state = self.hidden(target, state)
        return self.output(x), state


class Transformer(nn.Module):
    """Encoder, decoder and the embeddings they share.

    Args:
        config: The dimensions.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        source_tokens = nn.Embedding(config.source_vocabulary_size, config.d_model)
        target_tokens = (
            source_tokens
            if config.shared_vocabulary
            else nn.Embedding(config.target_vocabulary_size, config.d_model)
        )
        self.encoder = Encoder(config, source_tokens)
        self.decoder = Decoder(config, target_tokens)
        self._initialise()

    def _initialise(self) -> None:
        """Glorot-uniform matrices, zero biases, embeddings of unit size once scaled by sqrt(d_model)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():  # after the linear layers: a tied output is an embedding
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.d_model**-0.5)

    def encode(self, source: Tensor, lengths: Tensor) -> Memory:
        """Read sources, right-padded `[batch, source]` with `lengths` `[batch]`.

        Raises:
            ValueError: a source is longer than the positions the model has.
        """
        return self.encoder(source, lengths)  # type: ignore[no-any-return]

    def start(self, memory: Memory) -> DecoderState:
        """The decoder's state before its first token."""
        return self.decoder.start(memory)

    def decode(self, target: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Logits `[batch, length, vocabulary]` of what follows each target token, and the state after them.

        Raises:
            ValueError: the target is longer than the positions the model has.
        """
        return self.decoder(target, state)  # type: ignore[no-any-return]

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Logits `[batch, length, vocabulary]` under teacher forcing."""
        return self.decode(target, self.start(self.encode(source, lengths)))[0]

    @property
    def num_parameters(self) -> int:
        """Trained numbers; shared ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())
