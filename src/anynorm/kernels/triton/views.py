"""From runs to the view of an array that the loops have. Pure integers.

rows      nothing kept follows what is reduced: `segments` rows of `reduced` contiguous elements. A row is what has
          one scale and one offset (or one for each element); `each` neighbouring rows are a group
columns   something does: `outer` matrices of `reduced` rows and `segments` columns, summed down the columns;
          `each` neighbouring columns are a group
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

from ...plan import Plan, Run

# Elements of a row, and segments, which are counted in 32 bits; elements of the array are not.
MOST = 2**30


@dataclass(frozen=True)
class Geometry:
    """What the loops are told of a plan.

    Attributes:
        columns: the second view; else rows.
        outer, reduced, segments, each: see above.
        affine: where scale and offset lie: "kept" (one for each segment, or one for all) or "reduced" (one for each
            element of a row, or each row of a column).
        divisor, modulus: the segment s has scale (s // divisor) % modulus.
        samples: how many there are, each with a shift and a gain of its own and outer / samples outer indices, so that
            no tile is of two; 0 where there are none.
    """

    columns: bool
    outer: int
    reduced: int
    segments: int
    each: int
    affine: str
    divisor: int = 1
    modulus: int = 1
    samples: int = 0

    @property
    def groups(self) -> int:
        return self.outer * self.segments // self.each

    @property
    def count(self) -> int:
        return self.reduced * self.each

    @property
    def alike(self) -> bool:
        """Whether the several segments of a group have the same scale."""
        return self.affine == "kept" and self.each > 1 and self.divisor % self.each == 0


@lru_cache(maxsize=8192)
def geometry(plan: Plan) -> Geometry | None:
    """How the loops see the runs; None where they do not serve.

    >>> from anynorm import NormSpec
    >>> from anynorm.plan import plan
    >>> found = geometry(plan(NormSpec.of("n [...] (g [c])", g=4), (2, 5, 7, 12)))
    >>> found.columns, found.outer, found.reduced, found.segments, found.each
    (True, 2, 35, 12, 3)
    >>> found = geometry(plan(NormSpec.of("n (g [c]) [...]", g=4), (2, 12, 5, 7)))
    >>> found.columns, found.outer, found.reduced, found.segments, found.each
    (False, 1, 35, 24, 3)
    """
    if plan.empty or any(run.extent is None for run in plan.runs):
        return None
    kinds = [(reduced, list(runs)) for reduced, runs in groupby(plan.runs, key=lambda run: run.reduced)]
    outer = kinds.pop(0)[1] if not kinds[0][0] else []
    if len(kinds) > 3:
        return None
    first, kept, last = ([runs for _, runs in kinds] + [[], [], []])[:3]
    found = _columns(outer, first, kept, last) if kept else _rows(outer, first)
    return None if found is None or max(found.reduced, found.outer * found.segments) > MOST else found


def modulated(g: Geometry, samples: int) -> Geometry:
    """With a shift and a gain for each index of the array's first dimension, which is all kept, and for each channel.

    >>> modulated(Geometry(False, 1, 64, 21, 1, "reduced"), 3)
    Geometry(columns=False, outer=3, reduced=64, segments=7, each=1, affine='reduced', divisor=1, modulus=1, samples=3)
    """
    if g.columns:
        return replace(g, samples=samples)
    return replace(g, outer=samples, segments=g.segments // samples, samples=samples)


def _rows(outer: list[Run], reduced: list[Run]) -> Geometry | None:
    if [run.affine for run in reduced] == [True]:
        # One scale for each element, and the same for every row.
        if any(run.affine for run in outer):
            return None
        return Geometry(False, 1, _size(reduced), _size(outer), 1, "reduced")
    channels = reduced[:-1] if len(reduced) == 2 and reduced[0].affine else []
    if any(run.affine for run in reduced[len(channels) :]) or len(reduced) > len(channels) + 1:
        return None
    place = _place(outer + channels)
    if place is None:
        return None
    each = _size(channels)
    return Geometry(False, 1, _size(reduced) // each, _size(outer) * each, each, *place)


def _columns(outer: list[Run], reduced: list[Run], kept: list[Run], within: list[Run]) -> Geometry | None:
    place = _place(kept + within)
    if place is None or len(reduced) > 1 or any(run.affine for run in outer):
        return None
    if reduced[0].affine:
        if any(run.affine for run in kept + within):
            return None
        place = ("reduced", 1, 1)
    return Geometry(True, _size(outer), _size(reduced), _size(kept + within), _size(within), *place)


def _place(runs: list[Run]) -> tuple[str, int, int] | None:
    """Where among these runs scale and offset lie; None where they do so more than once."""
    parts = [(affine, _size(list(part))) for affine, part in groupby(runs, key=lambda run: run.affine)]
    carriers = [i for i, (affine, _) in enumerate(parts) if affine]
    if not carriers:
        return "kept", 1, 1
    if len(carriers) > 1:
        return None
    i = carriers[0]
    return "kept", math.prod(size for _, size in parts[i + 1 :]), parts[i][1]


def _size(runs: list[Run]) -> int:
    return math.prod(run.known for run in runs)
