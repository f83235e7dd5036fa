"""Statistics inside a program: of elements, and of parts that programs left.

They are those of the differences d = x * power - shift (see precision.py), as in composed.py, but each part of a group
has its own power and shift until it is joined with others: a part is read once, and its neighbours are not known yet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from ...precision import FORMATS, largest_exponent
from ..composed import power_of_two
from .jax_tiles import Array, least, most, total

FORMAT = FORMATS["float32"]


class Words(NamedTuple):
    """What of a normalization a kernel must know besides the runs."""

    removes_mean: bool
    removes_scale: bool
    eps: float


class Part(NamedTuple):
    """Elements of which something is known: shift + residual is the mean of x * power, `squares` the sum of squares
    of the differences from it."""

    power: Array
    shift: Array
    residual: Array
    squares: Array
    count: Array


class _Verbs:
    """What `power_of_two` asks of a framework."""

    clip = staticmethod(jnp.clip)

    @staticmethod
    def view(x: Array, dtype: str) -> Array:
        return lax.bitcast_convert_type(x, jnp.dtype(dtype))

    @staticmethod
    def dtype(x: Array) -> str:
        return str(x.dtype)


def of_elements(tiles: list[Array], masks: list[Array | None], count: Any, words: Words) -> tuple[Part, list[Array]]:
    """A part, and the differences of its elements from their mean, 0 where there is no element."""
    low = least([_or(x, mask, float("inf")) for x, mask in zip(tiles, masks, strict=True)])
    high = most([_or(x, mask, -float("inf")) for x, mask in zip(tiles, masks, strict=True)])
    top = largest_exponent(words.eps if words.removes_scale else 0.0, FORMAT)
    power = power_of_two(_Verbs, jnp.maximum(-low, high), top, FORMAT)
    if not words.removes_scale:
        # As in composed.py: 1 / power times a scale stays in range.
        power = jnp.maximum(power, 2.0**-32)
    shift = residual = jnp.zeros_like(power)
    d = [x * power for x in tiles]
    if words.removes_mean:
        shift = jnp.clip(total(d) / count, low * power, high * power)
        d = [_or(a - shift, mask, 0.0) for a, mask in zip(d, masks, strict=True)]
        residual = total(d) / count
        d = [_or(a - residual, mask, 0.0) for a, mask in zip(d, masks, strict=True)]
    return Part(power, shift, residual, total([a * a for a in d]), jnp.full_like(power, count)), d


def _or(x: Array, mask: Array | None, other: float) -> Array:
    return x if mask is None else jnp.where(mask, x, other)


def joined(parts: list[Part]) -> Part:
    """One part of many, in a list and along the middle; those whose count is 0 are none."""
    power = least([part.power for part in parts])
    ratios = [power * _reciprocal(part.power) for part in parts]
    shifts = [part.shift * ratio for part, ratio in zip(parts, ratios, strict=True)]
    counts = [part.count for part in parts]
    some = [n > 0 for n in counts]
    count = total(counts)
    # Between the least and the largest of them, though its sum is rounded: equal shifts stay what they are.
    shift = jnp.clip(
        total([n * shift for n, shift in zip(counts, shifts, strict=True)]) / count,
        least([jnp.where(there, shift, float("inf")) for there, shift in zip(some, shifts, strict=True)]),
        most([jnp.where(there, shift, -float("inf")) for there, shift in zip(some, shifts, strict=True)]),
    )
    apart = [(own - shift) + part.residual * ratio for part, own, ratio in zip(parts, shifts, ratios, strict=True)]
    residual = total([n * d for n, d in zip(counts, apart, strict=True)]) / count
    squares = total(
        [
            jnp.where(there, part.squares * ratio * ratio + n * (d - residual) * (d - residual), 0.0)
            for part, ratio, n, there, d in zip(parts, ratios, counts, some, apart, strict=True)
        ]
    )
    return Part(power, shift, residual, squares, count)


def _reciprocal(power: Array) -> Array:
    """1 / power of a power of two, exact by its exponent bits: division on GPUs is not."""
    bits = lax.bitcast_convert_type(power, jnp.int32)
    return lax.bitcast_convert_type((2 * FORMAT.bias << FORMAT.mantissa) - bits, jnp.float32)


def finished(part: Part, count: float, words: Words) -> dict[str, Array]:
    """The lanes of `saved` for groups of which nothing is missing; `count` is known better than the parts' sum."""
    variance = part.squares / count
    if words.removes_scale:
        root = part.power * words.eps**0.5
        square = variance + root * root
        square = jnp.where(square < FORMAT.tiny, FORMAT.tiny, square)
        rstd = 1.0 / jnp.sqrt(square)
        # Division on GPUs is good to two units in the last place; this step of Newton's makes it one.
        rstd = rstd * (1.5 - 0.5 * (square * rstd) * rstd)
    else:
        rstd = _reciprocal(part.power)
    return {"power": part.power, "shift": part.shift, "residual": part.residual, "variance": variance, "rstd": rstd}
