"""What the folders of Hugging Face's encoder-decoders have in common: files, weights, generation settings."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dragoman_export.options import ExportError
from dragoman_model.config import Activation, ModelConfig
from dragoman_model.transformer import Transformer

__all__ = [
    "Weights",
    "model_config",
    "never_said",
    "read_bytes",
    "read_json",
    "read_vocabulary",
    "read_weights",
    "refuse_unsupported",
    "require_id",
    "require_size",
    "transformer",
]

_ACTIVATIONS: Mapping[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "swish": "swish",
    "silu": "swish",
}
_DIMENSIONS = {
    "d_model": "d_model",
    "num_heads": "decoder_attention_heads",
    "d_ff": "decoder_ffn_dim",
    "encoder_num_heads": "encoder_attention_heads",
    "encoder_d_ff": "encoder_ffn_dim",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "max_positions": "max_position_embeddings",
}
"""Their names by ours."""
# Settings of `generate` that change what is said, and the values at which they do not. How wide to search,
# the length penalty and the longest output are a request's.
_WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    "begin_suppress_tokens": (None, []),
    "diversity_penalty": (None, 0.0),
    "do_sample": (None, False),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "forced_decoder_ids": (None, []),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beam_groups": (None, 1),
    "repetition_penalty": (None, 1.0),
    "sequence_bias": (None, []),
    "suppress_tokens": (None, []),
}


def read_bytes(folder: Path, name: str) -> bytes:
    """The content of a file that must be there.

    Raises:
        ExportError: it is not.
    """
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ExportError(f"{folder / name} cannot be read: {error.strerror}") from error


def read_json(folder: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in a file; an empty one where the file is missing and optional.

    Raises:
        ExportError: the file is missing, or no JSON object.
    """
    if optional and not (folder / name).exists():
        return {}
    try:
        found = json.loads(read_bytes(folder, name))
    except ValueError as error:
        raise ExportError(f"{folder / name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ExportError(f"{folder / name} must be a JSON object")
    return found


def read_vocabulary(folder: Path, name: str, *, optional: bool = False) -> dict[str, int]:
    """Ids by piece, of a JSON object; an empty one where the file is missing and optional.

    Raises:
        ExportError: the file is missing, or no JSON object of ids.
    """
    found = read_json(folder, name, optional=optional)
    for piece, number in found.items():
        if type(number) is not int or number < 0:
            raise ExportError(
                f"{folder / name}: the id of {piece!r} must be a number from 0 on, not {number!r}"
            )
    return found


def read_weights(folder: Path) -> Weights:
    """The tensors of `model.safetensors`, of its shards, or of `pytorch_model.bin`, in float32.

    Raises:
        ExportError: there is none of these, or it is damaged or holds more than tensors.
    """
    index = read_json(folder, "model.safetensors.index.json", optional=True)
    names = sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]
    try:
        if (folder / names[0]).exists():
            found = {key: tensor for name in names for key, tensor in load_file(folder / name).items()}
        elif (folder / "pytorch_model.bin").exists():
            found = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        else:
            raise ExportError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(f"the weights in {folder} cannot be read: {reason}") from error
    return Weights(folder, {name: tensor.float() for name, tensor in found.items()})


def refuse_unsupported(
    folder: Path, config: Mapping[str, Any], supported: Mapping[str, tuple[object, ...]]
) -> None:
    """Refuse what would make the import say something else than the original.

    Args:
        folder: Which may hold a `generation_config.json`.
        config: Of `config.json`.
        supported: The values, by setting, of what this model has besides its sizes; a missing one is fine.

    Raises:
        ExportError: a setting has another value, or `generate` would steer the search.
    """
    generation = read_json(folder, "generation_config.json", optional=True)
    for name, settings, values in (
        ("config.json", config, {**supported, **_WITHOUT_EFFECT}),
        ("generation_config.json", generation, _WITHOUT_EFFECT),
    ):
        for key, allowed in values.items():
            if key in settings and settings[key] not in allowed:
                known = " or ".join(json.dumps(value) for value in allowed)
                found = json.dumps(settings[key])
                raise ExportError(f"{folder / name}: {key} {found} is not supported, only {known}")


