"""Checkpoint to bundle, all or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dragoman_export import precisions, writer
from dragoman_export.cli import export
from dragoman_export.gate import BEAM
from dragoman_export.options import ExportError, ExportOptions
from dragoman_export.writer import export_checkpoint
from dragoman_model.checkpoint import load_checkpoint
from dragoman_model.evaluation import checkpoint_translator, score
from dragoman_model.transformer import Transformer
from dragoman_server.bundle import Bundle
from dragoman_server.manifest import Score
from dragoman_server.tokenizer import Tokenizer

TEXT = Path(__file__)


@pytest.fixture
def checkpoint(plain: tuple[Path, Bundle], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose graphs need not be exported again."""
    _, bundle = plain
    graphs = bundle.manifest.precisions["fp32"]
    monkeypatch.setattr(precisions, "encoder_onnx", lambda model: bundle.read(graphs.encoder))
    monkeypatch.setattr(
        precisions, "decode_step_onnx", lambda model, masked_ids: bundle.read(graphs.decode_step)
    )
    return plain[0]


def test_a_bundle_says_where_it_comes_from(plain: tuple[Path, Bundle]) -> None:
    manifest = plain[1].manifest
    assert (manifest.name, manifest.version) == ("tiny", "1")
    assert (manifest.source_languages, manifest.target_languages) == (("en",), ("de",))
    assert (manifest.provenance, manifest.licence) == ("made for this test", "CC0-1.0")
    assert manifest.created_by["torch"] == torch.__version__
    gate = manifest.gates["fp32"]
    assert gate.passed
    assert gate.greedy_agreement == 1.0
    assert 0.0 < gate.max_log_prob_difference < gate.tolerance
    card = plain[1].read("MODEL_CARD.md").decode()
    assert all(fact in card for fact in ("tiny 1", "made for this test", "CC0-1.0", "| d_model | 32 |"))
    assert "| text: capitals | torch's translation |" in card


def test_tokenizers_are_one_file_or_two(exported: tuple[Path, Bundle]) -> None:
    folder, bundle = exported
    files = bundle.manifest.tokenizers
    assert (files.source == files.target) == (folder / "tokenizer.spm").exists()
    for name in (files.source, files.target):
        assert bundle.read(name) == (folder / name).read_bytes()
        Tokenizer(bundle.read(name))


def test_options_replace_what_the_checkpoint_says(checkpoint: Path, tmp_path: Path) -> None:
    sentences, scores = tmp_path / "sentences.txt", tmp_path / "scores.json"
    sentences.write_text("the dog sees a cat\n\nan old man\n", encoding="utf-8")
    score = {"metric": "BLEU", "value": 41, "test_set": "flickr 2016", "signature": "nrefs:1"}
    scores.write_text(json.dumps([score]))
    options = ExportOptions(
        name="other", licence="MIT", provenance="elsewhere", calibration=sentences, scores=scores
    )
    manifest = export_checkpoint(checkpoint, tmp_path / "tiny" / "12", options).manifest
    assert (manifest.name, manifest.version, manifest.gates["fp32"].sentences) == ("other", "12", 2)
    assert (manifest.licence, manifest.provenance) == ("MIT", "elsewhere")
    assert manifest.scores == (Score("BLEU", 41.0, "flickr 2016", "nrefs:1"),)


