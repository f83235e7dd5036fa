"""The composed formula on JAX arrays that are shaped as runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..kernels import composed
from ..kernels.runs import Runs
from ..plan import Plan, Run, Small
from ..precision import statistics_dtype

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


@dataclass(frozen=True)
class Formula:
    """What to compute, whatever the extents of the runs are, and the shape in which a CPU kernel is to be given it.

    Attributes:
        labels: a letter for each run, as in `Plan.labels`.
        removes_mean, removes_scale: which moments are taken out.
        eps: added to the variance.
        kernel: the kernel that was chosen where this was traced. "composed" is kept to on every platform; "cpu" runs
            where the program is compiled for a CPU and for one device, and "pallas" where it is for one CUDA device or
            for a CPU that interprets it; both are replaced by composed elsewhere.
        shape: of the array as its user has it.
        asked: whether that kernel was asked for. One that was only the best is not written into an exported
            program, which need not be loaded where anynorm is.
    """

    labels: str
    removes_mean: bool
    removes_scale: bool
    eps: float
    kernel: str
    shape: tuple[Any, ...]
    asked: bool = False

    def plan(self, shape: tuple[Any, ...]) -> Plan:
        """Of an array shaped as the runs; a symbolic length is one that is not known."""
        runs = tuple(
            Run(n if isinstance(n, int) else 1, label in "rR", label in "KR", () if isinstance(n, int) else (i,))
            for i, (label, n) in enumerate(zip(self.labels, shape, strict=True))
        )
        as_the_runs = Small((), (), ())
        order = tuple(range(len(runs)))
        return Plan(runs, order, as_the_runs, as_the_runs, self.removes_mean, self.removes_scale)

    def batched(self, affine: bool, size: Any) -> Formula:
        """The same with one more kept run in front, of that length."""
        return replace(self, labels=("K" if affine else "k") + self.labels, shape=(size, *self.shape))

    def lanes(self, masked: bool) -> int:
        """How many numbers `saved` has for each statistic: composed's, or two doubles in four parts."""
        if self.saves_doubles:
            return 4
        return 6 if masked else 5

    @property
    def saves_doubles(self) -> bool:
        """Whether `saved` is in the form of the CPU kernels; else it is composed's own."""
        return self.kernel == "cpu"

    def saved_dtype(self, dtype: Any) -> str:
        """The type of `saved`: JAX has float64 only where it is switched on, and half a double may look like a NaN."""
        return "uint32" if self.saves_doubles else statistics_dtype(str(dtype))


def forward(
    formula: Formula,
    x: Array,
    scale: Array | None = None,
    offset: Array | None = None,
    mask: Array | None = None,
    *,
    doubles: bool = False,
) -> dict[str, Array]:
    """y, mean, variance and what the gradient needs; `doubles`: in the kernel's form, as the kernel may read it."""
    plan, work, stats = _enter(formula, x, mask)
    y = composed.forward(Verbs, work, _cast(scale, work), _cast(offset, work), stats, plan, mask)
    saved = _saved(formula, composed.filled(Verbs, stats), mask is not None, doubles)
    return {"y": y.astype(x.dtype), "mean": stats.mean(), "variance": stats.unscaled_variance(), "saved": saved}


def push(
    formula: Formula,
    t: Array,
    x: Array,
    saved: Array | None,
    t_scale: Array | None = None,
    t_offset: Array | None = None,
    scale: Array | None = None,
    mask: Array | None = None,
) -> dict[str, Array]:
    """The derivative of y along (t, t_scale, t_offset). Without `saved` it is differentiable in x as well."""
    plan, work, stats = _enter(formula, x, mask, saved)
    t, scale, t_scale, t_offset = (_cast(a, work) for a in (t, scale, t_scale, t_offset))
    out = composed.tangent(Verbs, work, t, scale, t_scale, t_offset, mask, stats, plan)
    return {"out": out.astype(x.dtype)}


def pull(
    formula: Formula,
    dy: Array,
    x: Array,
    saved: Array | None,
    scale: Array | None = None,
    mask: Array | None = None,
) -> dict[str, Array]:
    """The gradients, in the statistics' type for scale and offset; the transpose of `push`."""
    plan, work, stats = _enter(formula, x, mask, saved)
    dx, dscale, doffset = composed.backward(Verbs, work, _cast(dy, work), _cast(scale, work), mask, stats, plan)
    return {"dx": dx.astype(x.dtype), "dscale": dscale, "doffset": doffset}


def moments(formula: Formula, x: Array, mask: Array | None = None) -> dict[str, Array]:
    stats = _enter(formula, x, mask)[2]
    return {"mean": stats.mean(), "variance": stats.unscaled_variance()}


def apply(
    formula: Formula,
    x: Array,
    mean: Array,
    variance: Array,
    scale: Array | None = None,
    offset: Array | None = None,
) -> Array:
    """y with mean and variance from outside."""
    plan, work = formula.plan(x.shape), x.astype(statistics_dtype(str(x.dtype)))
    stats = composed.given(Verbs, mean.astype(work.dtype), variance.astype(work.dtype), formula.eps)
    return composed.forward(Verbs, work, _cast(scale, work), _cast(offset, work), stats, plan).astype(x.dtype)


def _enter(
    formula: Formula, x: Array, mask: Array | None, saved: Array | None = None
) -> tuple[Plan, Array, composed.Stats]:
    plan, work = formula.plan(x.shape), x.astype(statistics_dtype(str(x.dtype)))
    if saved is None or formula.saves_doubles:
        return plan, work, composed.statistics(Verbs, work, mask, plan, formula.eps)
    power, shift, residual, variance, rstd, *count = (saved[..., i] for i in range(saved.shape[-1]))
    elements = Runs(Verbs, work, plan).count() if mask is None else count[0]
    return plan, work, composed.Stats(power, shift, residual, variance, rstd, elements)


def _saved(formula: Formula, stats: composed.Stats, masked: bool, doubles: bool) -> Array:
    if not formula.saves_doubles:
        parts = stats if masked else stats[:-1]
        return jnp.stack([jnp.broadcast_to(part, stats.rstd.shape) for part in parts], axis=-1)
    shape = (*stats.rstd.shape, formula.lanes(False))
    if not doubles:
        # On this platform nobody reads it: the gradient makes the statistics anew.
        return jnp.zeros(shape, "uint32")
    with jax.enable_x64(True):
        power, shift, residual, rstd = (
            jnp.asarray(part, "float64") for part in (stats.power, stats.shift, stats.residual, stats.rstd)
        )
        pair = jnp.stack([(shift + residual) / power, power * rstd], axis=-1)
        return lax.bitcast_convert_type(pair, "uint32").reshape(shape)


def _cast(values: Array | None, like: Array) -> Array | None:
    return None if values is None else values.astype(like.dtype)
