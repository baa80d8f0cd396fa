"""Pictures that belong to their page: its fonts, its colours in light and dark, and no request to anyone.

Matplotlib draws in sentinel colours, which become the page's CSS variables in the SVG. Each picture is drawn
twice, for a wide window and for a telephone, at the size it is shown at, so that its text has the size of the
page's text; a media query shows one of the two.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

__all__ = ["COLOURS", "Draw", "Picture", "picture"]

_NAMES = (
    "ink",
    "soft",
    "line",
    "card",
    "good",
    "bad",
    "warn",
    "p50",
    "p97",
    "p99",
    "queue",
    "encode",
    "decode",
)

COLOURS = {name: f"#0a0b{i + 1:02x}" for i, name in enumerate(_NAMES)}
"""Sentinel of each of the page's colours. None is black, which matplotlib leaves out of its SVG."""

Draw = Callable[[Figure, bool], None]
"""Draws into an empty figure; told whether it is the wide one."""

_WIDE, _NARROW = 860, 350  # CSS pixels; an SVG's unit is a point, and the page shows one as one pixel
_POINTS_PER_INCH = 72.0
_REFERENCE = r'(?:href="|url\()#([^")]+)'
_TEXT = 12.0
_THEME: Any = {  # matplotlib types its keys one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "dragoman",
    "svg.id": None,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the layout is the same everywhere
    "font.size": _TEXT,
    "text.parse_math": False,
    "text.color": COLOURS["ink"],
    "axes.facecolor": "none",
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.labelsize": _TEXT,
    "axes.titlecolor": COLOURS["soft"],
    "axes.titlelocation": "left",
    "axes.titlesize": _TEXT,
    "axes.titlepad": 10.0,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 1.0,
    "xtick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["soft"],
    "xtick.labelsize": _TEXT,
    "xtick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "xtick.major.pad": 7.0,
    "ytick.color": COLOURS["line"],
    "ytick.labelcolor": COLOURS["soft"],
    "ytick.labelsize": _TEXT,
    "ytick.major.size": 0.0,
    "ytick.minor.size": 0.0,
    "ytick.major.pad": 7.0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.02,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and the words with it."""

    key: str
    """Unique on the page; also its anchor."""
    title: str
    caption: str
    wide: Markup
    narrow: Markup


def picture(
    key: str, title: str, caption: str, draw: Draw, *, wide_height: int = 300, narrow_height: int = 260
) -> Picture:
    """Draw a picture in both variants.

    Args:
        key: Unique on the page.
        title: What it shows, in a few words.
        caption: What a reader should see in it, in a sentence.
        draw: Draws it.
        wide_height: CSS pixels.
        narrow_height: CSS pixels.
    """
    label = f"{title}. {caption}"
    sizes = {True: (_WIDE, wide_height), False: (_NARROW, narrow_height)}
    wide, narrow = (_svg(draw, key, label, is_wide, sizes[is_wide]) for is_wide in (True, False))
    return Picture(key, title, caption, wide, narrow)


def _svg(draw: Draw, key: str, label: str, wide: bool, size: tuple[int, int]) -> Markup:
    with matplotlib.rc_context(_THEME):
        figure = Figure(
            figsize=(size[0] / _POINTS_PER_INCH, size[1] / _POINTS_PER_INCH), layout="constrained"
        )
        draw(figure, wide)
        drawn = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    variant = "wide" if wide else "narrow"
    opening = (
        f'<svg class="{variant}" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(label)}">'
    )
    body = drawn.getvalue().partition("<svg")[2].partition(">")[2]
    return Markup(opening + _tidied(body, f"{key}-{variant}-"))  # noqa: S704  # matplotlib escapes its texts


def _tidied(svg: str, prefix: str) -> str:
    """Colours and fonts of the page, ids that clash with no other picture's, nothing superfluous."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # Numbered as they appear: matplotlib hashes positions, whose last digits the layout does not repeat.
    names = {found: f"{prefix}{i}" for i, found in enumerate(dict.fromkeys(re.findall(_REFERENCE, svg)), 1)}
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", svg)
    svg = re.sub(_REFERENCE, lambda m: m[0].replace(m[1], names[m[1]]), svg).replace("xlink:href", "href")
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    for name, sentinel in COLOURS.items():
        svg = svg.replace(sentinel, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", svg)
