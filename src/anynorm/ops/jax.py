"""JAX arrays: one function with a rule for its derivative; forward and reverse mode, vmap and jit all work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..kernels import composed
from ..plan import Plan
from ..plan import plan as make_plan
from ..precision import statistics_dtype
from ..spec import NormSpec
from . import layout
from .jax_linear import transposable

Array = Any


class Verbs:
    """What the composed formula is made of."""

    where, maximum, minimum, sqrt, clip = jnp.where, jnp.maximum, jnp.minimum, jnp.sqrt, jnp.clip
    zeros_like, ones_like, broadcast_to = jnp.zeros_like, jnp.ones_like, jnp.broadcast_to
    reshape, transpose = jnp.reshape, jnp.transpose
    constant, all = staticmethod(lax.stop_gradient), staticmethod(jnp.all)

    @staticmethod
    def dtype(x: Array) -> str:
        return str(x.dtype)

    @staticmethod
    def length(x: Array, d: int) -> Any:
        return x.shape[d]

    @staticmethod
    def number(n: Any, dtype: str) -> Array:
        return jnp.maximum(jnp.asarray(n, dtype), 1)

    @staticmethod
    def choose(quick_is_good: Array, quick: composed.Stats, mend: Callable[[], composed.Stats]) -> composed.Stats:
        return lax.cond(quick_is_good, lambda: composed.filled(Verbs, quick), mend)

    @staticmethod
    def squares(d: Array) -> Array:
        return d * d

    @staticmethod
    def multiply_add(x: Array, factor: Array, summand: Array) -> Array:
        return x * factor + summand

    @staticmethod
    def view(x: Array, dtype: str) -> Array:
        return lax.bitcast_convert_type(x, dtype)

    @staticmethod
    def sum(x: Array) -> Array:
        return x.sum(axis=1)

    @staticmethod
    def amin(x: Array) -> Array:
        return x.min(axis=1)

    @staticmethod
    def amax(x: Array) -> Array:
        return x.max(axis=1)


def is_traced() -> bool:
    """Whether a compiler is reading this very Python code; only torch's does."""
    return False


def dtype(x: Array) -> str:
    return str(x.dtype)


def shape(x: Array) -> tuple[int | None, ...]:
    return tuple(d if isinstance(d, int) else None for d in x.shape)


def convert(values: Any, like: Array) -> Array:
    return jnp.asarray(values)


# Compiled even where the caller is not: in eager mode JAX would compile the branch in `statistics` anew at every call.
@partial(jax.jit, static_argnames=("spec", "eps"))
def normalize(
    x: Array, scale: Array | None, offset: Array | None, mask: Array | None, spec: NormSpec, eps: float
) -> tuple[Array, Array, Array]:
    """y, mean and variance; the two statistics carry no gradient (`moments` does)."""
    return _normalize(x, scale, offset, mask, make_plan(spec, shape(x)), eps)


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _normalize(x: Array, scale: Array, offset: Array, mask: Array, plan: Plan, eps: float) -> tuple[Array, ...]:
    runs, scale, offset, mask = _enter(x, scale, offset, mask, plan)
    stats = composed.statistics(Verbs, runs, mask, plan, eps)
    y = composed.forward(Verbs, runs, scale, offset, stats, plan, mask)
    return layout.from_runs(Verbs, y, x, plan).astype(x.dtype), *_moments(x, stats, plan)


@_normalize.defjvp
def _normalize_jvp(plan: Plan, eps: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    x, scale, offset, mask = primals
    y, *moments = _normalize(x, scale, offset, mask, plan, eps)
    runs, _, _, runs_mask = _enter(x, None, None, mask, plan)
    stats = composed.statistics(Verbs, runs, runs_mask, plan, eps)
    out = pushforward((x, scale, mask, stats), tangents[:3], plan)
    return (y, *moments), (out, *(jnp.zeros_like(m) for m in moments))


def _push(saved: Any, tangents: Any, plan: Plan) -> Array:
    (x, scale, mask, stats), (t, t_scale, t_offset) = saved, tangents
    runs, scale, _, mask = _enter(x, scale, None, mask, plan)
    t, t_scale, t_offset, _ = _enter(t, t_scale, t_offset, None, plan)
    out = composed.tangent(Verbs, runs, t, scale, t_scale, t_offset, mask, stats, plan)
    return layout.from_runs(Verbs, out, x, plan).astype(x.dtype)


def _pull(saved: Any, dy: Array, likes: Any, plan: Plan) -> Any:
    x, scale, mask, stats = saved
    runs, scale, _, mask = _enter(x, scale, None, mask, plan)
    dy = layout.to_runs(Verbs, dy, plan).astype(runs.dtype)
    dx, *small = composed.backward(Verbs, runs, dy, scale, mask, stats, plan)
    dx = layout.from_runs(Verbs, dx, x, plan).astype(x.dtype)
    return dx, *(
        None if like is None else layout.small_from_runs(Verbs, s, plan.affine, like, plan).astype(like.dtype)
        for s, like in zip(small, likes, strict=True)
    )


pushforward = transposable("anynorm_pushforward", _push, _pull)


@partial(jax.jit, static_argnames="spec")
def moments(x: Array, mask: Array | None, spec: NormSpec) -> tuple[Array, Array]:
    plan = make_plan(spec, shape(x))
    runs, _, _, mask = _enter(x, None, None, mask, plan)
    return _moments(x, composed.statistics(Verbs, runs, mask, plan, 0.0), plan)


@partial(jax.jit, static_argnames=("spec", "eps"))
def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, spec: NormSpec, eps: float
) -> Array:
    """Normalize with mean and variance given from outside, over the sentence's kept axes."""
    plan = make_plan(spec, shape(x))
    runs, scale, offset, _ = _enter(x, scale, offset, None, plan)
    mean, variance = (layout.small_to_runs(Verbs, s, plan.kept, plan, x, affine=False) for s in (mean, variance))
    stats = composed.given(Verbs, mean.astype(runs.dtype), variance.astype(runs.dtype), eps)
    return layout.from_runs(Verbs, composed.forward(Verbs, runs, scale, offset, stats, plan), x, plan).astype(x.dtype)


def _enter(x: Array, scale: Array | None, offset: Array | None, mask: Array | None, plan: Plan) -> list[Any]:
    work = statistics_dtype(dtype(x))
    smalls = [layout.small_to_runs(Verbs, s, plan.affine, plan, x, affine=True) for s in (scale, offset)]
    mask = None if mask is None else layout.to_runs(Verbs, jnp.broadcast_to(mask, x.shape), plan)
    return [layout.to_runs(Verbs, x, plan).astype(work), *(s if s is None else s.astype(work) for s in smalls), mask]


def _moments(x: Array, stats: composed.Stats, plan: Plan) -> tuple[Array, ...]:
    return tuple(layout.statistic_from_runs(Verbs, s, x, plan) for s in (stats.mean(), stats.unscaled_variance()))