def never_said(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that `generate` never says.

    It rules them out after normalising; here the others share their probability, of which little is left
    in a trained model.

    Raises:
        ExportError: a sequence of several tokens is ruled out.
    """
    generation = read_json(folder, "generation_config.json", optional=True)
    words = generation.get("bad_words_ids", config.get("bad_words_ids")) or []
    if any(len(word) != 1 for word in words):
        raise ExportError(f"{folder}: bad_words_ids may name single tokens alone, not {words}")
    return tuple(sorted({word[0] for word in words}))


def require_id(folder: Path, config: Mapping[str, Any], name: str) -> int:
    """A token id that `config.json` must state."""
    found = config.get(name)
    if type(found) is not int:
        raise ExportError(f"{folder / 'config.json'}: {name} must be one token id, not {found!r}")
    return found


def require_size(folder: Path, config: Mapping[str, Any], name: str) -> int:
    """A size that `config.json` must state."""
    found = config.get(name)
    if type(found) is not int or found < 1:
        raise ExportError(f"{folder / 'config.json'}: {name} must be a number of at least 1, not {found!r}")
    return found


def model_config(
    folder: Path,
    config: Mapping[str, Any],
    *,
    source_vocabulary_size: int,
    target_vocabulary_size: int,
    **ours: Any,
) -> ModelConfig:
    """Our configuration of a network of these dimensions; positions are learned ones, which hold any table.

    Args:
        folder: For messages.
        config: Of `config.json`.
        source_vocabulary_size: Rows of the source's table.
        target_vocabulary_size: Of the target's.
        **ours: Fields of ours that the dimensions do not decide.

    Raises:
        ExportError: a size or the activation is missing, or not supported.
    """
    name = str(config.get("activation_function"))
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise ExportError(
            f"{folder / 'config.json'}: activation_function {name!r} is not supported, only {known}"
        )
    sizes: dict[str, Any] = {
        field: require_size(folder, config, theirs) for field, theirs in _DIMENSIONS.items()
    }
    return ModelConfig(
        source_vocabulary_size=source_vocabulary_size,
        target_vocabulary_size=target_vocabulary_size,
        positions="learned",
        activation=_ACTIVATIONS[name],
        **sizes,
        **ours,
    )


class Weights:
    """Tensors by name; each is to be taken once, so that none is overlooked.

    Args:
        folder: Where they come from, for messages.
        tensors: Float32.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        self._folder = folder
        self._tensors = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str) -> Tensor:
        """Remove and return a tensor.

        Raises:
            ExportError: there is none of that name.
        """
        if name not in self._tensors:
            raise ExportError(f"the weights in {self._folder} lack {name}")
        return self._tensors.pop(name)

    def take_joined(self, prefix: str, parts: str) -> dict[str, Tensor]:
        """`weight` and `bias` of the projections `q_proj`, `k_proj`, ..., one beneath the other."""
        return {
            kind: torch.cat([self.take(f"{prefix}.{part}_proj.{kind}") for part in parts])
            for kind in ("weight", "bias")
        }

    def discard(self, *names: str) -> None:
        """Leave out tensors that repeat others, where they are there."""
        for name in names:
            self._tensors.pop(name, None)

    def require_empty(self) -> None:
        """Refuse what was not taken.

        Raises:
            ExportError: a tensor is left.
        """
        if self._tensors:
            raise ExportError(
                f"the weights in {self._folder} hold {min(self._tensors)}, which has no place here"
            )


def transformer(
    config: ModelConfig, weights: Weights, embeddings: Mapping[str, Tensor], positions: Tensor
) -> Transformer:
    """A network of ours with the layers of a Marian or M2M100 model.

    Args:
        config: With learned positions, which hold any table.
        weights: Of which all layers are taken.
        embeddings: By our names: the tables of both sides, and the output layer's weight and bias.
        positions: `[max_positions, d_model]`, of both sides.

    Raises:
        ExportError: a tensor is missing or has another shape than the configuration says.
    """
    state = dict(embeddings)
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        state[f"{side}.embedding.positions"] = positions
        if config.norm_first:
            _rename(state, f"{side}.final_norm", weights, f"model.{side}.layer_norm", ("weight", "bias"))
        for i in range(layers):
            _layer(state, f"{side}.layers.{i}", weights, f"model.{side}.layers.{i}", side == "decoder")
    model = Transformer(config).eval()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ExportError(f"the weights do not have the shapes that config.json says: {reason}") from error
    return model


def _layer(state: dict[str, Tensor], ours: str, weights: Weights, theirs: str, has_cross: bool) -> None:
    kinds = ("weight", "bias")
    joined = {f"{ours}.self_attention.query_key_value": (f"{theirs}.self_attn", "qkv")}
    renamed = {
        f"{ours}.self_attention.output": f"{theirs}.self_attn.out_proj",
        f"{ours}.self_attention_residual.norm": f"{theirs}.self_attn_layer_norm",
        f"{ours}.feed_forward.inner": f"{theirs}.fc1",
        f"{ours}.feed_forward.outer": f"{theirs}.fc2",
        f"{ours}.feed_forward_residual.norm": f"{theirs}.final_layer_norm",
    }
    if has_cross:
        joined[f"{ours}.cross_attention.query"] = (f"{theirs}.encoder_attn", "q")
        joined[f"{ours}.cross_attention.key_value"] = (f"{theirs}.encoder_attn", "kv")
        renamed[f"{ours}.cross_attention.output"] = f"{theirs}.encoder_attn.out_proj"
        renamed[f"{ours}.cross_attention_residual.norm"] = f"{theirs}.encoder_attn_layer_norm"
    for name, (prefix, parts) in joined.items():
        state |= {f"{name}.{kind}": tensor for kind, tensor in weights.take_joined(prefix, parts).items()}
    for name, other in renamed.items():
        _rename(state, name, weights, other, kinds)


def _rename(state: dict[str, Tensor], ours: str, weights: Weights, theirs: str, kinds: Iterable[str]) -> None:
    for kind in kinds:
        state[f"{ours}.{kind}"] = weights.take(f"{theirs}.{kind}")
