"""Hugging Face `generate` with the weights of one of our checkpoints, as a Marian model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MarianConfig, MarianMTModel

from dragoman_model.checkpoint import Checkpoint
from dragoman_server.engine.messages import output_limit
from dragoman_server.special_ids import BOS_ID, EOS_ID, PAD_ID

MASKED = -1e9


def convert(checkpoint: Checkpoint) -> Any:
    """A Marian model that says what `checkpoint` says.

    Raises:
        ValueError: the checkpoint is pre-norm or does not share its vocabulary, which Marian models do.
    """
    config, ours = checkpoint.config, checkpoint.model
    if config.norm_first or not (config.shared_vocabulary and config.tied_output):
        raise ValueError("a Marian model is post-norm, with one tied embedding")
    theirs = MarianMTModel(
        MarianConfig(
            vocab_size=config.target_vocabulary_size,
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.num_heads,
            decoder_attention_heads=config.num_heads,
            encoder_ffn_dim=config.d_ff,
            decoder_ffn_dim=config.d_ff,
            activation_function="relu",
            scale_embedding=True,
            max_position_embeddings=config.max_positions,
            pad_token_id=PAD_ID,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            decoder_start_token_id=BOS_ID,
            forced_eos_token_id=None,
        )
    ).eval()
    with torch.no_grad():
        _copy(theirs.model.shared.weight, ours.encoder.embedding.tokens.weight)
        theirs.final_logits_bias.zero_()
        theirs.final_logits_bias[0, [PAD_ID, BOS_ID]] = MASKED  # never a translation's next token
        for side, mine in ((theirs.model.encoder, ours.encoder), (theirs.model.decoder, ours.decoder)):
            _copy(side.embed_positions.weight, mine.embedding.positions)
            for target, layer in zip(side.layers, mine.layers, strict=True):
                _layer(target, layer)
    return theirs


def _layer(target: Any, layer: Any) -> None:
    attention = layer.self_attention
    parts = zip(
        attention.query_key_value.weight.chunk(3), attention.query_key_value.bias.chunk(3), strict=True
    )
    for name, (weight, bias) in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
        _copy(getattr(target.self_attn, name).weight, weight)
        _copy(getattr(target.self_attn, name).bias, bias)
    _copies(target.self_attn.out_proj, attention.output)
    _copies(target.self_attn_layer_norm, layer.self_attention_residual.norm)
    if hasattr(target, "encoder_attn"):
        attention = layer.cross_attention
        _copies(target.encoder_attn.q_proj, attention.query)
        parts = zip(attention.key_value.weight.chunk(2), attention.key_value.bias.chunk(2), strict=True)
        for name, (weight, bias) in zip(("k_proj", "v_proj"), parts, strict=True):
            _copy(getattr(target.encoder_attn, name).weight, weight)
            _copy(getattr(target.encoder_attn, name).bias, bias)
        _copies(target.encoder_attn.out_proj, attention.output)
        _copies(target.encoder_attn_layer_norm, layer.cross_attention_residual.norm)
    _copies(target.fc1, layer.feed_forward.inner)
    _copies(target.fc2, layer.feed_forward.outer)
    _copies(target.final_layer_norm, layer.feed_forward_residual.norm)


def _copies(target: nn.Module, source: nn.Module) -> None:
    for mine, theirs in zip(source.parameters(), target.parameters(), strict=True):
        _copy(theirs, mine)


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


class Peer:
    """A Marian model that speaks ids."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = convert(checkpoint)

    @torch.inference_mode()
    def translate(self, sources: Sequence[Sequence[int]], beam_size: int, batch_size: int) -> list[list[int]]:
        """The best translation of each source, which ends in the end symbol, without its own."""
        order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))  # little padding
        results: list[list[int]] = [[] for _ in sources]
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = max(len(sources[i]) for i in batch)
            ids = torch.full((len(batch), longest), PAD_ID)
            for row, i in enumerate(batch):
                ids[row, : len(sources[i])] = torch.tensor(sources[i])
            found = self._model.generate(
                input_ids=ids,
                attention_mask=(ids != PAD_ID).long(),
                num_beams=beam_size,
                do_sample=False,
                max_new_tokens=output_limit(longest),
                length_penalty=0.6 if beam_size > 1 else 1.0,
            )
            for i, row in zip(batch, found.tolist(), strict=True):
                results[i] = [token for token in row if token not in (PAD_ID, BOS_ID, EOS_ID)]
        return results
