"""A fault in any part of an export is caught, and the part is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from sentencepiece import sentencepiece_model_pb2

from dragoman_export import int8, precisions, writer
from dragoman_export.cli import export
from dragoman_export.options import ExportError, ExportOptions
from dragoman_export.parts import graph_parts, in_words
from dragoman_export.writer import export_checkpoint
from dragoman_model.checkpoint import Checkpoint, load_checkpoint
from dragoman_server.bundle import Bundle

Change = Callable[[onnx.GraphProto], object]
Plant = Callable[[Change, Change], None]


def leave(graph: onnx.GraphProto) -> None:
    """No fault."""


@pytest.fixture
def plant(plain: tuple[Path, Bundle], monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Changes the encoder and the decode step between their making and their checking."""
    bundle, graphs = plain[1], plain[1].manifest.precisions["fp32"]

    def changed(file: str, change: Change) -> bytes:
        model = onnx.load_model_from_string(bundle.read(file))
        change(model.graph)
        return model.SerializeToString()

    def plant(encoder: Change = leave, decode_step: Change = leave) -> None:
        monkeypatch.setattr(precisions, "encoder_onnx", lambda _: changed(graphs.encoder, encoder))
        monkeypatch.setattr(
            precisions, "decode_step_onnx", lambda *_: changed(graphs.decode_step, decode_step)
        )

    return plant


def parameter(name: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Change:
    """Changes one parameter, by the name of the graph's value or, in the encoder, of the bias beside it."""

    def apply(graph: onnx.GraphProto) -> None:
        [tensor] = [one for one in graph.initializer if one.name == name]
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))

    return apply


def encoder_matrix(module: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Change:
    """Changes the matrix of one of the encoder's linear layers, whose name the exporter drops."""

    def apply(graph: onnx.GraphProto) -> None:
        [part] = [part for part in graph_parts(graph, "encoder") if part.module == module]
        parameter(part.weight, change)(graph)

    return apply


def permuted(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return table[[*range(4), *np.random.default_rng(0).permutation(np.arange(4, len(table)))]]


def with_row(row: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def change(table: NDArray[np.float32]) -> NDArray[np.float32]:
        table = table.copy()
        table[row] += 1e-3
        return table

    return change


def one_position_on(graph: onnx.GraphProto) -> None:
    """Token `length` gets the position after its own."""
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.int32), "one"))
    [node] = [node for node in graph.node if node.input[0].endswith(".positions")]
    node.input[1] = "next"
    graph.node.insert(0, helper.make_node("Add", ["length", "one"], ["next"]))


def causal(graph: onnx.GraphProto) -> None:
    """The encoder's second layer does not look ahead."""
    node = [node for node in graph.node if node.op_type == "GroupQueryAttention"][1]
    [attribute] = [attribute for attribute in node.attribute if attribute.name == "causal"]
    attribute.i = 1


def without_rectifier(graph: onnx.GraphProto) -> None:
    """The first feed-forward is linear."""
    node = next(node for node in graph.node if node.op_type == "Relu")
    node.op_type = "Identity"


FAULTS = {
    "transposed": (
        leave,
        parameter("decoder.layers.0.self_attention.output.weight", np.transpose),
        "decoder layer 0 self-attention output: the weight is the checkpoint's transposed",
    ),
    "transposed in the encoder": (
        encoder_matrix("encoder.layers.1.self_attention.output", np.transpose),
        leave,
        "encoder layer 1 self-attention output: the weight is the checkpoint's transposed",
    ),
    "scaled norm": (
        parameter("encoder.layers.1.feed_forward_residual.norm.weight", lambda gain: gain * np.float32(1.1)),
        leave,
        "encoder layer 1 feed-forward norm: the weight is 1.1 times the checkpoint's",
    ),
    "cross-attention": (
        parameter("cross_attentions.1.key_value.bias", lambda bias: bias + np.float32(0.5)),
        leave,
        "decoder layer 1 cross-attention key and value layer: the bias differs in 64 of 64 rows",
    ),
    "position table": (
        parameter("encoder.embedding.positions", lambda table: np.roll(table, -2, axis=0)),
        leave,
        r"source positions: the position table is off by \+2: position 0 has what the checkpoint has for "
        "position 2",
    ),
    "swapped vocabulary": (
        parameter("encoder.embedding.tokens.weight", permuted),
        leave,
        "source embedding: the weight has the checkpoint's rows in another order: token .* the vocabulary",
    ),
    "one token": (
        leave,
        parameter("decoder.output.weight", with_row(17)),
        "target embedding: the weight differs in 1 of .* rows, first in that of token 17",
    ),
    "attention": (
        causal,
        leave,
        "what enters encoder layer 1 self-attention output, whose weights are right",
    ),
    "non-linearity": (leave, without_rectifier, "what enters decoder layer 0 feed-forward outer layer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_graph_is_caught_and_named(
    plain: tuple[Path, Bundle], plant: Plant, tmp_path: Path, fault: str
) -> None:
    encoder, decode_step, named = FAULTS[fault]
    plant(encoder, decode_step)
    expected = f"^the fp32 export does not say what the checkpoint says. At fault: {named}.*differ by up to"
    with pytest.raises(ExportError, match=expected) as caught:
        export_checkpoint(plain[0], tmp_path / "tiny" / "1")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("bundle.json"))


