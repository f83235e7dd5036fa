"""The gradients: sums of dy and dy * h over groups and over what shares parameters, and dx by means of them."""

from __future__ import annotations

from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ...plan import Run
from .jax_forward import normalized, store_lanes
from .jax_join import launch_join
from .jax_statistics import Words
from .jax_tiles import (
    Array,
    Program,
    Refs,
    Spots,
    Values,
    affine,
    array,
    kept,
    launch_over,
    launch_shaped,
    over,
    spot,
    total,
)  # fmt: skip
from .view import WHOLE_BACKWARD, Labelled, Tile, View, of_parameters, of_statistics, of_sums

# Programs that go through all rows, each with sums for the parameters of its own: a few for each of a GPU's processors.
ROW_PROGRAMS = 512


def backward(
    runs: tuple[Run, ...], words: Words, given: Values, dx_dtype: Any, parameters: bool, interpret: bool
) -> Values:
    """dx, and where they are asked for the sums `dscale` and `doffset`, in float32.

    Args:
        given: x, dy, saved, and scale where there is one; dx is that of dy * scale.
    """
    view = of_statistics(runs)
    tile = view.whole(WHOLE_BACKWARD)
    out: Values = {}
    sums = of_sums(runs)
    left = None
    if tile is None:
        pure = not any(run.affine for run in runs[sums.first : sums.last])
        left = _left(sums, given, not pure, interpret)
        groups = _totals(sums, left, kept, given if pure else {}, 1.0 / _count(runs), interpret)
        left = left if pure else None
        dx = {"dx": array(sums.shape, dx_dtype)}
        every = sums.cut()._replace(steps=1)
        out = launch_over(_dx(words, sums), "dx", sums, every, given | groups, dx, interpret)
    elif parameters and _is_rows(view):
        return _rows(view, tile, words, given, dx_dtype, interpret)
    else:
        dx = {"dx": array(view.shape, dx_dtype)}
        out = launch_over(_whole(words, view), "backward", view, tile, given, dx, interpret)
    if parameters:
        if left is None:
            sums = of_sums(runs) if any(run.reduced and not run.affine for run in runs) else of_parameters(runs)
            left = _left(sums, given, False, interpret)
        both = _totals(sums, left, affine, {}, 1.0, interpret)
        out |= {"dscale": both["sum_h"], "doffset": both["sum"]}
    return out


def _count(runs: tuple[Run, ...]) -> float:
    return float(prod(run.known for run in runs if run.reduced))


def _is_rows(view: View) -> bool:
    """Whether groups are rows, and the parameters lie along them and nowhere else."""
    return view.last == len(view.runs) and all(run.affine == (i >= view.first) for i, run in enumerate(view.runs))


# dx where a program holds groups whole


def _gradient(pieces: list[Spots], given: Refs, dx: Any, words: Words, view: View) -> list[tuple[Array, Array]]:
    """Store dx; dy and dy * h of each piece."""
    count = float(view.shape[1])
    found = []
    for piece in pieces:
        dy = piece.load(given["dy"])
        h, slope = normalized(piece.load(given["x"]), given["saved"], piece, view.places(kept))
        found.append((dy, h, slope, scaled(dy, given, piece, view)))
    along = total([g * h for _, h, _, g in found]) / count
    level = total([g for *_, g in found]) / count
    for piece, (_, h, slope, g) in zip(pieces, found, strict=True):
        piece.store(dx, projected(g, h, level, along, words) * slope)
    return [(dy, dy * h) for dy, h, *_ in found]


def scaled(dy: Array, given: Refs, spots: Spots, view: View) -> Array:
    return dy * spots.small(given["scale"], view.places(affine)) if "scale" in given else dy


def projected(g: Array, h: Array, level: Array, along: Array, words: Words) -> Array:
    """g without the parts that the removed moments take out."""
    if words.removes_mean:
        g = g - level
    return g - h * along if words.removes_scale else g


def _whole(words: Words, view: View) -> Any:
    def kernel(program: Program, given: Refs, wanted: Refs) -> None:
        _gradient(program.pieces(), given, wanted["dx"], words, view)

    return kernel


