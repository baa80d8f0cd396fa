"""The model card of a bundle: what a person should know before using it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dragoman_export.report import report_rows
from dragoman_server.manifest import Manifest

__all__ = ["model_card"]

_FP16 = (
    "",
    "fp16 is meant for CUDA. It was checked on the CPU provider, which computes in float32 and rounds to",
    "float16 between its operators; on a GPU, sums in float16 may differ a little more.",
)


def model_card(manifest: Manifest) -> str:
    """The text of `MODEL_CARD.md`, in Markdown."""
    source, target = ", ".join(manifest.source_languages), ", ".join(manifest.target_languages)
    provenance, licence = manifest.provenance or "Not stated.", manifest.licence or "not stated"
    sections = (
        f"# {manifest.name} {manifest.version}",
        f"Translates {source} to {target}: an encoder-decoder Transformer, exported to ONNX by Dragoman.",
        _section("Training data", [provenance, "", f"Licence: {licence}"]),
        _section("Quality", _scores(manifest) or ["Not measured."]),
        _section("Proof of the export", _gates(manifest)),
        _section("Network", _table(dataclasses.asdict(manifest.dimensions))),
        _section("Limits", _table(dataclasses.asdict(manifest.limits))),
        _section("Made with", _table(manifest.created_by)),
    )
    return "\n\n".join(sections) + "\n"


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", "", *lines])


def _table(values: Mapping[str, int | str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]


def _scores(manifest: Manifest) -> list[str]:
    return [
        f"* {score.metric} {score.value:.2f} on {score.test_set} (`{score.signature}`)"
        for score in manifest.scores
    ]


def _gates(manifest: Manifest) -> list[str]:
    heading, *rows = (f"| {' | '.join(row)} |" for row in report_rows(manifest))
    return [
        heading,
        "|---" * (1 + len(manifest.gates)) + "|",
        *rows,
        *(_FP16 if "fp16" in manifest.gates else ()),
    ]
