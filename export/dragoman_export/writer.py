"""Checkpoint to bundle, all or nothing: a directory appears only once its content has proved itself."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from dragoman_export.calibration import Sources, calibration_sources
from dragoman_export.description import describe, read_scores, records, tokenizer_files
from dragoman_export.diagnosis import MAX_ROUNDING, Forced, computing_fault, rounding_fault
from dragoman_export.gate import BEAM, check
from dragoman_export.importers import read_model
from dragoman_export.int8_choice import prefers_static
from dragoman_export.model_card import model_card
from dragoman_export.options import ExportError, ExportOptions, Precision
from dragoman_export.parts import weight_fault
from dragoman_export.pipeline import require_tokenizers
from dragoman_export.precisions import FloatGraphs, Scales, graphs_of, scales_to_try, translations
from dragoman_export.quality import ReferencedText, quality
from dragoman_export.report import finding_of
from dragoman_export.torch_reference import TorchReference
from dragoman_model.checkpoint import Checkpoint
from dragoman_model.transformer import Transformer
from dragoman_server.bundle import Bundle
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import LoadedModel, load_ungated
from dragoman_server.manifest import MANIFEST_FILE, VERSION_PATTERN, Gate, Graphs, require_file_name

__all__ = ["MODEL_CARD_FILE", "export_checkpoint"]

MODEL_CARD_FILE = "MODEL_CARD.md"

_DEFAULTS = ExportOptions()
_SCORING_ROWS = 64
_MAX_GRAPH_BYTES = 2**31  # of a protocol buffer
_LOGGER = logging.getLogger(__name__)


def export_checkpoint(checkpoint: Path, out: Path, options: ExportOptions = _DEFAULTS) -> Bundle:
    """Export the checkpoint in the folder `checkpoint` to the bundle `out`, a path NAME/VERSION.

    Args:
        checkpoint: As training wrote it, or in the format that the options name.
        out: Created whole, or not at all.
        options: What to export.

    A precision whose gate fails, or a part of which is at fault, is left out, where another remains; without
    fp32 there is nothing to trust.

    Raises:
        ExportError: the gate fails, the model's shape cannot be exported, or `out` exists or is no
            NAME/VERSION.
        ValueError: the checkpoint, the calibration text or the name cannot be used.
        OSError: a file cannot be read or written.
    """
    name = options.name or out.absolute().parent.name
    _require_target(name, out, options.overwrite)
    loaded = read_model(checkpoint, options)
    _require_exportable(loaded.model)
    sources = calibration_sources(loaded, options.calibration)
    scores = read_scores(options.scores)
    text = _referenced(options)
    files = _tokenizers(loaded)
    precisions: dict[str, Graphs] = {}
    gates: dict[str, Gate] = {}
    reference = TorchReference(loaded)
    floats = FloatGraphs.of(reference)
    wrong_weight = weight_fault(loaded.model, *floats.both)
    sample = _sample(reference, sources)
    with _staging(out) as folder:

        def prove(precision: Precision, scales: Scales) -> _Candidate:
            """Make a precision's graphs, write them as a bundle with those that are proved, check them."""
            ours = floats.smoothed(sources.scales) if scales == "static" else floats
            graphs, contents = graphs_of(ours, precision, sources, scales)
            together = {**files, **contents}
            manifest = describe(
                loaded, name, out.name, together, {**precisions, precision: graphs}, scores, options
            )
            _write(folder, {**together, MANIFEST_FILE: manifest.to_json()})
            bundle = Bundle.open(folder)
            require_tokenizers(loaded, bundle)
            with _naming(
                precision, lambda: wrong_weight or computing_fault(ours.checkpoint.model, ours.both, sample)
            ):
                graphs_loaded = load_ungated(bundle, precision, threads=1)
                gate = _gate(reference, graphs_loaded, precision, sources)
            proved = _Candidate(graphs, contents, graphs_loaded, gate)
            return dataclasses.replace(proved, fault=wrong_weight or _fault(ours, proved, precision, sample))

        *_, last = wanted = [known for known in get_args(Precision) if known in options.precision]
        for precision in wanted:
            proved = _best([prove(precision, scales) for scales in scales_to_try(precision, options)])
            if proved.gate.passed and not proved.fault:
                files |= proved.files
                precisions[precision] = proved.graphs
                gates[precision] = _scored(loaded, proved, precision, text)
                continue
            finding = finding_of(proved.gate, proved.fault)
            if precision == "fp32" or (precision == last and not precisions):
                raise ExportError(f"the {precision} export {finding}; nothing was written")
            _LOGGER.error("%s is left out: it %s", precision, finding)
            for left_out in proved.files:
                (folder / left_out).unlink()
        manifest = describe(loaded, name, out.name, files, precisions, scores, options)
        manifest = dataclasses.replace(manifest, gates=gates)
        card = {MODEL_CARD_FILE: model_card(manifest).encode()}
        manifest = dataclasses.replace(manifest, files={**manifest.files, **records(card)})
        _write(folder, {**files, **card, MANIFEST_FILE: manifest.to_json()})
        _move(folder, out)
    return Bundle.open(out)