def _rows(view: View, tile: Tile, words: Words, given: Values, dx_dtype: Any, interpret: bool) -> Values:
    """dx of rows, and on the way the sums over rows for their parameters."""
    rows, length, _ = view.shape
    tiles = -(-rows // tile.outer)
    steps = -(-tiles // ROW_PROGRAMS)
    programs = -(-tiles // steps)

    def kernel(given: Refs, wanted: Refs) -> None:
        # Not within the loop, where an interpreter knows no programs.
        program, number = Program(view, tile), pl.program_id(0)

        def step(i: Any, sums: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
            first = (number * steps + i) * tile.outer
            outer = spot(first, tile.outer, 0, rows, programs * steps * tile.outer)
            pieces = [piece._replace(outer=outer) for piece in program.pieces()]
            new = _gradient(pieces, given, wanted["dx"], words, view)
            return [(a + over(dy, 0), b + over(dy_h, 0)) for (a, b), (dy, dy_h) in zip(sums, new, strict=True)]

        zeros = [(jnp.zeros((1, size, 1), jnp.float32),) * 2 for size in tile.pieces]
        sums = lax.fori_loop(np.int32(0), np.int32(steps), step, zeros)
        for piece, both in zip(program.pieces(), sums, strict=True):
            at = number * length + piece.middle.at
            for lane, values in enumerate(both):
                triton.store(wanted["left"].at[lane, at], values, mask=piece.middle.there)

    wanted = {"dx": array(view.shape, dx_dtype), "left": array([2, programs * length])}
    out = launch_shaped(kernel, "rows", view, programs, given, wanted, tile.warps, interpret)
    left = View((Run(programs, False, False), Run(length, True, True)), 0, 1)
    both = _totals(left, {"left": out["left"]}, affine, {}, 1.0, interpret, cut=False)
    return {"dx": out["dx"], "dscale": both["sum_h"], "doffset": both["sum"]}


# dx by sums that programs left


def _left(view: View, given: Values, weighted: bool, interpret: bool) -> Values:
    """The sums of dy and dy * h over each program's part of the middle; times scale where that is in there."""

    def kernel(program: Program, given: Refs, wanted: Refs) -> None:
        def sums(i: Any) -> tuple[Array, Array]:
            spots = program.step(i)
            dy = spots.load(given["dy"])
            dy = scaled(dy, given, spots, view) if weighted else dy
            h, _ = normalized(spots.load(given["x"]), given["saved"], spots, view.places(kept))
            return total([dy]), total([dy * h])

        both = sums(0)
        if program.tile.steps > 1:
            add = lambda i, sofar: tuple(a + b for a, b in zip(sofar, sums(i), strict=True))  # noqa: E731
            both = lax.fori_loop(np.int32(1), program.steps(), add, both)
        store_lanes(wanted["left"], program, both)

    tile = view.cut()
    wanted = {"left": array([2, prod(run.known for run in view.parted(tile))])}
    return launch_over(kernel, "sums", view, tile, given, wanted, interpret)


def _totals(
    view: View, left: Values, keep: Labelled, weights: Values, factor: float, interpret: bool, cut: bool = True
) -> Values:
    """The sums over all runs but those that `keep` names, of what programs left; times scale where it is given."""
    runs = view.parted(view.cut()) if cut else view.runs
    scale = {"scale": weights["scale"].reshape(-1)} if "scale" in weights else {}

    def kernel(cells: Any, given: Refs, wanted: Refs) -> None:
        def sums(i: Any) -> tuple[Array, Array]:
            at, there = cells.parts(i)
            weight = triton.load(given["scale"].at[cells.offset(i, affine)]).astype(jnp.float32) if scale else 1.0
            both = (triton.load(given["left"].at[lane, at]) * weight for lane in range(2))
            both = (a if there is None else jnp.where(there, a, 0.0) for a in both)
            first, second = (total([a]) for a in both)
            return first, second

        both = cells.each(sums, lambda one, other: tuple(a + b for a, b in zip(one, other, strict=True)))
        for name, values in zip(("sum", "sum_h"), both, strict=True):
            triton.store(wanted[name].at[cells.cell.at], values * factor, mask=cells.cell.there)

    number = prod(run.known for run in runs if keep(run))
    wanted = {"sum": array(number), "sum_h": array(number)}
    return launch_join(kernel, "totals", runs, keep, left | scale, wanted, interpret)


def _dx(words: Words, view: View) -> Any:
    def kernel(program: Program, given: Refs, wanted: Refs) -> None:
        spots, places = program.step(0), view.places(kept)
        h, slope = normalized(spots.load(given["x"]), given["saved"], spots, places)
        g = scaled(spots.load(given["dy"]), given, spots, view)
        level, along = (spots.small(given[name], places) for name in ("sum", "sum_h"))
        spots.store(wanted["dx"], projected(g, h, level, along, words) * slope)

    return kernel
