"""The command `dragoman inspect`."""

from __future__ import annotations

import dataclasses
import json as json_format
import sys
from collections.abc import Mapping
from pathlib import Path

from dragoman_server.bundle import Bundle
from dragoman_server.manifest import Manifest

__all__ = ["inspect"]


def inspect(bundle: Path, /, *, json: bool = False) -> None:
    """Show what a bundle is: languages, dimensions, precisions, gate results, files. Checks every file.

    Args:
        bundle: The directory NAME/VERSION.
        json: Print the manifest and its SHA-256 as JSON.
    """
    opened = Bundle.open(bundle)
    for name in opened.manifest.files:
        opened.read(name)
    if json:
        described = {"manifest_sha256": opened.manifest_sha256, **dataclasses.asdict(opened.manifest)}
        sys.stdout.write(json_format.dumps(described) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(opened.manifest, opened.manifest_sha256)) + "\n")


def _lines(manifest: Manifest, manifest_sha256: str) -> list[str]:
    facts = {
        "languages": f"{', '.join(manifest.source_languages)} to {', '.join(manifest.target_languages)}",
        "architecture": manifest.architecture,
        "dimensions": _listed(dataclasses.asdict(manifest.dimensions)),
        "limits": _listed(dataclasses.asdict(manifest.limits)),
        "provenance": manifest.provenance or "not stated",
        "licence": manifest.licence or "not stated",
        "made with": _listed(manifest.created_by),
        "manifest": f"SHA-256 {manifest_sha256}",
    }
    return [
        f"{manifest.name} {manifest.version}",
        *(f"  {name + ':':<14}{value}" for name, value in facts.items()),
        *(f"  {precision + ':':<14}{_gate(manifest, precision)}" for precision in manifest.precisions),
        *(f"  {score.metric + ':':<14}{score.value:.2f} on {score.test_set}" for score in manifest.scores),
        *(f"  {record.bytes:>12,} bytes  {name}" for name, record in sorted(manifest.files.items())),
    ]


def _listed(values: Mapping[str, int | str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _gate(manifest: Manifest, precision: str) -> str:
    gate = manifest.gates.get(precision)
    if gate is None:
        return "not checked against torch"
    scales = manifest.precisions[precision].activation_scales
    outcomes = [*gate.behaviour.values()]
    return (
        f"gate {'passed' if gate.passed else 'FAILED'}, {gate.sentences} sentences, {gate.steps} steps, "
        f"log-probabilities within {gate.max_log_prob_difference:.1e} of torch's "
        f"({gate.mean_log_prob_loss:.1e} lost on average), "
        f"{gate.greedy_agreement:.1%} of greedy and {gate.beam_agreement:.1%} of beam translations equal, "
        f"{gate.same_alone:.1%} the same alone and in company, "
        f"{outcomes.count('same')} of {len(outcomes)} odd texts translated alike"
        + (f"; {scales} activation scales" if scales != "none" else "")
    )
