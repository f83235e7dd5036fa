"""The chart: for each case and framework, how many times faster than the best peer; from the saved rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goals import MODES, headline
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory
from shapes import CASES

from anynorm.figures.save import save

_INK, _GREY, _LINE = "#1c232c", "#5a6572", "#dfe4ea"
# Apart for every kind of colour vision, and by their shape in print.
_MARKS = {"TensorFlow": ("#d9822b", "o"), "JAX": ("#2a68ad", "D"), "torch": ("#7a3e9d", "s")}
_TICKS = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


def draw(data: dict[str, Any], path: Path) -> None:
    """A line for each case, grouped by norm, 800 pixels wide in a README."""
    rows = data["rows"]
    values = {(c, f): v for c in CASES for f in MODES if (v := headline(rows, c, f)) is not None}
    shown = [case for case in CASES if any((case, f) in values for f in MODES)]
    places = _places(shown)
    lowest = max(places.values()) + 1
    figure = Figure(figsize=(8, 0.9 + 0.19 * lowest))
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for case in shown:
        y = places[case.name]
        points = [values[case, f] for f in MODES if (case, f) in values]
        axes.plot([min(points), max(points)], [y, y], color="#b4bdc8", linewidth=1, zorder=1)
        for framework, (colour, marker) in _MARKS.items():
            if (case, framework) in values:
                axes.plot(values[case, framework], y, marker, color=colour, markersize=5, zorder=3)
    _label(axes, shown, places)
    low, high = min(values.values()), max(values.values())
    ticks = [t for t in _TICKS if low / 1.6 <= t <= high * 1.6]
    axes.set_xlim(min(low / 1.3, 0.9), high * 1.3)
    axes.set_ylim(lowest, -0.4)
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks], color=_INK, fontsize=9)
    axes.set_xticks([], minor=True)
    axes.grid(axis="x", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.axvspan(axes.get_xlim()[0], 1, color="#f3f5f7", zorder=0)
    axes.axvline(1, color=_INK, linewidth=1.2, zorder=2)
    axes.tick_params(axis="x", top=True, labeltop=True, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _legend(axes)
    save(figure, path)


def _places(shown: Sequence[Any]) -> dict[str, float]:
    """Each case's height, downwards; a family begins with a line for its name."""
    places, y, family = {}, 0.0, None
    for case in shown:
        if case.family is not family:
            y += 0.0 if family is None else 0.5
            family = case.family
            y += 1
        places[case.name] = y
        y += 1
    return places


def _label(axes: Any, shown: Sequence[Any], places: dict[str, float]) -> None:
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    family = None
    for case in shown:
        y = places[case.name]
        if case.family is not family:
            family = case.family
            axes.text(-0.33, y - 1, family.name, transform=beside, va="center", fontsize=9, weight="bold", color=_INK)
        axes.text(-0.01, y, case.size, transform=beside, ha="right", va="center", fontsize=8.5, color=_GREY)
    axes.set_yticks([])


def _legend(axes: Any) -> None:
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6, label=f"{framework}: {peers}")
        for (framework, (colour, marker)), peers in zip(
            _MARKS.items(), ("Keras", "the best of Keras and Flax", "the best of torch's own"), strict=True
        )
    ]
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.35, 1.02), ncols=3, frameon=False, fontsize=9,
        handletextpad=0.2, columnspacing=1.6, title="times faster than the best peer, forward + backward, one thread",
        title_fontproperties={"size": 10.5, "weight": "bold"},
    )  # fmt: skip
