"""Figures as inline SVG that takes the page's text colour, so that one drawing suits light and dark."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#2f7fd0",
    "#d9680f",
    "#219a52",
    "#c2407f",
    "#8a63d2",
    "#a8871a",
    "#1698a8",
    "#d1493f",
    "#7d8a2e",
    "#8c6d5a",
)
"""Of lines and classes; each stands out on white and on black."""
NEUTRAL = "#858d96"
"""Of what the others are compared with."""
_REACH = 0.4
"""Epochs by which a dashed line is longer than what it stands for, at each end."""
_TEXT = "#010203"
"""Drawn where the page's own text colour is to be."""
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "rayssl",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    **{f"{part}.color": _TEXT for part in ("text", "xtick", "ytick")},
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": NEUTRAL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Line:
    """A line of a figure; its label stands in the page's legend."""

    label: str
    colour: str
    values: Mapping[float, float]
    """x -> y."""
    is_dashed: bool = False
    breaks: tuple[float, ...] = ()
    """x after which the line is interrupted, with a dot on its last point."""


def accuracy_by_block(lines: Sequence[Line], *, identity: str = "") -> str:
    """Accuracy in [0, 1], drawn in %, over blocks 1 to 5.

    Args:
        lines: x are numbers of blocks.
        identity: Keeps the drawing's ids apart from those of others on the page.
    """
    from matplotlib import rc_context

    with rc_context(_SETTINGS):
        figure, axes = _empty((4.4, 3.0))
        for line in lines:
            across = sorted(line.values)
            axes.plot(
                across,
                [100 * line.values[x] for x in across],
                color=line.colour,
                linestyle="--" if line.is_dashed else "-",
                marker="o",
            )
        axes.set_xticks(range(1, 6), [f"B{number}" for number in range(1, 6)])
        axes.set_xlabel("block")
        axes.set_ylabel("top-1 accuracy (%)")
        axes.grid(axis="y", color=NEUTRAL, alpha=0.25, linewidth=0.6)
        return _as_svg(figure, f"{identity}blocks", "Accuracy of linear probes by block")


def curve(name: str, unit: str, lines: Sequence[Line], *, stages: Sequence[float] = (), identity: str = "") -> str:
    """A number over the epochs.

    Args:
        name: What is drawn, such as "loss".
        unit: "%" draws shares in [0, 1] as percent; otherwise what the axis says beside the name, or "".
        lines: x are epochs, from 1.
        stages: Last epoch of each stage; they are shaded in turn and numbered.
        identity: Keeps the drawing's ids apart from those of others on the page.
    """
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator

    scale = 100 if unit == "%" else 1
    with rc_context(_SETTINGS):
        figure, axes = _empty((4.4, 2.5))
        for line in lines:
            for across in _pieces(line):
                heights = [scale * line.values[x] for x in across]
                if line.is_dashed:  # reaching out, so that a single epoch shows too
                    edges = [across[0] - _REACH, *across, across[-1] + _REACH]
                    axes.plot(edges, [heights[0], *heights, heights[-1]], color=line.colour, linestyle="--")
                else:
                    axes.plot(across, heights, color=line.colour)
                    axes.plot(across[-1:], heights[-1:], color=line.colour, marker="o", linestyle="none")
        _shade_stages(axes, stages)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{name} ({unit})" if unit else name)
        axes.grid(axis="y", color=NEUTRAL, alpha=0.25, linewidth=0.6)
        return _as_svg(figure, identity + re.sub(r"\W+", "-", name), f"{name} by epoch")


def feature_map(points: np.ndarray, colours: Sequence[str], *, names: tuple[str, str]) -> str:
    """Points (N, 2), a colour each, on axes of these names."""
    from matplotlib import rc_context

    with rc_context(_SETTINGS):
        figure, axes = _empty((4.4, 3.8))
        axes.scatter(points[:, 0], points[:, 1], s=7, c=list(colours), linewidths=0, alpha=0.8)
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        return _as_svg(figure, "map", "Map of features in two dimensions")


def _empty(size: tuple[float, float]) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    return figure, axes


def _pieces(line: Line) -> list[list[float]]:
    """The x of each uninterrupted part of a line, finite points alone."""
    across = sorted(x for x, y in line.values.items() if math.isfinite(y))
    edges = (-math.inf, *sorted(line.breaks), math.inf)
    parts = [[x for x in across if low < x <= high] for low, high in zip(edges, edges[1:], strict=False)]
    return [part for part in parts if part]


def _shade_stages(axes: "Axes", ends: Sequence[float]) -> None:
    """Every second stage on a grey band; numbered as long as numbers fit."""
    fitting = 12
    begin = 0.0
    for number, end in enumerate(ends, start=1):
        if number % 2 == 0:
            axes.axvspan(begin + 0.5, end + 0.5, color=NEUTRAL, alpha=0.13, linewidth=0)
        if len(ends) <= fitting:
            middle = (begin + end + 1) / 2
            axes.text(middle, 1.0, str(number), transform=axes.get_xaxis_transform(), ha="center", va="bottom")
        begin = end
    if ends:
        axes.set_xlim(0.5, ends[-1] + 0.5)


def _as_svg(figure: "Figure", name: str, text: str) -> str:
    """An <svg> element that can stand beside others: no prolog, no metadata, ids of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'xlink:href="#', 'href="#', drawing)
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
    drawing = drawing.replace(_TEXT, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")
    opening = re.search(r'viewBox="[^"]*"', drawing)
    assert opening is not None
    inner = drawing[drawing.index(">") + 1 :]
    # Without width and height in points: the page decides how large it is.
    return f'<svg {opening.group()} role="img" aria-label="{text}">{inner.strip()}'
