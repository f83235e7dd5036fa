"""What one program of a grid reads and writes, and how a grid is launched.

Positions are vectors of shape [outer, 1, 1], [1, middle, 1] and [1, 1, inner], which broadcast to the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ...plan import Run
from .view import Digits, Tile, View

Array = Any
Ref = Any
Refs = dict[str, Ref]
Values = dict[str, Array]


class Spot(NamedTuple):
    """Positions along one part of the view, and which of them exist; None where all do."""

    at: Array
    there: Array | None
    length: int

    def inside(self) -> Array:
        """The positions, with those that do not exist at the last that does."""
        return self.at if self.there is None else jnp.minimum(self.at, self.length - 1)


class Spots(NamedTuple):
    """Where a tile lies."""

    outer: Spot
    middle: Spot
    inner: Spot

    def mask(self) -> Array | None:
        there = [spot.there for spot in self if spot.there is not None]
        if not there:
            return None
        both = there[0]
        for more in there[1:]:
            both = both & more
        return jnp.broadcast_to(both, tuple(spot.at.shape[i] for i, spot in enumerate(self)))

    def load(self, ref: Ref) -> Array:
        """The tile of an array shaped as the view, in float32, with 0 where there is nothing."""
        mask = self.mask()
        tile = triton.load(ref.at[tuple(spot.at for spot in self)], mask=mask, other=None if mask is None else 0.0)
        return tile.astype(jnp.float32)

    def store(self, ref: Ref, values: Array) -> None:
        shape = tuple(spot.at.shape[i] for i, spot in enumerate(self))
        values = jnp.broadcast_to(values, shape).astype(ref.dtype)
        triton.store(ref.at[tuple(spot.at for spot in self)], values, mask=self.mask())

    def offset(self, places: tuple[Digits, Digits, Digits]) -> Array:
        """Where the tile lies in a small array, in the shape of the parts along which that has a length."""
        out = jnp.zeros((1, 1, 1), jnp.int32)
        for spot, terms in zip(self, places, strict=True):
            if terms:
                out = out + offset(spot.inside(), terms)
        return out

    def small(self, ref: Ref, places: tuple[Digits, Digits, Digits], lanes: int = 1, lane: int = 0) -> Array:
        """Scale, offset or one lane of what is known of each group, to broadcast against the tile."""
        return triton.load(ref.at[self.offset(places) * lanes + lane]).astype(jnp.float32)


def offset(position: Array, terms: Digits) -> Array:
    """Of positions along some runs, the offsets in an array (see `Digit`)."""
    out = jnp.zeros_like(position)
    for below, length, stride in terms:
        digit = position if below == 1 else lax.div(position, jnp.full_like(position, below))
        digit = digit if not length else lax.rem(digit, jnp.full_like(position, length))
        out = out + digit * stride
    return out


def spot(start: Array | int, size: int, part: int, length: int, end: int | None = None) -> Spot:
    """`size` positions from `start`, of which those below `length` exist; `end` is the largest end that may occur."""
    shape = [1, 1, 1]
    shape[part] = size
    at = start + lax.broadcasted_iota(jnp.int32, shape, part)
    last = -(-length // size) * size if end is None else end
    return Spot(at, at < length if last > length else None, length)


class Program:
    """The program that runs: which outer positions, which part of the middle and which inner positions are its own."""

    def __init__(self, view: View, tile: Tile) -> None:
        self.view, self.tile = view, tile
        self.rows, self.parts, columns = view.counts(tile)
        rest, column = divided(pl.program_id(0), columns)
        self.row, self.part = divided(rest, self.parts)
        self.inner = spot(column * tile.inner, tile.inner, 2, view.shape[2])

    def outer(self, repeat: Array | int = 0) -> Spot:
        size, repeats = self.tile.outer, self.tile.repeats
        start = (self.row * repeats + repeat) * size
        return spot(start, size, 0, self.view.shape[0], self.rows * repeats * size)

    def pieces(self, repeat: Array | int = 0) -> list[Spots]:
        """The tile in which a program takes its part of the middle at once."""
        outer, length = self.outer(repeat), self.view.shape[1]
        out, start = [], 0
        for size in self.tile.pieces:
            end = start + size + (self.parts - 1) * self.tile.part
            middle = spot(self.part * self.tile.part + start, size, 1, length, end)
            out.append(Spots(outer, middle, self.inner))
            start += size
        return out

    def step(self, i: Array | int) -> Spots:
        """The i-th tile of the program's part of the middle."""
        (size,) = self.tile.pieces
        start = (self.part * self.tile.steps + i) * size
        return Spots(self.outer(), spot(start, size, 1, self.view.shape[1]), self.inner)

    def steps(self) -> Array | int:
        """How many tiles there are in this part: fewer in the last one."""
        (size,) = self.tile.pieces
        tiles, steps = -(-self.view.shape[1] // size), self.tile.steps
        return np.int32(steps) if tiles % steps == 0 else jnp.minimum(steps, tiles - self.part * steps)

    def left(self) -> Spots:
        """Where this program's part lies in [outer, parts, inner]."""
        part = jnp.full((1, 1, 1), self.part, jnp.int32)
        return Spots(self.outer(), Spot(part, None, self.parts), self.inner)


def divided(number: Array, by: int) -> tuple[Array, Array]:
    """Quotient and remainder of a number that is not negative."""
    if by == 1:
        return number, jnp.zeros_like(number)
    return lax.div(number, jnp.full_like(number, by)), lax.rem(number, jnp.full_like(number, by))


def over(tile: Array, axis: int, along: Callable[..., Array] = jnp.sum) -> Array:
    """A tile reduced to length 1 along an axis."""
    return tile if tile.shape[axis] == 1 else along(tile, axis=axis, keepdims=True)


def total(values: list[Array]) -> Array:
    """The sum over the middle, of length 1 then."""
    return reduce(jnp.add, [over(tile, 1, jnp.sum) for tile in values])


def least(values: list[Array]) -> Array:
    return reduce(jnp.minimum, [over(tile, 1, jnp.min) for tile in values])


def most(values: list[Array]) -> Array:
    return reduce(jnp.maximum, [over(tile, 1, jnp.max) for tile in values])


def launch(
    kernel: Callable[[Refs, Refs], None],
    name: str,
    programs: int,
    given: Values,
    wanted: dict[str, jax.ShapeDtypeStruct],
    warps: int,
    interpret: bool,
) -> Values:
    """Run `kernel(given, wanted)`, on references to the whole arrays, once for each program."""
    # Under shard_map JAX asks over which axes results vary: over those over which the arguments do.
    varying = jax.typeof(next(iter(given.values()))).manual_axis_type
    wanted = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, manual_axis_type=varying) for n, a in wanted.items()}
    call = pl.pallas_call(
        kernel,
        out_shape=wanted,
        grid=(programs,),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name=f"anynorm_{name}",
    )
    out: Values = call(given)
    return out


def launch_over(
    kernel: Callable[[Program, Refs, Refs], None],
    name: str,
    view: View,
    tile: Tile,
    given: Values,
    wanted: dict[str, jax.ShapeDtypeStruct],
    interpret: bool,
) -> Values:
    """A program for each tile of the view; x and dy are shaped as the view, and what is smaller is flat."""
    shaped = {name: a.reshape(view.shape if name in ("x", "dy") else -1) for name, a in given.items()}
    run = lambda given, wanted: kernel(Program(view, tile), given, wanted)  # noqa: E731
    return launch(run, name, prod(view.counts(tile)), shaped, wanted, tile.warps, interpret)


def kept(run: Run) -> bool:
    return not run.reduced


def affine(run: Run) -> bool:
    return run.affine


def array(shape: int | Sequence[int], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((shape,) if isinstance(shape, int) else tuple(shape), dtype)
