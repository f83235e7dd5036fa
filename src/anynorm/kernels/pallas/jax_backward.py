"""The gradients: sums of dy and dy * h over groups and over what shares parameters, and dx by means of them."""

from __future__ import annotations

from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import triton

from ...plan import Run
from .jax_forward import normalized, store_lanes
from .jax_join import Cells, launch_join
from .jax_statistics import Words
from .jax_tiles import Array, Program, Refs, Spots, Values, affine, array, kept, launch_over, over, total
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
    view, sums = of_statistics(runs), of_sums(runs)
    tile = view.whole(WHOLE_BACKWARD)
    # Over runs without parameters: the sums of a group and of what shares parameters are both made of these.
    for_both = not _affine_middle(sums)
    means: Values = {}
    left: tuple[tuple[Run, ...], Values] | None = None
    if tile is None:
        view, tile = sums, sums.cut()._replace(steps=1)
        parts = _sums(sums, given, not for_both, interpret)
        count = prod(run.known for run in runs if run.reduced)
        means = _totals(*parts, kept, given if for_both else {}, 1.0 / count, interpret)
        left = parts if for_both else None

    wanted = {"dx": array(view.shape, dx_dtype)}
    on_the_way: tuple[Run, ...] = ()
    if parameters and left is None:
        tile, on_the_way = _on_the_way(view, tile, not means)
    if on_the_way:
        wanted["left"] = array([2, prod(run.known for run in on_the_way)])
    out = launch_over(_dx(words, view), "dx", view, tile, given | means, wanted, interpret)
    if not parameters:
        return out

    if on_the_way:
        left = on_the_way, {"left": out["left"]}
    elif left is None:
        left = _sums(sums if for_both else of_parameters(runs), given, False, interpret)
    both = _totals(*left, affine, {}, 1.0, interpret)
    return {"dx": out["dx"], "dscale": both["sum_h"], "doffset": both["sum"]}


