"""A run in the terminal, once it is over."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dragoman_loadtest.compare import Comparison
from dragoman_loadtest.units import milliseconds

__all__ = ["print_comparisons", "print_run"]

_METRICS = {
    "latency": "latency",
    "service": "service time",
    "ttft": "first token",
    "tpot": "per token",
}
_SHOWN = ("mean", "p50", "p90", "p97", "p99", "max")
_STYLES = {"pass": "bold green", "fail": "bold red", "undecided": "bold yellow"}


def print_run(run: dict[str, Any], console: Console) -> None:
    """The figures that matter first."""
    if "peak" in run:
        _print_peak(run["peak"], console)
    if "sweep" in run:
        _print_sweep(run["sweep"], console)
    if "loadgen" in run:
        _print_loadgen(run["loadgen"], console)
    if run["kind"] == "run" and "figures" in run:
        _print_figures(run, console)


def _print_figures(run: dict[str, Any], console: Console) -> None:
    figures = run["figures"]
    rates, requests = figures["rates"], figures["requests"]
    if figures["loop"] == "closed":
        console.print("closed loop: how long a stalled server keeps users waiting does not show here")
    if figures["interrupted"]:
        console.print("interrupted: these are the figures up to then")
    if figures["was_steady"] is False:
        console.print("the warm-up did not become steady: the figures may still move", style="yellow")
    console.print(
        f"{requests['answered']:,} of {requests['sent']:,} requests answered in {figures['seconds']:.1f} s, "
        f"{requests['failed']:,} failed, {requests['open_at_the_end']:,} still open",
        highlight=False,
    )
    if rates:
        console.print(
            f"offered {rates['offered']:,.2f}/s, answered {rates['answered']:,.2f}/s, goodput "
            f"{rates['goodput']:,.2f}/s; {rates['sentences']:,.1f} sentences/s, "
            f"{rates['source_tokens']:,.0f} source and {rates['output_tokens']:,.0f} output tokens/s",
            highlight=False,
        )
    console.print(_times_table(figures))
    _print_occupancy(figures, console)
    for code, count in figures["errors"]["by_code"].items():
        console.print(f"{code}: {count:,}", highlight=False)
    _print_answers(run.get("answers"), console)
    for check in figures["objectives"]:
        console.print(
            f"[{_STYLES[check['verdict']]}]{check['verdict'].upper()}[/] {escape(check['objective'])}: "
            f"{check['over']:,} of {check['requests']:,} requests beyond it",
            highlight=False,
        )
    for reason in figures["self_check"]["reasons"]:
        console.print(
            f"[bold red]INVALID[/] the client was the bottleneck: {escape(reason)}", highlight=False
        )


def _times_table(figures: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in _SHOWN:
        table.add_column(name, justify="right", no_wrap=True)
    rows = [(label, figures["times"][metric]) for metric, label in _METRICS.items()]
    rows += [("between pieces", figures["token_gap"])]
    rows += [(f"  {name}", found) for name, found in figures["server_times"].items() if name != "server"]
    for label, found in rows:
        if found:
            table.add_row(label, *(milliseconds(found[name]) for name in _SHOWN))
    return table


def _print_occupancy(figures: dict[str, Any], console: Console) -> None:
    found = figures["occupancy"]
    if found:
        console.print(
            f"{found['rows_per_step']:.1f} rows per step of {milliseconds(found['mean_step_seconds'])}, "
            f"{found['padded_rows_share']:.1%} of them empty; {found['encoder_padding_share']:.1%} padding "
            "in the encoder",
            highlight=False,
        )
    if figures["metrics_error"]:
        console.print(f"no metrics: {escape(figures['metrics_error'])}", style="yellow", highlight=False)


def _print_answers(answers: dict[str, Any] | None, console: Console) -> None:
    if answers is None or not answers["compared"]:
        return
    console.print(
        f"{answers['identical']:,} of {answers['compared']:,} answers are those of the unloaded server",
        highlight=False,
    )
    for found in answers["different"]:
        console.print(
            f"  request {found['request']}, line {found['line']}: {escape(repr(found['loaded'][:80]))} "
            f"instead of {escape(repr(found['golden'][:80]))}",
            highlight=False,
        )
    if "reference" in answers:
        loaded, golden = answers["reference"]["loaded"], answers["reference"]["golden"]
        console.print(
            f"BLEU {loaded['bleu']:.2f} under load, {golden['bleu']:.2f} without; "
            f"chrF {loaded['chrf']:.2f}, {golden['chrf']:.2f}",
            highlight=False,
        )


def _print_peak(peak: dict[str, Any], console: Console) -> None:
    if peak["rate"] is None:
        console.print(f"[bold red]no rate meets {escape(peak['objectives'])}[/]")
        return
    console.print(
        f"[bold]{peak['rate']:.2f} requests/s[/] meet {escape(peak['objectives'])}, "
        f"{peak['confirmed']} runs of {peak['confirmations']}; goodput {peak['goodput']:.2f}/s",
        highlight=False,
    )


def _print_sweep(sweep: dict[str, Any], console: Console) -> None:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("rate", "answered", "goodput", "failed", "p50", "p97", "p99"):
        table.add_column(name, justify="right")
    for point in sweep["points"]:
        figures = point["figures"]
        latency, rates = figures["times"]["latency"], figures["rates"]
        table.add_row(
            f"{point['rate']:.2f}",
            f"{rates['answered']:.2f}",
            f"{rates['goodput']:.2f}",
            f"{figures['requests']['failed']:,}",
            *(milliseconds(latency.get(name)) for name in ("p50", "p97", "p99")),
        )
    console.print(table)
    if sweep["knee"] is not None:
        console.print(f"knee at {sweep['knee']:.2f}/s, peak {sweep['peak_rate']:.2f}/s", highlight=False)


def _print_loadgen(found: dict[str, Any], console: Console) -> None:
    for name, value in found.items():
        console.print(f"{name.replace('_', ' ')}: {value}", highlight=False)


def print_comparisons(comparisons: list[Comparison], console: Console) -> None:
    """Quantiles of B over those of A."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("", "A", "B", "B / A", "95 % interval", ""):
        table.add_column(name, justify="right")
    for found in comparisons:
        table.add_row(
            f"{found.metric} {found.quantile}",
            *(f"{v:.2%}" if found.metric == "answered" else milliseconds(v) for v in (found.a, found.b)),
            f"{found.ratio:.3f}",
            f"{found.low:.3f} to {found.high:.3f}",
            "[bold red]regression[/]" if found.regression else "",
        )
    console.print(table)
