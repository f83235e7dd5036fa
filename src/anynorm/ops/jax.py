"""JAX arrays: primitives with rules for derivatives and batching, so that all of JAX's transformations work."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..kernels.select import forced_by_environment, select
from ..plan import Plan
from ..plan import plan as make_plan
from ..precision import STATISTICS, statistics_dtype
from ..spec import NormSpec
from . import jax_devices, layout
from . import jax_formula as composed
from .jax_formula import Formula, Verbs
from .jax_primitives import call, forward_p, moments_p

Array = Any


def is_traced() -> bool:
    """Whether a compiler is reading this very Python code; only torch's does."""
    return False


def dtype(x: Array) -> str:
    return str(x.dtype)


def shape(x: Array) -> tuple[int | None, ...]:
    return tuple(d if isinstance(d, int) else None for d in x.shape)


def convert(values: Any, like: Array) -> Array:
    return jnp.asarray(values)


# Compiled even where the caller is not: in eager mode JAX would trace and compile each operation by itself.
@partial(jax.jit, static_argnames=("spec", "eps", "kernel", "statistics"))
def normalize(
    x: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    spec: NormSpec,
    eps: float,
    kernel: str | None = None,
    *,
    statistics: bool = True,
) -> tuple[Array, Array | None, Array | None]:
    """y, mean and variance; the two statistics carry no gradient (`moments` does).

    `statistics`: whether anybody asks for them; None may stand for them where not.
    """
    plan, formula = _plan(x, mask, spec, eps, kernel)
    scale, offset = _affine(x, scale, plan), _affine(x, offset, plan)
    given = {"x": layout.to_runs(Verbs, x, plan), "scale": scale, "offset": offset, "mask": _mask(x, mask, plan)}
    work = statistics_dtype(dtype(x))
    y, mean, variance = call(forward_p, formula, given, {"y": x.dtype, "mean": work, "variance": work}).values()
    return layout.from_runs(Verbs, y, x, plan), *(_statistics(x, mean, variance, plan) if statistics else (None, None))


def normalize_across(
    x: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    spec: NormSpec,
    eps: float,
    axis_name: Any,
    axis_index_groups: Any = None,
) -> tuple[Array, Array, Array]:
    """`normalize` with one mean and variance for the arrays along a named axis of `shard_map`, `pmap` or `vmap`."""
    plan, formula = _plan(x, mask, spec, eps, None)
    work = layout.to_runs(Verbs, x, plan).astype(statistics_dtype(dtype(x)))
    devices = jax_devices.Devices(axis_name, axis_index_groups)
    arrays = _affine(x, scale, plan), _affine(x, offset, plan), _mask(x, mask, plan)
    out = jax_devices.normalize(formula, work, *arrays, devices)
    y = layout.from_runs(Verbs, out["y"].astype(x.dtype), x, plan)
    return y, *_statistics(x, out["mean"], out["variance"], plan)


@partial(jax.jit, static_argnames=("spec", "kernel"))
def moments(x: Array, mask: Array | None, spec: NormSpec, kernel: str | None = None) -> tuple[Array, Array]:
    plan, formula = _plan(x, mask, spec, 0.0, kernel)
    given = {"x": layout.to_runs(Verbs, x, plan), "mask": _mask(x, mask, plan)}
    work = statistics_dtype(dtype(x))
    if formula.kernel == "composed":
        out = composed.moments(formula, **given)
    else:
        out = call(moments_p, formula, given, {"mean": work, "variance": work})
    return _statistics(x, out["mean"], out["variance"], plan)


@partial(jax.jit, static_argnames=("spec", "eps"))
def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, spec: NormSpec, eps: float
) -> Array:
    """Normalize with mean and variance given from outside, over the sentence's kept axes."""
    plan, formula = _plan(x, None, spec, eps, "composed")
    mean, variance = (layout.small_to_runs(Verbs, s, plan.kept, plan, x, affine=False) for s in (mean, variance))
    scale, offset = _affine(x, scale, plan), _affine(x, offset, plan)
    # Not by a kernel: XLA makes this one loop together with what comes before and after, and is as fast alone.
    y = composed.apply(formula, layout.to_runs(Verbs, x, plan), mean, variance, scale, offset)
    return layout.from_runs(Verbs, y, x, plan)


def _plan(x: Array, mask: Array | None, spec: NormSpec, eps: float, kernel: str | None) -> tuple[Plan, Formula]:
    plan = make_plan(spec, shape(x))
    # While a program is traced its arrays have no device; the one to which JAX will give it is known.
    device = jax.config.jax_default_device or jax.devices()[0]
    platform = device if isinstance(device, str) else device.platform
    chosen = select(plan, "jax", platform, dtype(x), kernel, mask is not None).kernel
    asked = (kernel or forced_by_environment()) is not None
    return plan, Formula(plan.labels, plan.removes_mean, plan.removes_scale, eps, chosen, x.shape, asked)


def _affine(x: Array, values: Array | None, plan: Plan) -> Array | None:
    """Scale or offset, shaped to broadcast against the runs."""
    if values is not None and dtype(values) not in STATISTICS:
        values = values.astype(statistics_dtype(dtype(x)))
    return layout.small_to_runs(Verbs, values, plan.affine, plan, x, affine=True)


def _mask(x: Array, mask: Array | None, plan: Plan) -> Array | None:
    return None if mask is None else layout.to_runs(Verbs, jnp.broadcast_to(mask, x.shape), plan)


def _statistics(x: Array, mean: Array, variance: Array, plan: Plan) -> tuple[Array, Array]:
    mean, variance = (layout.statistic_from_runs(Verbs, s, x, plan) for s in (mean, variance))
    return mean, variance
