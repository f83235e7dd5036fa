"""NumPy arrays: by the CPU kernels where they have loops, else composed in float64; there are no gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels import composed
from ..kernels.cpu import numpy as kernels
from ..kernels.select import select
from ..plan import Plan
from ..plan import plan as make_plan
from ..spec import NormSpec
from . import layout

Array = Any


class Verbs:
    """What the composed formula is made of."""

    where, maximum, minimum, sqrt, clip = np.where, np.maximum, np.minimum, np.sqrt, np.clip
    zeros_like, ones_like, broadcast_to = np.zeros_like, np.ones_like, np.broadcast_to
    reshape, transpose = np.reshape, np.transpose

    @staticmethod
    def dtype(x: Array) -> str:
        return str(x.dtype)

    @staticmethod
    def length(x: Array, d: int) -> int:
        return int(x.shape[d])

    @staticmethod
    def view(x: Array, dtype: str) -> Array:
        return x.view(dtype)

    @staticmethod
    def all(x: Array) -> bool:
        return bool(x.all())

    @staticmethod
    def choose(quick_is_good: bool, quick: Any, mend: Callable[[], Any]) -> Any:
        return quick if quick_is_good else mend()

    @staticmethod
    def squares(d: Array) -> Array:
        return d * d

    @staticmethod
    def multiply_add(x: Array, factor: Array, summand: Array) -> Array:
        return x * factor + summand

    @staticmethod
    def constant(x: Array) -> Array:
        return x

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
    return tuple(x.shape)


def convert(values: Any, like: Array) -> Array:
    return np.asarray(values)


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
    """y, mean and variance; `statistics`: whether anybody asks for them."""
    plan = make_plan(spec, shape(x))
    if _kernel_for(x, mask, plan, kernel) == "cpu":
        y, mean, variance = kernels.forward(x, _small(scale, plan), _small(offset, plan), plan, eps)
        return y, *_kept(x, mean, variance, plan)
    runs = layout.to_runs(Verbs, x.astype(np.float64), plan)
    scale, offset = (layout.small_to_runs(Verbs, s, plan.affine, plan, x, affine=True) for s in (scale, offset))
    with np.errstate(invalid="ignore", over="ignore"):
        mask = _mask(mask, x, plan)
        stats = composed.statistics(Verbs, runs, mask, plan, eps)
        y = layout.from_runs(Verbs, composed.forward(Verbs, runs, scale, offset, stats, plan, mask), x, plan)
        return y.astype(x.dtype), *_moments(x, stats, plan)


def normalize_into(
    out: Array,
    x: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    spec: NormSpec,
    eps: float,
    kernel: str | None,
) -> Array:
    """y written into `out`, which may be x."""
    plan = make_plan(spec, shape(x))
    if _kernel_for(x, mask, plan, kernel) == "cpu" and kernels.can_write(out, x, scale, offset):
        kernels.forward(x, _small(scale, plan), _small(offset, plan), plan, eps, out)
    else:
        out[...] = normalize(x, scale, offset, mask, spec, eps, kernel)[0]
    return out


def moments(x: Array, mask: Array | None, spec: NormSpec, kernel: str | None = None) -> tuple[Array, Array]:
    plan = make_plan(spec, shape(x))
    if _kernel_for(x, mask, plan, kernel) == "cpu":
        return _kept(x, *kernels.moments(x, plan), plan)
    runs = layout.to_runs(Verbs, x.astype(np.float64), plan)
    return _moments(x, composed.statistics(Verbs, runs, _mask(mask, x, plan), plan, 0.0), plan)


def _kernel_for(x: Array, mask: Array | None, plan: Plan, forced: str | None) -> str:
    return select(plan, "numpy", "cpu", dtype(x), forced, mask is not None).kernel


def _small(values: Array | None, plan: Plan) -> Array | None:
    """Scale or offset as it lies on the runs."""
    if values is None or plan.affine.in_order:
        return values
    return values.reshape(plan.affine.axes).transpose(plan.affine.order)


def _kept(x: Array, mean: Array, variance: Array, plan: Plan) -> tuple[Array, Array]:
    mean, variance = (layout.statistic_from_runs(Verbs, s, x, plan) for s in (mean, variance))
    return mean, variance


def _mask(mask: Array | None, x: Array, plan: Plan) -> Array | None:
    return None if mask is None else layout.to_runs(Verbs, np.broadcast_to(mask, x.shape), plan)


def _moments(x: Array, stats: composed.Stats, plan: Plan) -> tuple[Array, Array]:
    out = np.result_type(x.dtype, np.float32)
    mean, variance = stats.mean(), stats.unscaled_variance()
    return tuple(layout.statistic_from_runs(Verbs, s, x, plan).astype(out) for s in (mean, variance))  # type: ignore
