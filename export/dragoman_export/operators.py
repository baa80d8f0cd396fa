"""Operators of ONNX Runtime that torch lacks, as torch operators that also run in torch.

The three attentions are `com.microsoft::GroupQueryAttention`, which knows each row's own length, never looks
at padding and adds to a cache in place where input and output are bound to one buffer. Each operator has a
real implementation here; `TRANSLATIONS` names the ONNX node that the exporter writes for it.

Sizes: `width` is heads x head_dim; `last` is the last valid position of each row, int32 `[rows]`; `bound` is
an upper bound of `last + 1` over the rows, an int32 scalar that stays on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnx import defs
from onnxscript import FLOAT, INT32, INT64, opset21, values
from torch import Tensor

__all__ = ["TRANSLATIONS", "best", "cached_attention", "cross_attention", "encoder_attention"]


@torch.library.custom_op("dragoman::encoder_attention", mutates_args=())
def encoder_attention(packed: Tensor, last: Tensor, bound: Tensor, num_heads: int) -> Tensor:
    """Every source position looks at every valid position of its row.

    Args:
        packed: Queries, keys and values `[rows, length, 3 * width]`.
        last: See the module.
        bound: `length`.
        num_heads: Attention heads.

    Returns:
        `[rows, length, width]`; undefined beyond a row's last position.
    """
    query, key, value = (_split_heads(part, num_heads) for part in packed.chunk(3, dim=-1))
    return _attend(query, key, value, last)


@torch.library.custom_op("dragoman::cached_attention", mutates_args=())
def cached_attention(
    packed: Tensor, past_key: Tensor, past_value: Tensor, last: Tensor, bound: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One new position per row joins the cache and looks at all valid positions of its row.

    Args:
        packed: The new query, key and value `[rows, 1, 3 * width]`.
        past_key: `[rows, heads, capacity, head_dim]`, valid before position `last`.
        past_value: Like `past_key`.
        last: Where the new position goes.
        bound: See the module; at most `capacity`.
        num_heads: Attention heads.

    Returns:
        The output `[rows, 1, width]`, and the key and value caches with the new position.
    """
    query, key, value = (_split_heads(part, num_heads) for part in packed.chunk(3, dim=-1))
    rows = torch.arange(packed.shape[0])
    present_key, present_value = past_key.clone(), past_value.clone()
    present_key[rows, :, last] = key[:, :, 0]
    present_value[rows, :, last] = value[:, :, 0]
    return _attend(query, present_key, present_value, last), present_key, present_value


@torch.library.custom_op("dragoman::cross_attention", mutates_args=())
def cross_attention(
    query: Tensor, nothing: Tensor, key: Tensor, value: Tensor, last: Tensor, bound: Tensor, num_heads: int
) -> Tensor:
    """One position per row looks at what the encoder left for the row.

    Args:
        query: `[rows, 1, width]`.
        nothing: The new keys and values, of which there are none: `[rows, 0, width]`.
        key: `[rows, heads, capacity, head_dim]`.
        value: Like `key`.
        last: See the module.
        bound: See the module; at most `capacity`.
        num_heads: Attention heads.

    Returns:
        `[rows, 1, width]`.
    """
    return _attend(_split_heads(query, num_heads), key, value, last)


