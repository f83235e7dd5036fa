"""Cells, each made of many parts that programs left: the second launch of what takes more than one."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from ...plan import Run
from .jax_tiles import Array, Refs, Spot, Values, launch, offset, spot
from .view import Digits, Labelled, block, digits, power_below, strides

# Parts that a program takes at once, and numbers that it holds meanwhile.
PARTS, HELD = 1024, 2048


class Cells:
    """The cells of one program: positions along the runs that are kept, and along the others the parts of each."""

    def __init__(self, runs: tuple[Run, ...], keep: Labelled, program: Any) -> None:
        self.runs, self.keep, self.program = runs, keep, program
        self.number, self.many = (prod(run.known for run in runs if keep(run) is is_) for is_ in (True, False))
        self.rows = block(self.many, PARTS)
        self.columns = power_below(HELD // self.rows)
        self.programs = -(-self.number // self.columns)

    @property
    def cell(self) -> Spot:
        return spot(self.program * self.columns, self.columns, 0, self.number)

    def part(self, i: Any) -> Spot:
        return spot(i * self.rows, self.rows, 1, self.many)

    def offset(self, i: Any, there: Labelled) -> Array:
        """Where the i-th parts lie in an array that has the runs `there` only."""
        steps = strides(self.runs, there)
        return offset(self.cell.inside(), self._digits(steps, True)) + offset(
            self.part(i).inside(), self._digits(steps, False)
        )

    def parts(self, i: Any) -> tuple[Array, Array | None]:
        """Where the i-th parts lie, and which of them there are."""
        return self.offset(i, lambda run: True), self.part(i).there

    def _digits(self, steps: list[int], kept: bool) -> Digits:
        some = [i for i, run in enumerate(self.runs) if self.keep(run) is kept]
        return digits([self.runs[i] for i in some], [steps[i] for i in some])

    def each(self, of: Callable[[Any], Any], join: Callable[[Any, Any], Any]) -> Any:
        """`of` all parts, those at hand at once after those before."""
        first = of(0)
        times = -(-self.many // self.rows)
        if times == 1:
            return first
        return lax.fori_loop(np.int32(1), np.int32(times), lambda i, sofar: join(sofar, of(i)), first)


def launch_join(
    kernel: Callable[[Cells, Refs, Refs], None],
    name: str,
    runs: tuple[Run, ...],
    keep: Labelled,
    given: Values,
    wanted: Values,
    interpret: bool,
) -> Values:
    """Make of parts shaped as `runs` one cell for each position along those that `keep` names."""
    cells = Cells(runs, keep, 0)
    warps = min(16, max(1, power_below(cells.columns * cells.rows // 256)))
    run = lambda given, wanted: kernel(Cells(runs, keep, pl.program_id(0)), given, wanted)  # noqa: E731
    return launch(run, name, cells.programs, given, wanted, warps, interpret)
