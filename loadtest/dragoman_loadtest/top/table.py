"""The figures of a server as a terminal shows them."""

from __future__ import annotations

from datetime import timedelta

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dragoman_loadtest.top.figures import ModelFigures, ServerFigures
from dragoman_loadtest.units import milliseconds

__all__ = ["render"]

_BAR_WIDTH = 16
_MIB = 2**20


def render(address: str, figures: ServerFigures) -> RenderableType:
    """The server in two lines, its models in a table, and what they refuse."""
    up = timedelta(seconds=round(figures.uptime_seconds))
    head = f"{address}  up {up}  memory {figures.resident_bytes / _MIB:,.0f} MiB  CPUs {figures.cpus:.2f}"
    calls = (
        f"in progress {figures.calls_in_progress}  p50 {milliseconds(figures.call_seconds_p50)} "
        f"p99 {milliseconds(figures.call_seconds_p99)}  calls/s {_by_name(figures.calls_per_second)}"
    )
    refusals = [
        Text(f"{model.model} refuses/s {_by_name(model.refusals_per_second)}", style="yellow")
        for model in figures.models
        if model.refusals_per_second
    ]
    return Group(Text(head, style="bold"), Text(calls), _models_table(figures.models), *refusals)


def _models_table(models: tuple[ModelFigures, ...]) -> RenderableType:
    """Two lines a model, so that 80 columns are enough."""
    if not models:
        return Text("no model is served", style="yellow")
    table = Table.grid(padding=(0, 3, 0, 0))
    for model in models:
        table.add_row(
            _name(model),
            f"tokens/s {model.output_tokens_per_second:,.0f}",
            _occupancy(model),
            f"step {milliseconds(model.step_seconds)}",
        )
        p50, p99 = milliseconds(model.queue_seconds_p50), milliseconds(model.queue_seconds_p99)
        table.add_row(
            f"  {model.precision}, {model.device}",
            f"queue {model.queue_depth:,}",
            f"wait p50 {p50} p99 {p99}",
            f"rows {model.rows_per_step:,.1f}" if model.rows_per_step else "rows -",
        )
    return table


def _occupancy(model: ModelFigures) -> RenderableType:
    bar = Bar(max(model.slots, 1), 0, model.slots_in_use, width=_BAR_WIDTH, color="green")
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_row("slots", bar, f"{model.slots_in_use}/{model.slots}")
    return line


def _name(model: ModelFigures) -> Text:
    name = Text(f"{model.model} {model.version}")
    if model.stalled_workers:
        name.append(f", {model.stalled_workers} stalled", style="bold red")
    return name


def _by_name(rates: dict[str, float]) -> str:
    return "  ".join(f"{name} {rate:,.1f}" for name, rate in rates.items()) or "0"
