"""Learning curves of one network trained with several norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_INK, _GREY = "#1c232c", "#8a94a0"


@dataclass(frozen=True)
class Curve:
    """One norm's loss and accuracy after each step, and what was published: steps, loss and accuracy, or None."""

    norm: str
    losses: Sequence[float] = field(repr=False)
    accuracies: Sequence[float] = field(repr=False)
    published: tuple[int, float, float] | None = None


def draw(curves: Sequence[Curve], subtitle: str = "") -> Figure:
    """Loss and accuracy beside each other, a ring where a figure was published; the others are dashed.

    >>> figure = draw([Curve("group", [2.3, 1.9], [0.1, 0.4], (2, 1.8, 0.5))])
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['training loss', 'training accuracy']
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    compared = any(curve.published for curve in curves)
    for i, curve in enumerate(curves):
        style = "--" if compared and curve.published is None else "-"
        colour = _COLOURS[i % len(_COLOURS)]
        for axes, values, at in ((loss, curve.losses, 1), (accuracy, curve.accuracies, 2)):
            axes.plot(range(1, len(values) + 1), values, color=colour, linestyle=style, linewidth=1.8, label=curve.norm)
            if curve.published is not None:
                point = (curve.published[0], curve.published[at])
                axes.plot(*point, "o", color=colour, fillstyle="none", markersize=8, clip_on=False, zorder=3)
    _finish(loss, "training loss", None)
    _finish(accuracy, "training accuracy", 1.0)
    if compared:
        accuracy.plot([], [], "o", color=_GREY, fillstyle="none", markersize=8, label="the tutorial's")
    accuracy.legend(frameon=False, loc="lower right")
    figure.suptitle(subtitle, fontsize=10.5, color=_INK)
    return figure


def _finish(axes: Axes, name: str, top: float | None) -> None:
    axes.set_ylabel(name)
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.set_ylim(0, top)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
