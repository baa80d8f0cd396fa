"""Our checkpoints as models of CTranslate2, through its own specification classes.

python benchmarks/ctranslate2_convert.py --checkpoint DIR --out DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import Activation, TransformerSpec
from torch import Tensor, nn

from ctranslate2_peer import SPECIAL
from dragoman_model.attention import CrossAttention, SelfAttention
from dragoman_model.checkpoint import Checkpoint, load_checkpoint
from dragoman_model.transformer import Embedding, FeedForward
from dragoman_server.special_ids import BOS_ID, PAD_ID

MASKED = -1e9


def convert(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a CTranslate2 model; its tokens are our ids in decimal.

    Raises:
        ValueError: the checkpoint has learned positions, which CTranslate2 would not check.
    """
    config, model = checkpoint.config, checkpoint.model
    spec = TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers),
        config.num_heads,
        pre_norm=config.norm_first,
        activation=Activation.RELU,
    )
    for side, layers in ((spec.encoder, model.encoder.layers), (spec.decoder, model.decoder.layers)):
        for target, layer in zip(side.layer, layers, strict=True):
            _self_attention(target.self_attention, layer.self_attention)
            _norm(target.self_attention.layer_norm, layer.self_attention_residual.norm)
            if side is spec.decoder:
                _cross_attention(target.attention, layer.cross_attention)
                _norm(target.attention.layer_norm, layer.cross_attention_residual.norm)
            _feed_forward(target.ffn, layer.feed_forward)
            _norm(target.ffn.layer_norm, layer.feed_forward_residual.norm)
    if config.norm_first:
        _norm(spec.encoder.layer_norm, model.encoder.final_norm)
        _norm(spec.decoder.layer_norm, model.decoder.final_norm)
    _embedding(spec.encoder, spec.encoder.embeddings[0], model.encoder.embedding)
    _embedding(spec.decoder, spec.decoder.embeddings, model.decoder.embedding)
    spec.decoder.projection.weight = _array(model.decoder.output.weight)
    bias = np.zeros(config.target_vocabulary_size, np.float32)
    bias[[PAD_ID, BOS_ID]] = MASKED  # never a translation's next token
    spec.decoder.projection.bias = bias
    spec.register_source_vocabulary(_tokens(config.source_vocabulary_size))
    spec.register_target_vocabulary(_tokens(config.target_vocabulary_size))
    spec.config.decoder_start_token = SPECIAL[BOS_ID]
    spec.config.add_source_bos = spec.config.add_source_eos = False  # our sources end in it already
    spec.validate()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))


def _array(tensor: Tensor) -> Any:
    return tensor.detach().float().numpy()


def _linear(spec: Any, layer: nn.Linear) -> None:
    spec.weight, spec.bias = _array(layer.weight), _array(layer.bias)


def _norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _array(norm.weight), _array(norm.bias)


def _self_attention(spec: Any, attention: SelfAttention) -> None:
    _linear(spec.linear[0], attention.query_key_value)
    _linear(spec.linear[1], attention.output)


def _cross_attention(spec: Any, attention: CrossAttention) -> None:
    _linear(spec.linear[0], attention.query)
    _linear(spec.linear[1], attention.key_value)
    _linear(spec.linear[2], attention.output)


def _feed_forward(spec: Any, layer: FeedForward) -> None:
    _linear(spec.linear_0, layer.inner)
    _linear(spec.linear_1, layer.outer)


def _embedding(side: Any, spec: Any, embedding: Embedding) -> None:
    spec.weight = _array(embedding.tokens.weight)
    side.scale_embeddings = True
    side.position_encodings.encodings = _array(embedding.positions)


def _tokens(size: int) -> list[str]:
    return [SPECIAL.get(i, str(i)) for i in range(size)]


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    convert(load_checkpoint(options.checkpoint), options.out)


if __name__ == "__main__":
    main()
