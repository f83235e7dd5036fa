"""Statistics and y: in one launch where a program holds groups whole, else of parts, of groups, and of elements."""

from __future__ import annotations

from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import triton

from ...plan import Run
from .jax_join import Cells, launch_join
from .jax_statistics import Part, Words, finished, joined, of_elements
from .jax_tiles import Array, Program, Refs, Spots, Values, affine, array, kept, launch_over
from .view import LANES, PART, WHOLE_FORWARD, Digits, View, of_statistics, of_sums


def forward(runs: tuple[Run, ...], words: Words, given: Values, y_dtype: Any, interpret: bool) -> Values:
    """`saved` of every group, [groups * lanes], and y where its type is given.

    Args:
        given: x, and scale and offset where there are any.
    """
    view = of_statistics(runs)
    saved = array(prod(run.known for run in runs if not run.reduced) * len(LANES))
    tile = view.whole(WHOLE_FORWARD)
    if tile is not None:
        y = {} if y_dtype is None else {"y": array(view.shape, y_dtype)}
        return launch_over(_whole(words, view), "forward", view, tile, given, {"saved": saved, **y}, interpret)
    tile = view.cut()
    left = view.parted(tile)
    parts = {"parts": array([len(PART), prod(run.known for run in left)])}
    parts = launch_over(_parts(words), "parts", view, tile, {"x": given["x"]}, parts, interpret)
    out = launch_join(_join(words, view, tile.part), "join", left, kept, parts, {"saved": saved}, interpret)
    if y_dtype is None:
        return out
    view = of_sums(runs)
    y, every = {"y": array(view.shape, y_dtype)}, view.cut()._replace(steps=1)
    return out | launch_over(_apply(view), "apply", view, every, given | out, y, interpret)


def _whole(words: Words, view: View) -> Any:
    def kernel(program: Program, given: Refs, wanted: Refs) -> None:
        pieces, count = program.pieces(), float(view.shape[1])
        tiles = [piece.load(given["x"]) for piece in pieces]
        part, d = of_elements(tiles, [piece.middle.there for piece in pieces], count, words)
        stats = finished(part, count, words)
        # Groups are one for each outer and inner position.
        at = program.outer().at * view.shape[2] + program.inner.at
        for lane, values in enumerate(stats.values()):
            triton.store(wanted["saved"].at[at * len(LANES) + lane], values, mask=program.left().mask())
        if "y" in wanted:
            for piece, a in zip(pieces, d, strict=True):
                piece.store(wanted["y"], _with_parameters(a * stats["rstd"], given, piece, view))

    return kernel


def _with_parameters(h: Array, given: Refs, spots: Spots, view: View) -> Array:
    """h * scale + offset, of those that there are."""
    places = view.places(affine)
    if "scale" in given:
        h = h * spots.small(given["scale"], places)
    if "offset" in given:
        h = h + spots.small(given["offset"], places)
    return h


def _parts(words: Words) -> Any:
    def kernel(program: Program, given: Refs, wanted: Refs) -> None:
        def part(i: Any) -> Part:
            spots = program.step(i)
            (size,) = program.tile.pieces
            first = (program.part * program.tile.steps + i) * size
            count = jnp.minimum(size, program.view.shape[1] - first).astype(jnp.float32)
            return of_elements([spots.load(given["x"])], [spots.middle.there], count, words)[0]

        sofar = part(0)
        if program.tile.steps > 1:
            more = lambda i, sofar: joined([sofar, part(i)])  # noqa: E731
            sofar = lax.fori_loop(np.int32(1), program.steps(), more, sofar)
        store_lanes(wanted["parts"], program, sofar[: len(PART)])

    return kernel


def store_lanes(ref: Any, program: Program, lanes: tuple[Array, ...]) -> None:
    """What the program leaves of its part, into [lanes, outer * parts * inner]."""
    spots = program.left()
    at = (spots.outer.at * program.parts + spots.middle.at) * program.view.shape[2] + spots.inner.at
    for lane, values in enumerate(lanes):
        triton.store(ref.at[lane, at], values, mask=spots.mask())


def _join(words: Words, view: View, part: int) -> Any:
    """`saved` of groups, of parts that are `part` elements of the middle each, but for the last ones."""
    length, count = view.shape[1], float(prod(run.known for run in view.runs if run.reduced))

    def kernel(cells: Cells, given: Refs, wanted: Refs) -> None:
        middle = cells.runs[view.first]

        def some(i: Any) -> Part:
            at, there = cells.parts(i)
            first = cells.offset(i, lambda run: run is middle) * part
            elements = jnp.broadcast_to(jnp.minimum(part, length - first).astype(jnp.float32), at.shape)
            if there is not None:
                elements = jnp.where(there, elements, 0.0)
            lanes = {name: triton.load(given["parts"].at[lane, at]) for lane, name in enumerate(PART)}
            return joined([Part(**lanes, count=elements)])

        whole = cells.each(some, lambda one, other: joined([one, other]))
        for lane, values in enumerate(finished(whole, count, words).values()):
            triton.store(wanted["saved"].at[cells.cell.at * len(LANES) + lane], values, mask=cells.cell.there)

    return kernel


def _apply(view: View) -> Any:
    def kernel(program: Program, given: Refs, wanted: Refs) -> None:
        spots = program.step(0)
        h, _ = normalized(spots.load(given["x"]), given["saved"], spots, view.places(kept))
        spots.store(wanted["y"], _with_parameters(h, given, spots, view))

    return kernel


def normalized(x: Array, saved: Any, spots: Spots, places: tuple[Digits, Digits, Digits]) -> tuple[Array, Array]:
    """h = (x - mean) / sqrt(var + eps), and 1 / sqrt(var + eps)."""
    power, shift, residual, rstd = (
        spots.small(saved, places, len(LANES), LANES.index(name)) for name in ("power", "shift", "residual", "rstd")
    )
    return ((x * power - shift) - residual) * rstd, power * rstd
