"""Cubes as text: a grid of characters that a terminal shows in colour, and that can be read without."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .cells import Cube

MARKS = ("■", "·")
ASCII_MARKS = ("#", ".")
_GAP = 2
_LEAST = 18


def side_by_side(cubes: Sequence[Cube], width: int = 80, marks: tuple[str, str] = MARKS) -> RenderableType:
    """Cubes with title, sentence and counts, as many beside each other as fit into `width` columns."""
    drawn = [(cube, drawing(cube, marks)) for cube in cubes]
    breadths = [max(_LEAST, *map(len, picture.split("\n"))) for _, picture in drawn]
    rows: list[list[int]] = [[]]
    for i in range(len(drawn)):
        if rows[-1] and sum(breadths[j] + _GAP for j in rows[-1]) + breadths[i] > width:
            rows.append([])
        rows[-1].append(i)
    tables = [_table([drawn[i] for i in row], [breadths[i] for i in row], marks) for row in rows]
    legend = Text.assemble((marks[0], "bold blue"), " share one statistic with each other")
    return Group(*(part for table in tables for part in (table, Text())), legend)


def drawing(cube: Cube, marks: tuple[str, str] = MARKS) -> str:
    """One cube, C × (H, W) in front, its upper side and N × (H, W) running back; each cell that is seen stands once.

    Args:
        marks: the character of a cell that shares the first one's statistic, and that of another.

    >>> from anynorm.figures.cells import cube
    >>> print(drawing(cube("n [h] (g [c])", {"n": 2, "h": 2, "c": 4})))
       · · · ·
    H · · ■ ■·
      · · ■ ■ N
         C
    """
    n, c, s = cube.statistic.shape
    behind, below, beside = (label.replace(", ", ",") for label in cube.labels)
    margin = len(beside) + bool(beside)
    grid = np.full((s + n, margin + 2 * c + n + max(len(behind), len(below))), " ")
    for i, j, k in np.ndindex(n, c, s):
        if 0 in (i, j, k):
            grid[n - 1 - i + k, margin + 2 * (c - 1 - j) + i] = marks[0] if cube.shared[i, j, k] else marks[1]
    for label, row, column in (
        (behind, s + n - 2, margin + 2 * c),
        (below, s + n - 1, margin + c - 1),
        (beside, n - 1 + (s - 1) // 2, 0),
    ):
        grid[row, column : column + len(label)] = list(label)
    return "\n".join("".join(line).rstrip() for line in grid)


def _table(row: list[tuple[Cube, str]], breadths: list[int], marks: tuple[str, str]) -> Table:
    table = Table.grid(padding=(0, _GAP, 0, 0))
    heads, pictures, feet = [], [], []
    for (cube, picture), breadth in zip(row, breadths, strict=True):
        table.add_column(width=breadth, vertical="bottom", no_wrap=True)
        heads.append(Text(textwrap.fill(cube.title or cube.sentence, breadth), style="bold"))
        coloured = Text(picture)
        coloured.highlight_words([marks[0]], "bold blue")
        coloured.highlight_words([marks[1]], "bright_black")
        pictures.append(coloured)
        below = [cube.sentence, cube.caption] if cube.title else [cube.caption]
        feet.append(Text("\n".join(textwrap.fill(line, breadth) for line in below), style="bright_black"))
    for cells in (heads, pictures, feet):
        table.add_row(*cells)
    return table