@torch.library.custom_op("dragoman::best", mutates_args=())
def best(scores: Tensor, count: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The highest scores of each row and where they stand, descending.

    `torch.topk` takes a number, which an export would freeze; here the count remains an input.

    Args:
        scores: `[rows, entries]`.
        count: `[1]` int64, at most `entries`.
        block: Entries whose maximum the exported graph takes first, which divide `entries`: the `count` best
            stand in the `count` blocks with the highest maxima, and a maximum is several times cheaper than
            a search for the best. 0 to search all entries.

    Returns:
        Scores and indices, each `[rows, count]`.
    """
    found = scores.topk(int(count), dim=-1)
    return found.values, found.indices


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    rows, length, width = x.shape
    return x.view(rows, length, num_heads, width // num_heads).transpose(
        1, 2
    )  # [rows, heads, length, head_dim]


def _attend(query: Tensor, key: Tensor, value: Tensor, last: Tensor) -> Tensor:
    """Softmax attention; keys and values beyond `last` may hold anything, even NaN."""
    hidden = (torch.arange(key.shape[2]) > last[:, None])[:, None, :, None]  # [rows, 1, keys, 1]
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(hidden.transpose(-1, -2), -math.inf).softmax(dim=-1)
    attended = weights @ value.masked_fill(hidden, 0.0)  # [rows, heads, queries, head_dim]
    return attended.transpose(1, 2).flatten(2)  # [rows, queries, width]


# The exporter traces shapes alone, through these.


@encoder_attention.register_fake
def _(packed: Tensor, last: Tensor, bound: Tensor, num_heads: int) -> Tensor:
    return packed.new_empty(*packed.shape[:-1], packed.shape[-1] // 3)


@cached_attention.register_fake
def _(
    packed: Tensor, past_key: Tensor, past_value: Tensor, last: Tensor, bound: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    output = packed.new_empty(*packed.shape[:-1], packed.shape[-1] // 3)
    return output, torch.empty_like(past_key), torch.empty_like(past_value)


@cross_attention.register_fake
def _(
    query: Tensor, nothing: Tensor, key: Tensor, value: Tensor, last: Tensor, bound: Tensor, num_heads: int
) -> Tensor:
    return torch.empty_like(query)


@best.register_fake
def _(scores: Tensor, count: Tensor, block: int) -> tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return scores.new_empty(scores.shape[0], size), scores.new_empty(scores.shape[0], size, dtype=torch.int64)


def _group_query_attention(outputs: tuple[str, ...]) -> values.Op:
    """The operator as ONNX Runtime 1.31 declares it, as far as it is used here.

    Where the caches are not asked for as outputs, the runtime does not copy them.
    """
    domain, name = values.Opset("com.microsoft", 1), "GroupQueryAttention"
    parameter, option = defs.OpSchema.FormalParameter, defs.OpSchema.FormalParameterOption
    optional = ("key", "value", "past_key", "past_value")
    schema = defs.OpSchema(
        name,
        domain.domain,
        domain.version,
        inputs=[
            parameter("query", "T"),
            *(parameter(key, "T", param_option=option.Optional) for key in optional),
            parameter("seqlens_k", "M"),
            parameter("total_sequence_length", "M"),
        ],
        outputs=[parameter(output, "T") for output in outputs],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], ""), ("M", ["tensor(int32)"], "")],
        attributes=[
            defs.OpSchema.Attribute(attribute, defs.OpSchema.AttrType.INT, required=False)
            for attribute in ("num_heads", "kv_num_heads", "causal")
        ],
    )
    return values.Op(domain, name, schema)


_attention = _group_query_attention(("output",))
_attention_and_caches = _group_query_attention(("output", "present_key", "present_value"))


def _encoder_node(packed: FLOAT, last: INT32, bound: INT32, num_heads: int) -> Any:
    heads = {"num_heads": num_heads, "kv_num_heads": num_heads}
    return _attention(packed, None, None, None, None, last, bound, **heads, causal=0)


def _cached_node(
    packed: FLOAT, past_key: FLOAT, past_value: FLOAT, last: INT32, bound: INT32, num_heads: int
) -> Any:
    heads = {"num_heads": num_heads, "kv_num_heads": num_heads}
    return _attention_and_caches(packed, None, None, past_key, past_value, last, bound, **heads)


def _cross_node(
    query: FLOAT, nothing: FLOAT, key: FLOAT, value: FLOAT, last: INT32, bound: INT32, num_heads: int
) -> Any:
    heads = {"num_heads": num_heads, "kv_num_heads": num_heads}
    return _attention(query, nothing, nothing, key, value, last, bound, **heads, causal=0)


def _best_node(scores: FLOAT, count: INT64, block: int) -> Any:
    op: Any = opset21  # its types know no integers
    if not block:
        return op.TopK(scores, count, axis=-1)
    last = op.Constant(value_ints=[-1])
    size = op.Constant(value_ints=[block])
    blocks = op.Reshape(scores, op.Constant(value_ints=[0, -1, block]))  # [rows, blocks, block]
    maxima = op.ReduceMax(blocks, last, keepdims=0)  # [rows, blocks]
    _, chosen = op.TopK(maxima, op.Min(count, op.Shape(maxima, start=1)), axis=-1)  # [rows, chosen]
    entries = op.GatherND(blocks, op.Unsqueeze(chosen, last), batch_dims=1)  # [rows, chosen, block]
    values, places = op.TopK(op.Reshape(entries, op.Constant(value_ints=[0, -1])), count, axis=-1)
    before = op.Mul(op.GatherElements(chosen, op.Div(places, size), axis=1), size)
    return values, op.Add(before, op.Mod(places, size))


TRANSLATIONS: dict[Callable[..., object], Callable[..., object]] = {
    torch.ops.dragoman.encoder_attention.default: _encoder_node,
    torch.ops.dragoman.cached_attention.default: _cached_node,
    torch.ops.dragoman.cross_attention.default: _cross_node,
    torch.ops.dragoman.best.default: _best_node,
}
"""What to write for each operator, as `torch.onnx.export` takes it."""
