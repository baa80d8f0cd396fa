"""Smoothed models say the same in floats, with inputs that one scale suits better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dragoman_export.activation_peaks import input_peaks
from dragoman_export.smoothing import smoothed
from dragoman_model.checkpoint import load_checkpoint
from dragoman_model.reference import forced_log_probs
from dragoman_model.transformer import Transformer

PAIRS = [([5, 9, 3], [7, 4, 3]), ([4, 8, 11, 12, 3], [6, 6, 9, 3])]


@pytest.fixture
def model(make_checkpoint: Callable[..., Path]) -> Transformer:
    found = load_checkpoint(make_checkpoint(norm_first=True)).model.eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if name.endswith("norm.weight"):
                parameter[::5] *= 20.0  # a few channels far larger than the others
    return found


def log_probs(model: Transformer) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([forced_log_probs(model, *pair).flatten() for pair in PAIRS])


def test_a_smoothed_model_says_the_same(model: Transformer) -> None:
    ours = smoothed(model, input_peaks(model, PAIRS))
    pairs = zip(ours.parameters(), model.parameters(), strict=False)
    assert any((one != other).any() for one, other in pairs)
    torch.testing.assert_close(log_probs(ours), log_probs(model), atol=1e-4, rtol=1e-4)


def test_its_inputs_are_smoother(model: Transformer) -> None:
    """A scale that suits the largest channel leaves more levels to the others."""

    def unevenness(of: Transformer) -> float:
        peaks = input_peaks(of, PAIRS)
        smooth = [layer for name, layer in of.named_modules() if name.endswith(("query_key_value", "inner"))]
        return max((peaks[layer].max() / peaks[layer].median()).item() for layer in smooth)

    ours = smoothed(model, input_peaks(model, PAIRS))
    assert unevenness(ours) < 0.5 * unevenness(model)


def test_a_channel_that_was_hardly_seen_is_not_blown_up(model: Transformer) -> None:
    peaks = input_peaks(model, PAIRS)
    unseen = {layer: peak.index_fill(0, torch.tensor([0]), 0.0) for layer, peak in peaks.items()}
    ours = smoothed(model, unseen)
    grown = [
        (one[:, 0].abs().max() / other[:, 0].abs().max()).item()
        for (name, one), other in zip(ours.named_parameters(), model.parameters(), strict=False)
        if name.endswith("query_key_value.weight")
    ]
    assert all(0.01 < growth < 100.0 for growth in grown)


def test_the_model_given_stays_as_it_is(model: Transformer) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smoothed(model, input_peaks(model, PAIRS))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0.0, atol=0.0)


def test_layers_never_seen_stay_as_they_are(model: Transformer) -> None:
    ours = smoothed(model, {})
    for (name, one), (_, other) in zip(ours.named_modules(), model.named_modules(), strict=True):
        if isinstance(one, nn.Linear):
            assert torch.equal(one.weight, other.weight), name