def test_an_existing_version_is_replaced_only_when_told_to(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny" / "1"
    first = export_checkpoint(checkpoint, out)
    with pytest.raises(ExportError, match="--overwrite"):
        export_checkpoint(checkpoint, out, ExportOptions(licence="MIT"))
    assert Bundle.open(out) == first
    second = export_checkpoint(checkpoint, out, ExportOptions(licence="MIT", overwrite=True))
    assert Bundle.open(out) == second
    assert second.manifest.licence == "MIT"
    assert list(out.parent.iterdir()) == [out]


def test_graphs_of_other_weights_fail_the_gate_and_leave_nothing(
    checkpoint: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_checkpoint()
    weights = load_checkpoint(folder)
    with torch.no_grad():
        weights.model.decoder.embedding.tokens.weight[7, 0] += 1e-2
    weights.save(folder)
    with pytest.raises(ExportError, match="does not say what the checkpoint says"):
        export_checkpoint(folder, tmp_path / "models" / "tiny" / "1")
    assert list((tmp_path / "models" / "tiny").iterdir()) == []


def test_graphs_of_nan_fail_the_gate(
    checkpoint: Path, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    export_step = precisions.decode_step_onnx

    def spoiled(model: Transformer, masked_ids: tuple[int, ...]) -> bytes:
        bias = model.decoder.layers[0].feed_forward.outer.bias.detach().numpy()
        return export_step(model, masked_ids).replace(bias.tobytes(), (bias * float("nan")).tobytes())

    monkeypatch.setattr(precisions, "decode_step_onnx", spoiled)
    with pytest.raises(ExportError, match="differ by up to nan"):
        export_checkpoint(checkpoint, tmp_path / "tiny" / "1")


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("models/tiny", {}, "NAME/VERSION"),
        ("models/tiny/0", {}, "NAME/VERSION"),
        ("models/tiny/latest", {}, "NAME/VERSION"),
        ("models/ti ny/1", {}, "ti ny"),
        ("models/tiny/1", {"name": "../tiny"}, "no file name"),
        ("models/tiny/1", {"calibration": Path("missing.txt")}, r"missing\.txt"),
        ("models/tiny/1", {"scores": Path("missing.json")}, r"missing\.json"),
        ("models/tiny/1", {"calibration": TEXT, "reference": Path("missing.de")}, r"missing\.de"),
        ("models/tiny/1", {"calibration": TEXT, "reference": Path(__file__).parent / "conftest.py"}, "lines"),
    ],
)
def test_mistakes_are_named(
    checkpoint: Path, tmp_path: Path, out: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        export_checkpoint(checkpoint, tmp_path / out, ExportOptions(**options))
    assert not list(tmp_path.rglob("bundle.json"))


def test_a_graph_beyond_what_a_file_can_hold_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_MAX_GRAPH_BYTES", 1000)
    with pytest.raises(ExportError, match="GiB of weights; a graph may have less than 2"):
        export_checkpoint(checkpoint, tmp_path / "tiny" / "1")


def test_a_head_that_the_runtime_cannot_take_is_refused(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_checkpoint(d_model=24)
    with pytest.raises(ExportError, match="head_dim that 8 divides, not 12"):
        export_checkpoint(folder, tmp_path / "tiny" / "1")


@pytest.mark.parametrize(("text", "message"), [(b" \n\n", "no line of text"), (b"caf\xe9", "not UTF-8")])
def test_calibration_needs_text(checkpoint: Path, tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "text.txt").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        export_checkpoint(checkpoint, tmp_path / "1", ExportOptions(calibration=tmp_path / "text.txt"))


@pytest.mark.parametrize("text", ["not json", '[{"metric": "BLEU"}]', '{"bleu": 1}'])
def test_scores_of_another_form_are_refused(checkpoint: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ExportError, match=r"scores\.json"):
        export_checkpoint(checkpoint, tmp_path / "1", ExportOptions(scores=tmp_path / "scores.json"))


def test_with_references_every_precision_is_scored(checkpoint: Path, tmp_path: Path) -> None:
    source, reference = tmp_path / "valid.en", tmp_path / "valid.de"
    source.write_text("the dog sees a cat\n\nan old man. the cat\n", encoding="utf-8")
    reference.write_text("der Hund\n\nein Mann\n", encoding="utf-8")
    options = ExportOptions(calibration=source, reference=reference)
    bundle = export_checkpoint(checkpoint, tmp_path / "tiny" / "1", options)
    bleu, chrf = bundle.manifest.gates["fp32"].scores
    assert (bleu.metric, chrf.metric, bleu.test_set) == ("BLEU", "chrF", "valid.en, beam 4")
    assert 0.0 <= bleu.value < 50.0
    loaded = load_checkpoint(checkpoint)
    outputs = checkpoint_translator(loaded, BEAM)(["the dog sees a cat", "an old man.", "the cat"])
    joined = [outputs[0], "", f"{outputs[1]} {outputs[2]}"]
    assert chrf.value == round(score(joined, ["der Hund", "", "ein Mann"]).chrf, 2)
    assert "BLEU on valid.en, beam 4" in bundle.read("MODEL_CARD.md").decode()


def test_a_reference_without_its_text_is_refused() -> None:
    with pytest.raises(ValueError, match="--calibration"):
        ExportOptions(reference=Path("valid.de"))


@pytest.mark.parametrize("precision", [(), ("int4",)])
def test_unknown_precisions_are_refused(precision: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="precision"):
        ExportOptions(precision=precision)


def test_the_command_prints_what_it_made(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(checkpoint, out=tmp_path / "tiny" / "1", json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["gates"]["fp32"]["passed"]
    assert printed["manifest_sha256"] == Bundle.open(tmp_path / "tiny" / "1").manifest_sha256
    export(checkpoint, out=tmp_path / "tiny" / "2")
    shown = capsys.readouterr().out
    assert str(tmp_path / "tiny" / "2") in shown
    assert all(fact in shown for fact in ("fp32", "text: 1,000 words", "torch's translation", "MiB"))
