"""The command `dragoman export`."""

from __future__ import annotations

import dataclasses
import json as json_format
import logging
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from dragoman_export.options import ExportOptions
from dragoman_export.report import report_rows
from dragoman_export.writer import export_checkpoint
from dragoman_server.manifest import Manifest

__all__ = ["export"]

_DEFAULTS = ExportOptions()


def export(
    checkpoint: Path,
    /,
    *,
    out: Path,
    options: Annotated[ExportOptions, Parameter(name="*")] = _DEFAULTS,
    json: bool = False,
) -> int:
    """Export a checkpoint to a bundle that a server loads, and check that it says what the checkpoint says.

    Args:
        checkpoint: The folder that training wrote.
        out: The bundle's directory, NAME/VERSION, such as models/en-de/1.
        options: What to export.
        json: Print the result as JSON.

    Returns:
        The exit code: 1 where a precision was left out because its gate has failed.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    bundle = export_checkpoint(checkpoint, out, options)
    sizes = {name: record.bytes for name, record in bundle.manifest.files.items()}
    gates = {name: dataclasses.asdict(gate) for name, gate in bundle.manifest.gates.items()}
    scales = {name: graphs.activation_scales for name, graphs in bundle.manifest.precisions.items()}
    if json:
        result = {"bundle": str(bundle.path), "manifest_sha256": bundle.manifest_sha256, "files": sizes}
        result |= {"gates": gates, "activation_scales": scales}
        sys.stdout.write(json_format.dumps(result) + "\n")
    else:
        _print_table(bundle.manifest)
        sys.stdout.write(f"{bundle.path}: {sum(sizes.values()) / 2**20:.1f} MiB, {', '.join(gates)}\n")
    return 0 if set(options.precision) == set(gates) else 1


def _print_table(manifest: Manifest) -> None:
    heading, *rows = report_rows(manifest)
    table = Table(*heading, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout).print(table)
