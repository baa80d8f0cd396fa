"""Tiny untrained models and their bundles, exported once for all tests."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch

from dragoman_export.writer import export_checkpoint
from dragoman_model.checkpoint import Checkpoint
from dragoman_model.config import ModelConfig
from dragoman_model.transformer import Transformer
from dragoman_server.bundle import Bundle
from dragoman_server.tokenizer import Tokenizer

WORDS = ("the", "a", "dog", "cat", "woman", "man", "who", "sees", "walks", "sleeps", "runs", "old")

VARIANTS = {
    "post-norm, sinusoidal, joint": {},
    "post-norm, learned, separate": {"positions": "learned", "shared_vocabulary": False},
    "pre-norm, sinusoidal, separate": {"norm_first": True, "shared_vocabulary": False, "tied_output": False},
    "pre-norm, learned, joint": {"norm_first": True, "positions": "learned"},
}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a checkpoint of a random model; what is not given is tiny."""

    def make(**changes: object) -> Path:
        source = _tokenizer(seed=1)
        target = _tokenizer(seed=2) if changes.get("shared_vocabulary") is False else source
        config = ModelConfig(
            source_vocabulary_size=source.vocabulary_size,
            target_vocabulary_size=target.vocabulary_size,
            **{"d_model": 32, "num_heads": 2, "d_ff": 48, "encoder_layers": 2, "decoder_layers": 2} | changes,
            max_positions=40,
        )
        folder = tmp_path_factory.mktemp("checkpoint")
        metadata = {"provenance": "made for this test", "licence": "CC0-1.0"}
        Checkpoint(_random_model(config), source, target, "en", "de", metadata).save(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def export_variant(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Bundle]]:
    """A checkpoint and its bundle, by the name of the variant."""

    @functools.cache
    def export(variant: str) -> tuple[Path, Bundle]:
        checkpoint = make_checkpoint(**VARIANTS[variant])
        out = tmp_path_factory.mktemp("models") / "tiny" / "1"
        return checkpoint, export_checkpoint(checkpoint, out)

    return export


@pytest.fixture(scope="session", params=VARIANTS)
def exported(
    request: pytest.FixtureRequest, export_variant: Callable[[str], tuple[Path, Bundle]]
) -> tuple[Path, Bundle]:
    """A checkpoint and its bundle, of every variant."""
    return export_variant(request.param)


@pytest.fixture(scope="session")
def plain(export_variant: Callable[[str], tuple[Path, Bundle]]) -> tuple[Path, Bundle]:
    """A checkpoint and its bundle, of one variant."""
    return export_variant(next(iter(VARIANTS)))


def _random_model(config: ModelConfig) -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Transformer(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # so that no bias is zero and no gain one
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model


def _tokenizer(seed: int) -> Tokenizer:
    generator, model = random.Random(seed), io.BytesIO()
    sentences = [" ".join(generator.choices(WORDS[: 9 + seed], k=6)) for _ in range(100)]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        minloglevel=2,
        num_threads=1,
    )
    return Tokenizer(model.getvalue())
