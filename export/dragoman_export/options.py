"""What an export is to make; each field a flag of `dragoman export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

__all__ = ["ExportError", "ExportOptions", "Int8Scales", "Precision", "SourceFormat"]

Precision = Literal["fp32", "fp16", "int8"]
SourceFormat = Literal["dragoman", "marian", "m2m100"]
Int8Scales = Literal["auto", "row-wise", "static"]


class ExportError(ValueError):
    """A checkpoint that cannot be exported, or an export that does not say what the checkpoint says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What the bundle is to hold and to say of itself.

    Raises:
        ValueError: a precision is unknown, or there is none; static scales or scores are asked for without
            text; languages are named for a checkpoint that says its own.
    """

    precision: Annotated[tuple[Precision, ...], Parameter(consume_multiple=True, negative="")] = ("fp32",)
    """Precisions to export: fp32; int8, smaller and faster on CPUs; fp16, half the size, meant for GPUs."""
    source_format: Annotated[SourceFormat, Parameter(name="--from")] = "dragoman"
    """What the checkpoint is: dragoman, as training wrote it; marian, a MarianMT folder of Hugging Face, such
    as the OPUS-MT models; m2m100, an M2M100 or NLLB one."""
    source_language: str | None = None
    """Of an imported model, where its folder does not say; of a model of many languages, the one it is
    checked with."""
    target_language: str | None = None
    """The same."""
    name: str | None = None
    """The model's name; by default that of the directory above the version."""
    calibration: Path | None = None
    """Text, one sentence a line, on which the export is checked, and which shows how large int8 has to count;
    by default random tokens."""
    reference: Path | None = None
    """Translations of the calibration text, line by line: all of it is translated in every precision, and
    BLEU and chrF show what rounding costs."""
    int8_scales: Int8Scales = "auto"
    """How activations become integers: by a scale for each row, or by static ones, taken
    from the calibration text, which are faster, most so for small models, and may change more of what is
    said. auto times both here, and takes static ones that cost next to nothing."""
    provenance: str | None = None
    """Where the training data comes from; by default what the checkpoint says."""
    licence: str | None = None
    """Of the training data; by default what the checkpoint says."""
    scores: Path | None = None
    """JSON list of quality measurements, each with metric, value, test_set and signature."""
    overwrite: bool = False
    """Replace an existing version."""

    def __post_init__(self) -> None:
        for precision in self.precision:
            if precision not in get_args(Precision):
                known = ", ".join(get_args(Precision))
                raise ValueError(f"precision must be one of {known}, not {precision}")
        if self.source_format == "dragoman" and (self.source_language or self.target_language):
            raise ValueError("a checkpoint says its languages itself: name them for --from marian or m2m100")
        if not self.precision:
            raise ValueError("precision must name at least one")
        if self.int8_scales == "static" and self.calibration is None:
            raise ValueError("static int8 scales are taken from text: name some with --calibration")
        if self.reference is not None and self.calibration is None:
            raise ValueError("a reference translates a text: name it with --calibration")
