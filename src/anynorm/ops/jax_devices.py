"""JAX arrays that lie in parts on several devices: one mean and variance for all, by collectives over a named axis.

The parts first agree on a power and a shift, as `composed` does for one array. Of the differences x * power - shift a
float32 can carry the mean, so that means and variances of the parts can be joined at any offset and scale.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from ..kernels import composed
from ..plan import Plan
from ..precision import FORMATS, largest_exponent
from .jax_formula import Formula, Verbs
from .jax_primitives import call, moments_p

Array = Any


class Devices(NamedTuple):
    """Who shares statistics: the parts along a named axis, or those of one group of indices along it."""

    axis_name: Any
    axis_index_groups: Any = None

    def total(self, values: Array) -> Array:
        return lax.psum(values, self.axis_name, axis_index_groups=self.axis_index_groups)

    def largest(self, values: Array) -> Array:
        return lax.pmax(values, self.axis_name, axis_index_groups=self.axis_index_groups)


def normalize(
    formula: Formula,
    x: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    devices: Devices,
) -> dict[str, Array]:
    """y, mean and variance, all arrays shaped as runs and in the statistics' type; each part weighs its elements."""
    plan = formula.plan(x.shape)
    stats = _statistics(formula, x, mask, plan, devices)
    scale, offset = (None if a is None else a.astype(x.dtype) for a in (scale, offset))
    y = composed.forward(Verbs, x, scale, offset, stats, plan, mask)
    mean, variance = (lax.stop_gradient(values) for values in (stats.mean(), stats.unscaled_variance()))
    return {"y": y, "mean": mean, "variance": variance}


def _statistics(formula: Formula, x: Array, mask: Array | None, plan: Plan, devices: Devices) -> composed.Stats:
    reduced = tuple(i for i, run in enumerate(plan.runs) if run.reduced)
    fmt, elements = FORMATS[str(x.dtype)], prod(x.shape[i] for i in reduced)

    def valid(values: Array) -> Array:
        return values if mask is None else jnp.where(mask, values, 0.0)

    local = elements if mask is None else valid(jnp.ones_like(x)).sum(reduced, keepdims=True)
    total = devices.total(local)
    weight = local / jnp.maximum(jnp.asarray(total, x.dtype), 1)

    power = jnp.ones((), x.dtype)
    if plan.removes_scale:
        peak = jnp.abs(lax.stop_gradient(valid(x))).max(reduced, keepdims=True, initial=0.0)
        power = composed.power_of_two(Verbs, devices.largest(peak), largest_exponent(formula.eps, fmt), fmt)
    d = x * power
    shift = jnp.zeros_like(power)
    if plan.removes_mean:
        shift = devices.total(weight * lax.stop_gradient(_moments(formula, d, mask)[0]))
        d = d - shift
    mean, variance = _moments(formula, d, mask)
    residual = devices.total(weight * mean) if plan.removes_mean else jnp.zeros_like(shift)
    apart = mean - residual
    variance = devices.total(weight * (variance + apart * apart))
    if plan.removes_scale:
        root = power * formula.eps**0.5
        rstd = 1.0 / jnp.sqrt(jnp.maximum(variance + root * root, fmt.tiny))
    else:
        rstd = jnp.ones_like(variance)
    if mask is not None:
        rstd = jnp.where(total > 0, rstd, 0.0)
    return composed.Stats(power, shift, residual, variance, rstd, total)


def _moments(formula: Formula, x: Array, mask: Array | None) -> list[Array]:
    wanted = {"mean": x.dtype, "variance": x.dtype}
    return list(call(moments_p, formula, {"x": x, "mask": mask}, wanted).values())
