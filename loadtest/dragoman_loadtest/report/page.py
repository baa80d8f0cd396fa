"""The page: what goes where."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from dragoman_loadtest.report.answers import differences, quality
from dragoman_loadtest.report.pictures import run_pictures
from dragoman_loadtest.report.pictures_rates import peak_pictures, sweep_pictures
from dragoman_loadtest.report.style import Picture
from dragoman_loadtest.report.tables import figure_tables, rate_tables, setting_tables
from dragoman_loadtest.report.tiles import Tile, rate_tiles, run_tiles
from dragoman_loadtest.report.verdict import notes, verdict

__all__ = ["render"]


@dataclass(frozen=True, slots=True)
class _Part:
    """Figures and pictures of one run, or of many together."""

    title: str
    notes: tuple[str, ...]
    tiles: list[list[Tile]]
    pictures: list[Picture]


def render(run: dict[str, Any]) -> str:
    """The report of a load test.

    Args:
        run: The content of `run.json`, of any kind; what it lacks is left out.

    Returns:
        An HTML page that needs nothing else: style and pictures are inside, and it asks no host for anything.
    """
    return _template().render(
        verdict=verdict(run),
        where=_where(run),
        made_at=str(run.get("made_at") or "").replace("T", " ").removesuffix("+00:00"),
        parts=_parts(run),
        tables=rate_tables(run) + figure_tables(run.get("figures") or {}),
        differences=differences(run.get("answers")),
        quality=quality(run.get("answers")),
        settings=setting_tables(run),
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("dragoman_loadtest.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _where(run: dict[str, Any]) -> str:
    """The model and the server, as far as they are known."""
    summary = (run.get("model") or {}).get("summary") or {}
    model = " ".join(str(summary[key]) for key in ("name", "version") if summary.get(key))
    endpoint = ((run.get("settings") or {}).get("target") or {}).get("endpoint")
    return " at ".join(str(part) for part in (model, endpoint) if part)


def _parts(run: dict[str, Any]) -> list[_Part]:
    """What many runs show together comes first; a heading then parts it from the figures of one of them."""
    figures = run.get("figures") or {}
    pictures = [*sweep_pictures(run.get("sweep") or {}), *peak_pictures(run.get("peak") or {})]
    together = _Part("", (), rate_tiles(run), pictures)
    last = _Part("", (), run_tiles(figures, run.get("answers")), run_pictures(figures))
    if pictures and figures:
        last = replace(last, title="The last run of the search", notes=notes(figures))
    return [part for part in (together, last) if part.tiles or part.pictures]
