"""Checkpoint to bundle, all or nothing: a directory appears only once its content has proved itself."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from dragoman_export.calibration import calibration_sources
from dragoman_export.description import (
    SPECIAL_IDS,
    describe,
    graph_files,
    read_scores,
    records,
    tokenizer_files,
)
from dragoman_export.gate import check
from dragoman_export.int8 import quantise_rows
from dragoman_export.model_card import model_card
from dragoman_export.options import ExportError, ExportOptions, Precision
from dragoman_export.to_onnx import decode_step_onnx, encoder_onnx
from dragoman_model.checkpoint import Checkpoint, load_checkpoint
from dragoman_model.transformer import Transformer
from dragoman_server.bundle import Bundle
from dragoman_server.engine.onnx_runner import OnnxRunner, load_ungated
from dragoman_server.manifest import MANIFEST_FILE, VERSION_PATTERN, Gate, require_file_name

__all__ = ["MODEL_CARD_FILE", "export_checkpoint"]

MODEL_CARD_FILE = "MODEL_CARD.md"

_DEFAULTS = ExportOptions()
_LOGGER = logging.getLogger(__name__)


def export_checkpoint(checkpoint: Path, out: Path, options: ExportOptions = _DEFAULTS) -> Bundle:
    """Export the checkpoint in the folder `checkpoint` to the bundle `out`, a path NAME/VERSION.

    Args:
        checkpoint: As training wrote it.
        out: Created whole, or not at all.
        options: What to export.

    Raises:
        ExportError: the gate fails, the model's shape cannot be exported, or `out` exists or is no
            NAME/VERSION.
        ValueError: the checkpoint, the calibration text or the name cannot be used.
        OSError: a file cannot be read or written.
    """
    name = options.name or out.absolute().parent.name
    _require_target(name, out, options.overwrite)
    loaded = load_checkpoint(checkpoint)
    if loaded.config.head_dim % 8:
        raise ExportError(f"ONNX Runtime needs a head_dim that 8 divides, not {loaded.config.head_dim}")
    sources = calibration_sources(loaded, options.calibration)
    scores = read_scores(options.scores)
    files = _model_files(loaded, options.precision)
    manifest = describe(loaded, name, out.name, files, scores, options)
    with _staging(out) as folder:
        _write(folder, {**files, MANIFEST_FILE: manifest.to_json()})
        gates = _gates(loaded.model, Bundle.open(folder), sources)
        manifest = dataclasses.replace(manifest, gates=gates)
        card = {MODEL_CARD_FILE: model_card(manifest).encode()}
        manifest = dataclasses.replace(manifest, files={**manifest.files, **records(card)})
        _write(folder, {**card, MANIFEST_FILE: manifest.to_json()})
        _move(folder, out)
    return Bundle.open(out)


def _require_target(name: str, out: Path, overwrite: bool) -> None:
    if not VERSION_PATTERN.fullmatch(out.name):
        raise ExportError(f"out must end in NAME/VERSION, such as models/en-de/1, not {out}")
    require_file_name(name)
    if out.exists() and not overwrite:
        raise ExportError(f"{out} exists; choose the next version or say --overwrite")


def _model_files(checkpoint: Checkpoint, precisions: Sequence[Precision]) -> dict[str, bytes]:
    tokenizers = tokenizer_files(checkpoint)
    files = {
        tokenizers.source: checkpoint.source_tokenizer.model,
        tokenizers.target: checkpoint.target_tokenizer.model,
    }
    _LOGGER.info("exporting the encoder")
    encoder = encoder_onnx(checkpoint.model)
    _LOGGER.info("exporting the decode step")
    decode_step = decode_step_onnx(checkpoint.model, (SPECIAL_IDS.pad, SPECIAL_IDS.bos))
    for precision in precisions:
        graphs = graph_files(precision)
        if precision == "int8":
            _LOGGER.info("rounding the weights to int8")
        convert = quantise_rows if precision == "int8" else bytes
        files[graphs.encoder], files[graphs.decode_step] = convert(encoder), convert(decode_step)
    return files


def _gates(model: Transformer, bundle: Bundle, sources: Sequence[Sequence[int]]) -> dict[str, Gate]:
    """The gates of all precisions.

    Raises:
        ExportError: one has not passed.
    """
    gates: dict[str, Gate] = {}
    for precision in get_args(Precision):
        if precision not in bundle.manifest.precisions:
            continue
        _LOGGER.info("checking %s against torch on %d sentences", precision, len(sources))
        runner = OnnxRunner(load_ungated(bundle, precision, threads=1), max_rows=len(sources))
        gate = gates[precision] = check(model, runner, sources, SPECIAL_IDS, precision)
        if not gate.passed:
            raise ExportError(f"the {precision} export {_finding(gate)}; nothing was written")
    return gates


def _finding(gate: Gate) -> str:
    return (
        "does not say what the checkpoint says: log-probabilities differ by up to "
        f"{gate.max_log_prob_difference:.2g}, torch's tokens lose {gate.mean_log_prob_loss:.2g} on average "
        f"(tolerance {gate.tolerance:g}) and {gate.greedy_agreement:.1%} of the greedy translations agree"
    )


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside `out`, removed at the end unless it has been moved away."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _move(folder: Path, out: Path) -> None:
    """Rename `folder` to `out`; what stands there goes only if that succeeds."""
    if not out.exists():
        folder.rename(out)
        return
    with _staging(out) as aside:
        old = out.rename(aside / out.name)
        try:
            folder.rename(out)
        except OSError:
            old.rename(out)
            raise
