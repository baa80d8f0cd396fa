"""The operators' torch implementations against attention written out row by row."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dragoman_export.operators import TRANSLATIONS, best, cached_attention, cross_attention, encoder_attention

ROWS, HEADS, HEAD_DIM, CAPACITY = 3, 2, 8, 6
WIDTH = HEADS * HEAD_DIM
LAST = torch.tensor([0, 3, 5], dtype=torch.int32)
BOUND = torch.tensor(CAPACITY, dtype=torch.int32)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One row and head: `[queries, head_dim]` looks at `[keys, head_dim]`."""
    return (query @ key.T / math.sqrt(HEAD_DIM)).softmax(-1) @ value


def head(x: Tensor, number: int) -> Tensor:
    return x[:, number * HEAD_DIM : (number + 1) * HEAD_DIM]


def poison(cache: Tensor, valid: Tensor) -> Tensor:
    """NaN from position `valid` of each row on, `[rows, heads, positions, head_dim]`."""
    cache = cache.clone()
    for row, length in enumerate(valid.tolist()):
        cache[row, :, length:] = torch.nan
    return cache


def test_encoder_positions_see_their_own_row_up_to_its_length() -> None:
    packed = torch.randn(ROWS, CAPACITY, 3 * WIDTH)
    for row, last in enumerate(LAST.tolist()):
        packed[row, last + 1 :] = torch.nan
    output = encoder_attention(packed, LAST, BOUND, HEADS)
    for row, last in enumerate(LAST.tolist()):
        valid = packed[row, : last + 1].split(WIDTH, dim=-1)
        for i in range(HEADS):
            expected = attention(*(head(part, i) for part in valid))
            torch.testing.assert_close(head(output[row, : last + 1], i), expected)


def test_a_new_position_joins_the_cache_and_sees_its_past() -> None:
    packed = torch.randn(ROWS, 1, 3 * WIDTH)
    caches = [poison(torch.randn(ROWS, HEADS, CAPACITY, HEAD_DIM), LAST) for _ in range(2)]
    output, *presents = cached_attention(packed, *caches, LAST, BOUND, HEADS)
    for row, last in enumerate(LAST.tolist()):
        query, *new = packed[row].split(WIDTH, dim=-1)
        for i in range(HEADS):
            for cache, present, part in zip(caches, presents, new, strict=True):
                torch.testing.assert_close(present[row, i, :last], cache[row, i, :last])
                torch.testing.assert_close(present[row, i, last], head(part, i)[0])
            seen = (present[row, i, : last + 1] for present in presents)
            torch.testing.assert_close(head(output[row], i), attention(head(query, i), *seen))


def test_cross_attention_sees_the_source_up_to_its_length() -> None:
    query = torch.randn(ROWS, 1, WIDTH)
    memory = [poison(torch.randn(ROWS, HEADS, CAPACITY, HEAD_DIM), LAST + 1) for _ in range(2)]
    output = cross_attention(query, query[:, :0], *memory, LAST, BOUND, HEADS)
    for row, last in enumerate(LAST.tolist()):
        for i in range(HEADS):
            seen = (part[row, i, : last + 1] for part in memory)
            torch.testing.assert_close(head(output[row], i), attention(head(query[row], i), *seen))


def test_best_are_the_highest_in_descending_order() -> None:
    scores = torch.randn(ROWS, 9)
    values, indices = best(scores, torch.tensor([4]), 3)
    torch.testing.assert_close(values, scores.sort(descending=True).values[:, :4])
    torch.testing.assert_close(scores.gather(1, indices), values)


class Best(nn.Module):
    """The operator as a graph of its own."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, scores: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        return best(scores, count, self.block)


@pytest.mark.parametrize("block", [0, 4])
@pytest.mark.filterwarnings("ignore")
def test_the_exported_best_are_the_same_searched_in_blocks_or_not(block: int) -> None:
    program = torch.onnx.export(
        Best(block),
        (torch.zeros(2, 20), torch.tensor([3])),
        input_names=["scores", "count"],
        dynamic_shapes=({0: "rows"}, {}),
        opset_version=21,
        custom_translation_table=TRANSLATIONS,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    kinds = {node.op_type for node in program.model_proto.graph.node}
    assert ("ReduceMax" in kinds) == (block > 0)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    scores = torch.randn(ROWS, 20)
    for count in (1, 2, 5, 7, 20):  # fewer than there are blocks, as many, and more
        found = session.run(None, {"scores": scores.numpy(), "count": np.array([count])})
        for one, other in zip(found, best(scores, torch.tensor([count]), block), strict=True):
            np.testing.assert_array_equal(one, other.numpy())
