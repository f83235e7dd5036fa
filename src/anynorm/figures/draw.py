"""Cubes as a picture, after Figure 2 of Wu, He, "Group Normalization" (2018), arXiv:1803.08494."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .cells import Cube

Place = tuple[float, float]
Line = tuple[Place, Place]

# The sides that are seen: the direction that each one cuts off at its first cell, and the fills of blue and other
# cells, as if the light came from above and the left.
_SIDES = (("left", 0, "#3f88d0", "#ffffff"), ("right", 1, "#2a68ad", "#e9edf2"), ("top", 2, "#86b9ea", "#f7f9fb"))
_THIN, _EDGE, _INK, _GREY = "#b4bdc8", "#2b3440", "#1c232c", "#5a6572"
_SANS, _MONO = "sans-serif", "monospace"
_COS, _SIN = math.cos(math.radians(30)), math.sin(math.radians(30))

# Inches: a panel is a title of at most two lines, a cube and two lines below it.
_WIDTH, _TITLE, _CUBE, _BELOW = 2.9, 0.56, 3.05, 0.5
_TITLE_LETTERS = 25


def draw(cubes: Sequence[Cube], columns: int = 4) -> Figure:
    """Draw cubes side by side, the cells that share the first one's statistic in blue.

    Each cube is seen from the corner of its first cell: C runs to the left, N to the right, (H, W) downwards. A dark
    line stands between cells with different statistics. Nothing is hidden: a cell is blue where its three indices
    are, and the three sides that meet in the first cell show every index.

    >>> from anynorm.figures.cells import cube
    >>> len(draw([cube("batch"), cube("group")]).axes)
    2
    """
    columns = min(columns, len(cubes))
    rows = math.ceil(len(cubes) / columns)
    height = rows * (_TITLE + _CUBE + _BELOW)
    figure = Figure(figsize=(_WIDTH * columns, height))
    for i, cube in enumerate(cubes):
        row, column = divmod(i, columns)
        top = 1 - row / rows
        middle = (column + 0.5) / columns
        axes = figure.add_axes((column / columns, top - (_TITLE + _CUBE) / height, 1 / columns, _CUBE / height))
        _cube(axes, cube)
        title = textwrap.fill(cube.title or cube.sentence, _TITLE_LETTERS)
        family = _SANS if cube.title else _MONO
        upper, lower = top - _TITLE / height, top - (_TITLE + _CUBE + 0.04) / height
        figure.text(middle, upper, title, ha="center", va="bottom", family=family, fontsize=12.5, color=_INK)
        if cube.title:
            figure.text(middle, lower, cube.sentence, ha="center", va="top", family=_MONO, fontsize=9.5, color=_INK)
            lower -= 0.19 / height
        figure.text(middle, lower, cube.caption, ha="center", va="top", fontsize=9, color=_GREY)
    return figure


def _cube(axes: Axes, cube: Cube) -> None:
    lines: list[Line] = []
    for _, cut, blue, other in _SIDES:
        statistic = _first(cube.statistic, cut)
        shared = _first(cube.shared, cut)
        cells = list(np.ndindex(statistic.shape))
        quads = [[_place(cut, a, b) for a, b in ((i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1))] for i, j in cells]
        fills = [blue if shared[cell] else other for cell in cells]
        axes.add_collection(PolyCollection(quads, facecolors=fills, edgecolors=_THIN, linewidths=0.6))
        lines += [(_place(cut, *a), _place(cut, *b)) for a, b in _borders(statistic)]
    axes.add_collection(LineCollection(lines, colors=_EDGE, linewidths=0.9, capstyle="round"))
    _label(axes, cube)


def _first(cells: NDArray[Any], direction: int) -> NDArray[Any]:
    return np.moveaxis(cells, direction, 0)[0]


def _place(cut: int, u: float, v: float) -> Place:
    """Where a corner of a cell on the side that cuts direction `cut` off comes to lie on the paper."""
    n, c, s = np.insert(np.array([u, v], float), cut, 0.0)
    return float((n - c) * _COS), float((n + c) * _SIN - s)


def _borders(statistic: NDArray[np.intp]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """The outline of a side, and the edges between cells of it with different statistics."""
    framed = np.pad(statistic, 1, constant_values=-1)
    for i, j in np.argwhere(framed[1:, 1:-1] != framed[:-1, 1:-1]).tolist():
        yield (i, j), (i, j + 1)
    for i, j in np.argwhere(framed[1:-1, 1:] != framed[1:-1, :-1]).tolist():
        yield (i, j), (i + 1, j)


def _label(axes: Axes, cube: Cube) -> None:
    """The names of the directions along the lower and left edges, and room for them."""
    n, c, s = cube.statistic.shape
    gap = 0.035 * max((n + c) * _COS, (n + c) * _SIN + s)
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-c * _COS - 4 * gap, n * _COS + 4 * gap)
    axes.set_ylim(-s - gap, (n + c) * _SIN + gap)
    for text, x, y, turned, ha, va in (
        (cube.labels[1], -c / 2 * _COS - gap, c / 2 * _SIN - s - gap, 0, "right", "top"),
        (cube.labels[0], n / 2 * _COS + gap, n / 2 * _SIN - s - gap, 0, "left", "top"),
        (cube.labels[2], -c * _COS - gap, c * _SIN - s / 2, 90 if "," in cube.labels[2] else 0, "right", "center"),
    ):
        axes.text(x, y, text, rotation=turned, ha=ha, va=va, fontsize=12, color=_INK)