def test_a_graph_that_does_not_run_is_named_as_well(
    plain: tuple[Path, Bundle], plant: Plant, tmp_path: Path
) -> None:
    plant(encoder_matrix("encoder.layers.0.feed_forward.inner", np.transpose), leave)
    with pytest.raises(ExportError, match=r"does not run\. At fault: encoder layer 0 feed-forward inner"):
        export_checkpoint(plain[0], tmp_path / "tiny" / "1")


def test_a_wrong_position_is_named_though_it_leads_beyond_the_table(
    plain: tuple[Path, Bundle], plant: Plant, tmp_path: Path
) -> None:
    plant(leave, one_position_on)
    named = (
        "At fault: target positions, whose weights are right: position 0 takes row 1 of the position table"
    )
    with pytest.raises(ExportError, match=named):
        export_checkpoint(plain[0], tmp_path / "tiny" / "1")


def test_a_wrong_row_is_found_that_no_sentence_reaches(
    plain: tuple[Path, Bundle], plant: Plant, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("the dog\n")
    token = load_checkpoint(plain[0]).source_tokenizer.encode("woman")[0]
    plant(parameter("encoder.embedding.tokens.weight", with_row(token)), leave)
    with pytest.raises(ExportError, match=f"first in that of token {token}.* 100.0% of the greedy"):
        export_checkpoint(plain[0], tmp_path / "tiny" / "1", ExportOptions(calibration=text))


def test_every_weight_is_looked_at(exported: tuple[Path, Bundle]) -> None:
    checkpoint, bundle = exported
    model, graphs = load_checkpoint(checkpoint).model, bundle.manifest.precisions["fp32"]
    seen = {
        id(getattr(model.get_submodule(part.module), name, None))
        for side, file in (("encoder", graphs.encoder), ("decoder", graphs.decode_step))
        for part in graph_parts(onnx.load_model_from_string(bundle.read(file)).graph, side)
        for name in part.parameters
    }
    missing = [name for name, weight in model.named_parameters() if id(weight) not in seen]
    assert not missing


def other_pieces(tokenizer: bytes) -> bytes:
    """The same pieces, of which two have changed places."""
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer)
    one, other = model.pieces[10].piece, model.pieces[11].piece
    model.pieces[10].piece, model.pieces[11].piece = other, one
    return bytes(model.SerializeToString())


def swapped_sides(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {
        "source.spm": checkpoint.target_tokenizer.model,
        "target.spm": checkpoint.source_tokenizer.model,
    }


def swapped_pieces(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {
        "source.spm": checkpoint.source_tokenizer.model,
        "target.spm": other_pieces(checkpoint.target_tokenizer.model),
    }


@pytest.mark.parametrize(
    ("swapped", "named"),
    [
        (swapped_sides, "source tokenizer of the bundle, source.spm, .* it is that of the other side"),
        (
            swapped_pieces,
            "target tokenizer of the bundle, target.spm, differs .* token 10 is '.*' instead of",
        ),
    ],
)
def test_another_vocabulary_than_the_networks_is_caught_and_named(
    export_variant: Callable[[str], tuple[Path, Bundle]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    swapped: Callable[[Checkpoint], dict[str, bytes]],
    named: str,
) -> None:
    checkpoint, bundle = export_variant("post-norm, learned, separate")
    graphs = bundle.manifest.precisions["fp32"]
    monkeypatch.setattr(precisions, "encoder_onnx", lambda _: bundle.read(graphs.encoder))
    monkeypatch.setattr(precisions, "decode_step_onnx", lambda *_: bundle.read(graphs.decode_step))
    monkeypatch.setattr(writer, "_tokenizers", swapped)
    with pytest.raises(ExportError, match=named):
        export_checkpoint(checkpoint, tmp_path / "tiny" / "1")
    assert not list(tmp_path.rglob("bundle.json"))


def test_a_quantisation_that_is_too_coarse_is_left_out_and_named(
    plain: tuple[Path, Bundle],
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plant(leave, leave)
    layer = load_checkpoint(plain[0]).model.decoder.layers[1].feed_forward.inner
    chosen = layer.weight.detach().numpy().T
    quantise_weight = int8.quantise_weight

    def coarse(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        if not np.array_equal(weight, chosen):
            return quantise_weight(weight)
        scales = np.abs(weight).max(axis=0)
        return np.rint(weight / scales).astype(np.int8), scales

    monkeypatch.setattr(int8, "quantise_weight", coarse)
    options = ExportOptions(precision=("fp32", "int8"))
    assert export(plain[0], out=tmp_path / "tiny" / "1", options=options) == 1
    assert list(Bundle.open(tmp_path / "tiny" / "1").manifest.precisions) == ["fp32"]
    named = (
        "At fault: decoder layer 1 feed-forward inner layer (its weight in 3 levels: the scale is too coarse)"
    )
    assert "int8 is left out: it does not say what the checkpoint says. " + named in caplog.text


def test_modules_have_names_for_people() -> None:
    assert in_words("encoder.layers.2.self_attention.output") == "encoder layer 2 self-attention output"
    assert in_words("decoder.layers.0.feed_forward_residual.norm") == "decoder layer 0 feed-forward norm"
    assert (
        in_words("decoder.layers.10.cross_attention.query") == "decoder layer 10 cross-attention query layer"
    )
    assert (
        in_words("decoder.layers.1.self_attention.query_key_value")
        == "decoder layer 1 self-attention query, key and value layer"
    )
    assert in_words("encoder.final_norm") == "encoder final norm"
