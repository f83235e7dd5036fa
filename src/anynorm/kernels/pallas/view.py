"""An array's runs as [outer, middle, inner]: a kernel sums over the middle, in tiles of powers of two.

In rows the inner part has length 1, and a program takes several rows; in columns the inner part is contiguous and stays
in the vector lanes, and a program takes some columns of one outer position. One kernel serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod
from typing import NamedTuple

from ...plan import Run

# What is kept of each group, in the order that composed.py has in JAX's `saved`; what is known of a part of one.
LANES = ("power", "shift", "residual", "variance", "rstd")
PART = ("power", "shift", "residual", "squares")

Labelled = Callable[[Run], bool]

# Elements that one program may keep in registers: 16 warps with 32 numbers a thread; with the gradient's two arrays
# half as many. Unmeasured: no GPU was at hand.
WHOLE_FORWARD, WHOLE_BACKWARD = 16384, 8192
# Elements of a tile where the middle is cut into parts, and of a program that takes several short groups.
TILE, SHORT = 4096, 2048
# Columns of a tile: 128 bytes of float32 and more, which is a line of the cache.
COLUMNS = 64
# A program goes through at most MOST_STEPS tiles so that there are many programs, until there are MOST_PARTS of them.
FEW_TILES, MOST_STEPS, MOST_PARTS = 16, 4, 1024
# At most this part of a tile may be padding.
PADDING = 0.25


class Digit(NamedTuple):
    """One term of an offset: (position // below) % length * stride; a length of 0 means no remainder is needed."""

    below: int
    length: int
    stride: int


Digits = tuple[Digit, ...]


class Tile(NamedTuple):
    """How many elements of each part a program takes at once: the middle in pieces.

    It does so in `steps` along the middle, of which there is one where there are several pieces, and `repeats` along
    the outer part.
    """

    outer: int
    pieces: tuple[int, ...]
    inner: int
    steps: int = 1
    repeats: int = 1

    @property
    def part(self) -> int:
        """Elements of the middle that one program goes through."""
        return sum(self.pieces) * self.steps

    @property
    def warps(self) -> int:
        """16 numbers a thread, within what a program may have."""
        return min(16, max(1, power_below(self.outer * sum(self.pieces) * self.inner // 512)))


@dataclass(frozen=True)
class View:
    """runs[first:last] are the middle; it may be empty, and has length 1 then.

    >>> runs = (Run(2, False, False), Run(9, True, False), Run(3, False, True), Run(4, True, True))
    >>> view = View(runs, 1, 2)
    >>> view.shape
    (2, 9, 12)
    >>> view.places(lambda run: not run.reduced)[2]
    (Digit(below=4, length=0, stride=1),)
    """

    runs: tuple[Run, ...]
    first: int
    last: int

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Lengths of outer, middle and inner."""
        parts = self.runs[: self.first], self.runs[self.first : self.last], self.runs[self.last :]
        outer, middle, inner = (prod(run.known for run in part) for part in parts)
        return outer, middle, inner

    @cached_property
    def holds_groups(self) -> bool:
        """Whether all elements that share a statistic lie in the middle."""
        return all(run.reduced == (self.first <= i < self.last) for i, run in enumerate(self.runs))

    def places(self, there: Labelled) -> tuple[Digits, Digits, Digits]:
        """Where a position in outer, middle and inner lies in a small array, that has the runs `there` only."""
        steps = strides(self.runs, there)
        cuts = (0, self.first), (self.first, self.last), (self.last, len(self.runs))
        outer, middle, inner = (digits(self.runs[a:b], steps[a:b]) for a, b in cuts)
        return outer, middle, inner

    def whole(self, most: int) -> Tile | None:
        """A tile that holds groups whole; None where they do not fit in `most` elements."""
        _, middle, inner = self.shape
        columns = block(inner, COLUMNS // 2)
        parts = pieces(middle)
        size = sum(parts) * columns
        if not self.holds_groups or size > most:
            return None
        return Tile(power_below(max(1, SHORT // size)), parts, columns)

    def cut(self) -> Tile:
        """A tile of which programs take one after the other in their part of the middle."""
        _, middle, inner = self.shape
        columns = block(inner, COLUMNS)
        rows = block(middle, TILE // columns)
        tiles = -(-middle // rows)
        steps = max(min(MOST_STEPS, -(-tiles // FEW_TILES)), -(-tiles // MOST_PARTS))
        return Tile(power_below(TILE // (rows * columns)), (rows,), columns, steps)

    def counts(self, tile: Tile) -> tuple[int, int, int]:
        """How many programs there are along each part."""
        outer, middle, inner = self.shape
        return -(-outer // (tile.outer * tile.repeats)), -(-middle // tile.part), -(-inner // tile.inner)

    def parted(self, tile: Tile) -> tuple[Run, ...]:
        """The runs of what one program each leaves of its part of the middle."""
        reduced = any(run.reduced for run in self.runs[self.first : self.last])
        parts = Run(self.counts(tile)[1], reduced, False)
        return (*self.runs[: self.first], parts, *self.runs[self.last :])


def merged(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The same with neighbours of equal labels, which batching makes, as one run."""
    together = groupby(runs, key=lambda run: (run.reduced, run.affine))
    return tuple(Run(prod(run.known for run in same), *labels) for labels, same in together)


def of_statistics(runs: tuple[Run, ...]) -> View:
    """The longest neighbours that share a statistic as the middle, the innermost of equal ones."""
    return _longest(runs, [list(same) for is_, same in _neighbours(runs) if is_])


def of_sums(runs: tuple[Run, ...]) -> View:
    """The longest run that shares a statistic and carries no parameters as the middle; else as for statistics.

    Sums over it serve the group and the parameters, and coefficients are constant along it.
    """
    pure = [[i] for i, run in enumerate(runs) if run.reduced and not run.affine]
    return _longest(runs, pure) if pure else of_statistics(runs)


def of_parameters(runs: tuple[Run, ...]) -> View:
    """The longest run that carries no parameters as the middle, which is empty where all do."""
    pure = [[i] for i, run in enumerate(runs) if not run.affine]
    return _longest(runs, pure) if pure else View(runs, 0, 0)


def counts_fit(runs: tuple[Run, ...]) -> bool:
    """Whether 32 bits hold positions in each part of a view and in what is known of groups and parts.

    The array itself may be larger: offsets in it are wider where they must be.

    >>> counts_fit((Run(2**23, False, False), Run(2**12, True, True)))
    True
    >>> counts_fit((Run(2**30, False, False), Run(8, True, True)))
    False
    """
    views = of_statistics(runs), of_sums(runs), of_parameters(runs)
    small = [prod(run.known for run in view.parted(view.cut())) for view in views]
    groups = len(LANES) * prod(run.known for run in runs if not run.reduced)
    return max(groups, *small, *(n for view in views for n in view.shape)) < 2**31


def _neighbours(runs: tuple[Run, ...]) -> list[tuple[bool, list[int]]]:
    return [(is_, list(same)) for is_, same in groupby(range(len(runs)), key=lambda i: runs[i].reduced)]


def _longest(runs: tuple[Run, ...], choices: list[list[int]]) -> View:
    best = max(choices, key=lambda some: (prod(runs[i].known for i in some), some[0]))
    return View(runs, best[0], best[-1] + 1)


def strides(runs: Sequence[Run], there: Labelled) -> list[int]:
    """How far apart neighbours along each run lie in an array that has the runs `there` only; 0 along the others."""
    out, stride = [], 1
    for run in reversed(runs):
        out.append(stride if there(run) else 0)
        stride *= run.known if there(run) else 1
    return out[::-1]


def digits(runs: Sequence[Run], steps: Sequence[int]) -> Digits:
    """The terms by which a position along `runs` becomes an offset in an array with these strides.

    >>> digits((Run(5, False, False), Run(3, True, True), Run(7, True, True)), (0, 7, 1))
    (Digit(below=1, length=21, stride=1),)
    """
    out: list[Digit] = []
    below = 1
    for run, stride in zip(reversed(runs), reversed(steps), strict=True):
        if stride and run.known > 1:
            last = out[-1] if out else None
            if last and last.below * last.length == below and last.stride * last.length == stride:
                out[-1] = last._replace(length=last.length * run.known)
            else:
                out.append(Digit(below, run.known, stride))
        below *= run.known
    return tuple(digit._replace(length=0) if digit.below * digit.length == below else digit for digit in out)


def power_below(n: int) -> int:
    """The largest power of two that is not larger; 1 for 0."""
    return 1 << (max(1, n).bit_length() - 1)


def power_above(n: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << (n - 1).bit_length()


def block(length: int, most: int) -> int:
    """The largest power of two up to `most` by whose multiples `length` is covered with little padding.

    Below 8 the padding does not count: too little would lie side by side.

    >>> block(64, 64), block(80, 64), block(5, 64)
    (64, 32, 8)
    """
    largest = min(most, power_above(length))
    sizes = [largest >> i for i in range(largest.bit_length()) if largest >> i >= min(8, largest)]
    padding = {size: 1 - length / (-(-length // size) * size) for size in sizes}
    few = [size for size in sizes if padding[size] <= PADDING]
    return few[0] if few else min(sizes, key=lambda size: padding[size])


def pieces(length: int) -> tuple[int, ...]:
    """Powers of two, falling, that cover `length` with little padding.

    >>> pieces(1024), pieces(1152), pieces(13), pieces(5)
    ((1024,), (1024, 128), (16,), (4, 1))
    """
    out: list[int] = []
    left = length
    while left > 0:
        if (sum(out) + power_above(left)) * (1 - PADDING) <= length:
            out.append(power_above(left))
        else:
            out.append(power_below(left))
        left -= out[-1]
    return tuple(out)
