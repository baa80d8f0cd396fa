"""The dimensions of a network, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["PRESETS", "Activation", "ModelConfig", "Positions", "Preset", "preset_config"]

Positions = Literal["sinusoidal", "learned"]
Activation = Literal["relu", "gelu", "swish"]
Preset = Literal["tiny", "small", "base", "big"]

_SIZES = ("d_model", "num_heads", "d_ff", "encoder_layers", "decoder_layers", "max_positions")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that decides the shape of an encoder-decoder Transformer; saved in every checkpoint.

    Raises:
        ValueError: the dimensions do not fit each other; the message names the field.
    """

    source_vocabulary_size: int
    target_vocabulary_size: int
    shared_vocabulary: bool = True
    """One embedding for source, target and output (Vaswani et al. 2017, section 3.4)."""
    d_model: int = 512
    num_heads: int = 8
    d_ff: int = 2048
    encoder_num_heads: int | None = None
    """Where the encoder has others than `num_heads`."""
    encoder_d_ff: int | None = None
    """Where the encoder has another than `d_ff`."""
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    """On embeddings and on every sub-layer's output (Vaswani et al. 2017, section 5.4)."""
    attention_dropout: float = 0.0
    """On attention weights."""
    activation_dropout: float = 0.0
    """Inside the feed-forward, after its non-linearity."""
    norm_first: bool = False
    """Layer normalisation before each sub-layer (pre-norm) instead of after the residual (post-norm)."""
    positions: Positions = "sinusoidal"
    max_positions: int = 1024
    """Positions a learned table has; the longest sequence served for either kind."""
    scaled_embedding: bool = True
    """Embeddings are multiplied by sqrt(d_model) (Vaswani et al. 2017, section 3.4)."""
    activation: Activation = "relu"
    """The feed-forward's non-linearity: gelu is the exact one of Hendrycks & Gimpel 2016 (arXiv:1606.08415),
    swish is x * sigmoid(x) (Ramachandran et al. 2017, arXiv:1710.05941)."""
    tied_output: bool = True
    """The output projection is the transposed target embedding."""
    output_bias: bool = False
    """The output projection adds a bias."""

    def __post_init__(self) -> None:
        for name in (*_SIZES, "encoder_num_heads", "encoder_d_ff"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        for name in ("num_heads", "encoder_num_heads"):
            heads = getattr(self, name)
            if heads is not None and self.d_model % heads:
                raise ValueError(f"{name} ({heads}) must divide d_model ({self.d_model})")
        if self.d_model % 2:
            raise ValueError(f"d_model must be even, not {self.d_model}")
        if self.shared_vocabulary and self.source_vocabulary_size != self.target_vocabulary_size:
            raise ValueError("shared_vocabulary needs source and target vocabularies of one size")
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        for name, known in (("positions", get_args(Positions)), ("activation", get_args(Activation))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the decoder."""
        return self.d_model // self.num_heads

    @property
    def heads_of_encoder(self) -> int:
        """Attention heads of an encoder layer."""
        return self.encoder_num_heads or self.num_heads

    @property
    def d_ff_of_encoder(self) -> int:
        """Width of the feed-forward of an encoder layer."""
        return self.encoder_d_ff or self.d_ff


PRESETS: dict[Preset, dict[str, Any]] = {
    # Transformer-Tiny of Wu et al. 2021 (arXiv:2105.14462), for corpora of some ten thousand pairs.
    "tiny": {
        "d_model": 128,
        "num_heads": 4,
        "d_ff": 256,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "dropout": 0.3,
    },
    "small": {"d_model": 256, "num_heads": 4, "d_ff": 1024, "encoder_layers": 4, "decoder_layers": 4},
    # Vaswani et al. 2017 (arXiv:1706.03762), table 3.
    "base": {"d_model": 512, "num_heads": 8, "d_ff": 2048, "encoder_layers": 6, "decoder_layers": 6},
    "big": {
        "d_model": 1024,
        "num_heads": 16,
        "d_ff": 4096,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "dropout": 0.3,
    },
}


def preset_config(
    preset: Preset, *, source_vocabulary_size: int, target_vocabulary_size: int, **changes: Any
) -> ModelConfig:
    """The configuration of a preset with some fields changed.

    Raises:
        ValueError: no such preset, or the changed dimensions do not fit each other.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {preset}")
    sizes = {
        "source_vocabulary_size": source_vocabulary_size,
        "target_vocabulary_size": target_vocabulary_size,
    }
    return ModelConfig(**{**PRESETS[preset], **sizes, **changes})
