"""Checkpoints: what is saved comes back, what is damaged is refused."""

import json
from pathlib import Path

import pytest
import torch

from dragoman_model.checkpoint import (
    Checkpoint,
    CheckpointError,
    average_weights,
    load_checkpoint,
    save_weights,
)
from dragoman_model.config import preset_config
from dragoman_model.transformer import Transformer
from dragoman_server.tokenizer import Tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path, counting_tokenizers: tuple[Tokenizer, Tokenizer]) -> Path:
    size = counting_tokenizers[0].vocabulary_size
    config = preset_config("tiny", source_vocabulary_size=size, target_vocabulary_size=size)
    folder = tmp_path / "checkpoint"
    Checkpoint(Transformer(config).eval(), *counting_tokenizers, "en", "de", {"licence": "CC0"}).save(folder)
    return folder


def test_what_is_saved_comes_back(checkpoint: Path) -> None:
    first, second = load_checkpoint(checkpoint), load_checkpoint(checkpoint)
    assert (first.source_language, first.target_language, first.metadata) == ("en", "de", {"licence": "CC0"})
    assert first.source_tokenizer is first.target_tokenizer
    assert not first.model.training
    second.save(checkpoint)
    for name, tensor in load_checkpoint(checkpoint).model.state_dict().items():
        assert torch.equal(tensor, first.model.state_dict()[name])


def test_tied_embeddings_are_stored_once(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint).model
    assert (checkpoint / "model.safetensors").stat().st_size < 4 * model.num_parameters + 20_000


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.spm"])
def test_a_missing_or_damaged_file_is_named(checkpoint: Path, name: str) -> None:
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError):  # noqa: PT011  # CheckpointError, or the tokenizer's own
        load_checkpoint(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2 is not 1"),
        ({"model": {"d_model": 64}}, "a field is missing"),
    ],
)
def test_a_config_of_another_kind_is_refused(
    checkpoint: Path, change: dict[str, object], message: str
) -> None:
    facts = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(checkpoint)


def test_weights_of_another_shape_are_refused(checkpoint: Path) -> None:
    facts = json.loads((checkpoint / "config.json").read_text())
    facts["model"]["d_ff"] = 512
    (checkpoint / "config.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="another shape"):
        load_checkpoint(checkpoint)


def test_average_is_the_mean(tmp_path: Path) -> None:
    files = []
    for value in (1.0, 2.0, 6.0):
        files.append(tmp_path / f"{value}.safetensors")
        save_weights({"w": torch.full((2, 2), value)}, files[-1])
    assert torch.equal(average_weights(files)["w"], torch.full((2, 2), 3.0))
    with pytest.raises(ValueError, match="no weights"):
        average_weights([])
