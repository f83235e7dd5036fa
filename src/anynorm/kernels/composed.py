"""The formula in a framework's own primitives, along the plan: the answer wherever no kernel of ours can run.

Every function takes `v`, the framework's verbs (see `ops/`), and arrays shaped as the plan's runs. Reductions go over
what lies contiguously first, then over the outermost run, which keeps channels in the vector lanes, and combine the
small rest afterwards; what is constant within a channel is folded into one factor and one summand.

The statistics are those of the differences d = x * power - shift (see precision.py), found in two ways:

    quickly     power 1 and shift 0, the mean and then the variance: two readings of x. A group whose mean is many
                standard deviations away from 0, or whose squares are out of range, is found out, and then:
    carefully   power brings the group's largest element near 1, and shift is the mean, rounded and kept between the
                least and the largest element; five readings of x. Only the groups that need it take this answer, so
                that in arrays of one shape no group's result depends on its neighbours

`residual` is the mean of the differences. Shift and residual together are the mean: one float32 could not carry it at
offset 1e6. In a constant group every difference is exactly zero. rstd = 1 / sqrt(variance + eps * power^2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..plan import Plan
from ..precision import FORMATS, GOOD_SHIFT, Format, largest_exponent
from .runs import Runs

Array = Any
Verbs = Any


class Stats(NamedTuple):
    """Per group, in the runs' shape with length 1 where a run is reduced; `count` is a number without a mask.

    No power is a power of 1, no shift and no residual are 0.
    """

    power: Array | None
    shift: Array | None
    residual: Array | None
    variance: Array
    rstd: Array
    count: Any

    def mean(self) -> Array:
        parts = [part for part in (self.shift, self.residual) if part is not None]
        mean = sum(parts[1:], parts[0]) if parts else 0.0 * self.variance
        return mean if self.power is None else mean / self.power

    def unscaled_variance(self) -> Array:
        return self.variance if self.power is None else self.variance / self.power / self.power

    def slope(self) -> Array:
        """dh/dx where the statistics stand still: 1 / sqrt(var + eps) of x itself."""
        return self.rstd if self.power is None else self.power * self.rstd


def statistics(v: Verbs, x: Array, mask: Array | None, plan: Plan, eps: float) -> Stats:
    """The statistics of every group; differentiable, with power and shift as constants."""
    if plan.empty:
        return filled(v, _quickly(v, x, plan, eps)[0])
    if mask is not None:
        return _carefully(v, x, mask, plan, eps)
    quick, good = _quickly(v, x, plan, eps)
    chosen: Stats = v.choose(v.all(good), quick, lambda: mended(v, x, quick, good, plan, eps))
    return chosen


def mended(v: Verbs, x: Array, quick: Stats, good: Array, plan: Plan, eps: float) -> Stats:
    """The quick statistics where they are good, careful ones elsewhere."""
    full, careful = filled(v, quick), _carefully(v, x, None, plan, eps)
    power, shift, residual, variance, rstd = (v.where(good, a, b) for a, b in zip(full[:-1], careful[:-1], strict=True))
    return Stats(power, shift, residual, variance, rstd, full.count)


def filled(v: Verbs, stats: Stats) -> Stats:
    """The same with nothing left out, for frameworks in which both ways must look alike."""
    neutral = {
        "power": v.ones_like(stats.rstd),
        "shift": v.zeros_like(stats.rstd),
        "residual": v.zeros_like(stats.rstd),
    }
    return stats._replace(**{name: value for name, value in neutral.items() if getattr(stats, name) is None})


def _quickly(v: Verbs, x: Array, plan: Plan, eps: float) -> tuple[Stats, Array]:
    """Statistics about 0, and for which groups they are good."""
    runs, fmt = Runs(v, x, plan), FORMATS[v.dtype(x)]
    count = runs.count()
    d, residual = runs.fold(x), None
    if plan.removes_mean:
        residual = runs.group(v.sum, d) / count
        squares = v.squares(d - runs.spread(residual))
    else:
        squares = d * d
    variance = runs.group(v.sum, squares) / count
    rstd = 1.0 / v.sqrt(v.maximum(variance + eps, fmt.tiny)) if plan.removes_scale else v.ones_like(variance)
    return Stats(None, None, residual, variance, rstd, count), are_good(residual, variance, plan, eps, fmt)


def are_good(mean: Array | None, variance: Array, plan: Plan, eps: float, fmt: Format) -> Array:
    """For which groups statistics about 0 keep the precision contract."""
    good = variance <= fmt.high
    if plan.removes_scale and eps < fmt.low:
        good = good & (variance >= fmt.low)
    if mean is None:
        return good
    # Below 1e-19 the squares of both are 0 in float32, which says nothing about their ratio.
    return good & (mean * mean <= GOOD_SHIFT**2 * variance) & ((variance > 0) | (mean == 0))


def _carefully(v: Verbs, x: Array, mask: Array | None, plan: Plan, eps: float) -> Stats:
    """Statistics of any finite input, with or without a mask."""
    runs, fmt = Runs(v, x, plan), FORMATS[v.dtype(x)]
    x, mask = runs.fold(x), None if mask is None else runs.fold(mask)

    def valid(values: Array) -> Array:
        return values if mask is None else v.where(mask, values, 0.0)

    if mask is None:
        least, largest, count = x, x, runs.count()
    else:
        least, largest = v.where(mask, x, float("inf")), v.where(mask, x, -float("inf"))
        count = v.maximum(runs.group(v.sum, valid(v.ones_like(x))), 1.0)
    low, high = v.constant(runs.group(v.amin, least)), v.constant(runs.group(v.amax, largest))
    some = ~(low > high)
    if mask is not None or not isinstance(count, float):
        low, high = v.where(some, low, 0.0), v.where(some, high, 0.0)

    power = power_of_two(v, v.maximum(-low, high), largest_exponent(eps if plan.removes_scale else 0.0, fmt), fmt)
    if not plan.removes_scale:
        # Nothing is squared, so this is enough for the sum, and 1 / power times a scale stays in range.
        power = v.maximum(power, 2.0**-32)
    d = x * runs.spread(power)
    shift = residual = v.zeros_like(power)
    if plan.removes_mean:
        mean = v.constant(runs.group(v.sum, valid(d))) / count
        shift = v.minimum(v.maximum(mean, low * power), high * power)
        d = d - runs.spread(shift)
        residual = runs.group(v.sum, valid(d)) / count
        d = d - runs.spread(residual)
    d = valid(d)
    variance = runs.group(v.sum, d * d) / count
    if plan.removes_scale:
        root = power * eps**0.5
        rstd = 1.0 / v.sqrt(v.maximum(variance + root * root, fmt.tiny))
    else:
        rstd = 1.0 / power
    if mask is not None:
        rstd = v.where(some, rstd, 0.0)
    return Stats(power, shift, residual, variance, rstd, count)


def forward(
    v: Verbs, x: Array, scale: Array | None, offset: Array | None, stats: Stats, plan: Plan, mask: Array | None = None
) -> Array:
    """y = (x - mean) * rstd * scale + offset."""
    runs = Runs(v, x, plan)
    d = _differences(runs, x, stats, mask)
    if not plan.folds:
        h = (d if stats.residual is None else d - stats.residual) * stats.rstd
        if scale is None:
            return h if offset is None else h + offset
        return h * scale if offset is None else v.multiply_add(h, scale, offset)
    factor = stats.rstd if scale is None else stats.rstd * scale
    summand = None if stats.residual is None else -stats.residual * factor
    if offset is not None:
        summand = offset if summand is None else summand + offset
    factor = runs.spread(factor)
    return runs.unfold(d * factor if summand is None else v.multiply_add(d, factor, runs.spread(summand)))


def backward(
    v: Verbs, x: Array, dy: Array, scale: Array | None, mask: Array | None, stats: Stats, plan: Plan
) -> tuple[Array, Array, Array]:
    """dx, dscale and doffset, each moment removed being one projection out of g = dy * scale.

    The sums over a channel come first: they are dscale and doffset, and the group's two means follow from them.
    """
    runs = Runs(v, x, plan)
    d, dy = _differences(runs, x, stats, mask), runs.fold(dy)
    if stats.residual is not None:
        # Taken out of the sum below instead, it would cancel most of it where dy has an offset.
        d = d - runs.spread(stats.residual)
    sum_dy = runs.inner_sum(dy)
    sum_dy_h = runs.inner_sum(dy * d) * stats.rstd
    dscale, doffset = runs.sum_to_affine(sum_dy_h), runs.sum_to_affine(sum_dy)

    g, g_h = (sum_dy, sum_dy_h) if scale is None else (sum_dy * scale, sum_dy_h * scale)
    slope = stats.slope()
    zero = v.zeros_like(stats.rstd)
    along = slope * (stats.rstd * runs.sum_to_group(g_h) / stats.count) if plan.removes_scale else zero
    level = slope * (runs.sum_to_group(g) / stats.count) if plan.removes_mean else zero
    taken = v.multiply_add(d, runs.spread(-along), runs.spread(-level))
    if mask is not None:
        taken = v.where(runs.fold(mask), taken, 0.0)
    dx = v.multiply_add(dy, runs.spread(slope if scale is None else slope * scale), taken)
    return runs.unfold(dx), dscale, doffset


def moments_backward(
    v: Verbs, x: Array, dmean: Array, dvariance: Array, mask: Array | None, stats: Stats, plan: Plan
) -> Array:
    """dx of mean and variance: (dmean + 2 * dvariance * (x - mean)) / count."""
    stats = filled(v, stats)
    centred = ((x * stats.power - stats.shift) - stats.residual) / stats.power
    dx = (dmean + 2.0 * dvariance * centred) / stats.count
    return dx if mask is None else v.where(mask, dx, 0.0)


def tangent(
    v: Verbs,
    x: Array,
    t: Array,
    scale: Array | None,
    t_scale: Array | None,
    t_offset: Array | None,
    mask: Array | None,
    stats: Stats,
    plan: Plan,
) -> Array:
    """The derivative of y along (t, t_scale, t_offset); `backward` is its transpose.

    rstd * (t - mean(t) - h * mean(t * h)) * scale + h * t_scale + t_offset
    """
    runs = Runs(v, x, plan)
    h = _differences(runs, x, stats, mask)
    h = (h if stats.residual is None else h - runs.spread(stats.residual)) * runs.spread(stats.rstd)
    t = runs.fold(t)

    def valid(values: Array) -> Array:
        return values if mask is None else v.where(runs.fold(mask), values, 0.0)

    out = t
    if plan.removes_mean:
        out = out - runs.spread(runs.sum_to_group(runs.inner_sum(valid(t))) / stats.count)
    if plan.removes_scale:
        out = out - h * runs.spread(runs.sum_to_group(runs.inner_sum(valid(t * h))) / stats.count)
    slope = stats.slope()
    out = out * runs.spread(slope if scale is None else slope * scale)
    if t_scale is not None:
        out = out + h * runs.spread(t_scale)
    return runs.unfold(out if t_offset is None else out + runs.spread(t_offset))


def given(v: Verbs, mean: Array, variance: Array, eps: float) -> Stats:
    """Mean and variance from outside (running ones, say), in the form of those computed here."""
    rstd = 1.0 / v.sqrt(v.maximum(variance + eps, FORMATS[v.dtype(variance)].tiny))
    return Stats(None, mean, None, variance, rstd, 1.0)


def _differences(runs: Runs, x: Array, stats: Stats, mask: Array | None) -> Array:
    """x * power - shift, folded."""
    v, d = runs.v, runs.fold(x)
    if stats.power is not None:
        d = d * runs.spread(stats.power)
    if stats.shift is not None:
        d = d - runs.spread(stats.shift)
    if mask is None:
        return d
    # Padding may be NaN or overflow here, and 0 times that is NaN: a cotangent of 0 could not keep it out.
    finite = (d > -float("inf")) & (d < float("inf"))
    some = runs.spread(stats.rstd) != 0
    return v.where((runs.fold(mask) | finite) & some, d, 0.0)


def power_of_two(v: Verbs, largest: Array, top: int, fmt: Format) -> Array:
    """The power of two that brings `largest` into [1, 2), made from its exponent bits, and at most 2^top."""
    unit = 2**fmt.mantissa
    exponent = 2 * fmt.bias - v.view(largest, fmt.bits) // unit
    return v.view(v.clip(exponent, 1, fmt.bias + top) * unit, v.dtype(largest))
