"""The picture of a training run."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["draw_curve"]


def draw_curve(logs: Path, picture: Path) -> None:
    """Draw training and validation loss over the steps.

    Args:
        logs: Folder of the CSV logs, one sub-folder for each process that went on with the run.
        picture: The PNG to write.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for column, label in (("train/likelihood", "training, with dropout"), ("valid/likelihood", "validation")):
        points = _points(logs, column)
        axes.plot(list(points), list(points.values()), label=label, marker="." if "valid" in column else "")
    axes.set_xlabel("step")
    axes.set_ylabel("negative log-likelihood (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)


def _points(logs: Path, column: str) -> dict[int, float]:
    """Value by step; of a step that was trained twice, the later one."""
    points = {}
    for file in sorted(
        logs.glob("version_*/metrics.csv"), key=lambda file: int(file.parent.name.split("_")[1])
    ):
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                if row.get(column):
                    points[int(row["step"])] = float(row[column])
    return dict(sorted(points.items()))
