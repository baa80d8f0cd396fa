"""The graph modules, run in torch, against the Transformer they are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dragoman_export.graphs import DecodeStepGraph, EncoderGraph, search_block, state_tensors
from dragoman_model.checkpoint import load_checkpoint
from dragoman_model.reference import next_log_probs
from dragoman_model.transformer import Transformer

LENGTHS = [5, 1, 9]
CAPACITY = 12
VARIANTS = [
    {"norm_first": norm_first, "positions": positions, "shared_vocabulary": shared}
    for norm_first in (False, True)
    for positions in ("sinusoidal", "learned")
    for shared in (False, True)
]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def model(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Transformer:
    return load_checkpoint(make_checkpoint(**request.param)).model


@pytest.fixture
def source(model: Transformer) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(4, model.config.source_vocabulary_size, (len(LENGTHS), max(LENGTHS)))


@torch.inference_mode()
def test_encoder_equals_the_transformers(model: Transformer, source: Tensor) -> None:
    found = EncoderGraph(model)(source, torch.tensor(LENGTHS, dtype=torch.int32))
    state = model.start(model.encode(source, torch.tensor(LENGTHS)))
    keys_and_values = zip(state.cross_keys, state.cross_values, strict=True)
    for tensor, expected in zip(found, (part for layer in keys_and_values for part in layer), strict=True):
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(
                tensor[row, :, :length], expected[row, :, :length], atol=1e-5, rtol=1e-4
            )


@torch.inference_mode()
def test_decode_steps_equal_the_transformers(model: Transformer, source: Tensor) -> None:
    vocabulary = model.config.target_vocabulary_size
    target = torch.randint(4, vocabulary, (len(LENGTHS), 8))
    logits, _ = model.decode(target, model.start(model.encode(source, torch.tensor(LENGTHS))))
    expected = next_log_probs(logits)
    source_length = torch.tensor(LENGTHS, dtype=torch.int32)
    memories = EncoderGraph(model)(source, source_length)
    caches = [
        torch.full(tensor.shape(len(LENGTHS), CAPACITY), torch.nan)
        for tensor in state_tensors(model)
        if tensor.kind == "kv_cache"
    ]
    graph = DecodeStepGraph(model, masked_ids=(0, 2))
    bounds = torch.tensor(CAPACITY, dtype=torch.int32), torch.tensor(max(LENGTHS), dtype=torch.int32)
    for step in range(target.size(1)):
        length = torch.full((len(LENGTHS),), step, dtype=torch.int32)
        token, top_k = target[:, step : step + 1], torch.tensor([vocabulary])
        log_prob, ids, caches = graph(token, length, source_length, *bounds, top_k, caches, memories)
        torch.testing.assert_close(log_prob, expected[:, step].gather(1, ids), atol=1e-5, rtol=1e-4)
        assert bool((log_prob.diff(dim=1) <= 0).all())


@pytest.mark.parametrize(
    ("vocabulary", "block"), [(32_000, 64), (10_000, 80), (37_000, 40), (8_192, 64), (1_000, 0), (10_007, 0)]
)
def test_large_vocabularies_are_searched_in_blocks_that_divide_them(vocabulary: int, block: int) -> None:
    assert search_block(vocabulary) == block