def _on_the_way(view: View, tile: Tile, whole: bool) -> tuple[Tile, tuple[Run, ...]]:
    """The tile for dx, and the runs of the sums for parameters that its programs leave; none where they cannot."""
    if _is_rows(view):
        # One program takes many rows: each leaves as many sums as a row is long.
        rows, parts, _ = view.counts(tile)
        tile = tile._replace(repeats=-(-rows // max(1, ROW_PROGRAMS // parts)))
        return tile, (Run(view.counts(tile)[0], False, False), Run(view.shape[1], True, True))
    if whole and not _affine_middle(view):
        return tile, view.parted(tile)
    return tile, ()


def _affine_middle(view: View) -> bool:
    return any(run.affine for run in view.runs[view.first : view.last])


def _is_rows(view: View) -> bool:
    """Whether groups are rows, and the parameters lie along them and nowhere else."""
    return view.last == len(view.runs) and all(run.affine == (i >= view.first) for i, run in enumerate(view.runs))


def _dx(words: Words, view: View) -> Any:
    """dx, by the groups' means of g and g * h where they are given, else by those of groups that are whole here."""
    places, count = view.places(kept), float(view.shape[1])

    def kernel(program: Program, given: Refs, wanted: Refs) -> None:
        def once(repeat: Any) -> list[tuple[Array, Array]]:
            """Store dx; dy and dy * h."""
            found = []
            for piece in (pieces := program.pieces(repeat)):
                h, slope = normalized(piece.load(given["x"]), given["saved"], piece, places)
                dy = piece.load(given["dy"])
                found.append((dy, h, slope, _scaled(dy, given, piece, view)))
            if "sum" in given:
                level, along = (pieces[0].small(given[name], places) for name in ("sum", "sum_h"))
            else:
                level, along = total([g for *_, g in found]) / count, total([g * h for _, h, _, g in found]) / count
            for piece, (_, h, slope, g) in zip(pieces, found, strict=True):
                piece.store(wanted["dx"], _projected(g, h, level, along, words) * slope)
            return [(dy, dy * h) for dy, h, *_ in found]

        if "left" not in wanted or not _is_rows(view):
            each = once(0)
            if "left" in wanted:
                store_lanes(wanted["left"], program, (total([dy for dy, _ in each]), total([dy_h for _, dy_h in each])))
            return

        def more(repeat: Any, sofar: Any) -> Any:
            pairs = zip(sofar, once(repeat), strict=True)
            return [tuple(a + over(b, 0) for a, b in zip(one, other, strict=True)) for one, other in pairs]

        zeros = [(jnp.zeros((1, size, 1), jnp.float32),) * 2 for size in program.tile.pieces]
        sums = lax.fori_loop(np.int32(0), np.int32(program.tile.repeats), more, zeros)
        for piece, both in zip(program.pieces(), sums, strict=True):
            at = program.row * view.shape[1] + piece.middle.at
            for lane, values in enumerate(both):
                triton.store(wanted["left"].at[lane, at], values, mask=piece.middle.there)

    return kernel


def _scaled(dy: Array, given: Refs, spots: Spots, view: View) -> Array:
    return dy * spots.small(given["scale"], view.places(affine)) if "scale" in given else dy


def _projected(g: Array, h: Array, level: Array, along: Array, words: Words) -> Array:
    """g without the parts that the removed moments take out."""
    if words.removes_mean:
        g = g - level
    return g - h * along if words.removes_scale else g


def _sums(view: View, given: Values, weighted: bool, interpret: bool) -> tuple[tuple[Run, ...], Values]:
    """The sums of dy and dy * h, times scale if `weighted`, over each program's part of the middle; and their runs."""

    def kernel(program: Program, given: Refs, wanted: Refs) -> None:
        def sums(i: Any) -> tuple[Array, Array]:
            spots = program.step(i)
            dy = spots.load(given["dy"])
            dy = _scaled(dy, given, spots, view) if weighted else dy
            h, _ = normalized(spots.load(given["x"]), given["saved"], spots, view.places(kept))
            return total([dy]), total([dy * h])

        both = sums(0)
        if program.tile.steps > 1:
            add = lambda i, sofar: tuple(a + b for a, b in zip(sofar, sums(i), strict=True))  # noqa: E731
            both = lax.fori_loop(np.int32(1), program.steps(), add, both)
        store_lanes(wanted["left"], program, both)

    tile = view.cut()
    runs = view.parted(tile)
    wanted = {"left": array([2, prod(run.known for run in runs)])}
    return runs, launch_over(kernel, "sums", view, tile, given, wanted, interpret)


def _totals(
    runs: tuple[Run, ...], left: Values, keep: Labelled, weights: Values, factor: float, interpret: bool
) -> Values:
    """The sums over all runs but those that `keep` names, of what programs left; times scale where it is given."""
    scale = {"scale": weights["scale"].reshape(-1)} if "scale" in weights else {}
    number = prod(run.known for run in runs if keep(run))
    if not scale and factor == 1.0 and number == prod(run.known for run in runs):
        return {"sum": left["left"][0], "sum_h": left["left"][1]}

    def kernel(cells: Cells, given: Refs, wanted: Refs) -> None:
        def sums(i: Any) -> tuple[Array, ...]:
            at, there = cells.parts(i)
            weight = triton.load(given["scale"].at[cells.offset(i, affine)]).astype(jnp.float32) if scale else 1.0
            both = (triton.load(given["left"].at[lane, at]) * weight for lane in range(2))
            return tuple(total([a if there is None else jnp.where(there, a, 0.0)]) for a in both)

        both = cells.each(sums, lambda one, other: tuple(a + b for a, b in zip(one, other, strict=True)))
        for name, values in zip(("sum", "sum_h"), both, strict=True):
            triton.store(wanted[name].at[cells.cell.at], values * factor, mask=cells.cell.there)

    wanted = {"sum": array(number), "sum_h": array(number)}
    return launch_join(kernel, "totals", runs, keep, left | scale, wanted, interpret)