def _require_target(name: str, out: Path, overwrite: bool) -> None:
    if not VERSION_PATTERN.fullmatch(out.name):
        raise ExportError(f"out must end in NAME/VERSION, such as models/en-de/1, not {out}")
    require_file_name(name)
    if out.exists() and not overwrite:
        raise ExportError(f"{out} exists; choose the next version or say --overwrite")


def _require_exportable(model: Transformer) -> None:
    config = model.config
    for head_dim in (config.head_dim, config.d_model // config.heads_of_encoder):
        if head_dim % 8:
            raise ExportError(f"ONNX Runtime needs a head_dim that 8 divides, not {head_dim}")
    for side, module in (("encoder", model.encoder), ("decoder", model.decoder)):
        size = sum(parameter.nbytes for parameter in module.parameters())
        if size >= _MAX_GRAPH_BYTES:
            raise ExportError(
                f"the {side} has {size / 2**30:.1f} GiB of weights; a graph may have less than 2"
            )


def _tokenizers(checkpoint: Checkpoint) -> dict[str, bytes]:
    names = tokenizer_files(checkpoint)
    return {
        names.source: checkpoint.source_tokenizer.model,
        names.target: checkpoint.target_tokenizer.model,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class _Candidate:
    """Graphs of one precision that a bundle may hold."""

    graphs: Graphs
    files: dict[str, bytes]
    loaded: LoadedModel
    gate: Gate
    fault: str = ""
    """The part of them that is at fault, in words; empty for none."""

    @property
    def both(self) -> tuple[bytes, bytes]:
        """Encoder and decode step."""
        return self.files[self.graphs.encoder], self.files[self.graphs.decode_step]


def _best(candidates: Sequence[_Candidate]) -> _Candidate:
    """The only one, or of row-wise and static scales the better choice."""
    first, *others = candidates
    for other in others:
        if not other.fault and prefers_static(first.loaded, other.loaded, first.gate, other.gate):
            return other
    return first


def _gate(reference: TorchReference, loaded: LoadedModel, precision: Precision, sources: Sources) -> Gate:
    _LOGGER.info("checking %s against torch on %d sentences", precision, len(sources.gate))

    def runner_of(rows: int) -> OnnxRunner:
        return OnnxRunner(loaded, rows)

    return check(reference, runner_of, sources.gate, sources.sentence, precision)


def _referenced(options: ExportOptions) -> ReferencedText | None:
    if options.calibration is None or options.reference is None:
        return None
    return ReferencedText.read(options.calibration, options.reference)


def _scored(
    checkpoint: Checkpoint, proved: _Candidate, precision: Precision, text: ReferencedText | None
) -> Gate:
    """The gate's findings, with the quality of the translations where there are references."""
    if text is None:
        return proved.gate
    _LOGGER.info("translating %d lines in %s", len(text.sources), precision)
    runner = OnnxRunner(proved.loaded, _SCORING_ROWS)
    return dataclasses.replace(proved.gate, scores=quality(checkpoint, runner, text, BEAM))


def _sample(reference: TorchReference, sources: Sources) -> Forced:
    """A sentence to look at the parts of the graphs with, and torch's translation."""
    [(source, target)] = translations(reference, [max(sources.gate, key=len)])
    return Forced(source, target, reference.checkpoint.special.bos)


@contextlib.contextmanager
def _naming(precision: Precision, fault: Callable[[], str]) -> Iterator[None]:
    """Where graphs do not even run, say which part is at fault, as far as that can be found."""
    try:
        yield
    except Exception as error:  # the runtime's exceptions have no base of their own
        found = ""
        with contextlib.suppress(Exception):  # so does what is run to find it
            found = fault()
        if not found:
            raise
        raise ExportError(
            f"the {precision} export does not run. At fault: {found}; nothing was written"
        ) from error


def _fault(floats: FloatGraphs, proved: _Candidate, precision: Precision, sample: Forced) -> str:
    """The part at fault, in words, whose weights are right; empty where the gate passes and no part is."""
    arguments = (floats.checkpoint.model, floats.both, proved.both, sample)
    if proved.gate.passed:
        return "" if precision == "fp32" else rounding_fault(*arguments, MAX_ROUNDING[precision])
    fault = computing_fault(floats.checkpoint.model, floats.both, sample)
    if not fault and precision != "fp32":
        fault = rounding_fault(*arguments)
    return fault or "no single part, each agrees with torch's"


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
