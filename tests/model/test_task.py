"""The loss that is trained on."""

from __future__ import annotations

import pytest
import torch

from dragoman_model.config import ModelConfig
from dragoman_model.dataset import make_batch
from dragoman_model.task import TranslationTask
from dragoman_model.transformer import Transformer

BATCH = make_batch([([5, 6, 7], [8, 9]), ([5], [8, 10, 11, 9])])


def loss(dropout: float, r_drop: float) -> float:
    torch.manual_seed(0)
    config = ModelConfig(
        source_vocabulary_size=20, target_vocabulary_size=20, d_model=16, num_heads=2, d_ff=32,
        encoder_layers=1, decoder_layers=1, dropout=dropout,
    )  # fmt: skip
    task = TranslationTask(Transformer(config), 1.0, 100, label_smoothing=0.1, r_drop=r_drop).train()
    value, likelihood, tokens = task.losses(BATCH)
    assert tokens == 3 + 5  # the end symbol of each target counts, padding does not
    assert torch.isfinite(likelihood)
    return value.item()


def test_passes_that_agree_cost_nothing_more() -> None:
    assert loss(dropout=0.0, r_drop=5.0) == pytest.approx(loss(dropout=0.0, r_drop=0.0), rel=1e-5)


def test_the_two_passes_of_r_drop_have_masks_of_their_own() -> None:
    one, two = loss(dropout=0.5, r_drop=1.0), loss(dropout=0.5, r_drop=2.0)
    assert two > one + 1e-3
