"""torch tensors, without autograd's bookkeeping: the composed formula and its two derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from ..kernels import composed, torch_native
from ..kernels.select import select
from ..plan import Plan
from ..precision import STATISTICS, statistics_dtype
from . import layout

Array = Any

_PLAIN = (torch.Tensor, torch.nn.Parameter)
# By names of this module: the way through torch's takes a small array's time.
_transforms, _has_storage = torch._C._functorch.peek_interpreter_stack, torch._C._has_storage
_NAMES = {getattr(torch, name): name for name in STATISTICS}


def name_of(dtype: torch.dtype) -> str:
    return _NAMES.get(dtype) or str(dtype).removeprefix("torch.")


class Verbs:
    """What the composed formula is made of."""

    sqrt, zeros_like, ones_like, broadcast_to = torch.sqrt, torch.zeros_like, torch.ones_like, torch.Tensor.expand
    where, clip, transpose = torch.where, torch.clamp, torch.permute

    @staticmethod
    def reshape(x: Array, shape: Sequence[int]) -> Array:
        # Where it is traced, torch's forward mode over another mode stumbles at a view that is the whole of its array.
        if torch._C._len_torch_dispatch_stack() > 0 and tuple(x.shape) == tuple(shape):
            return x
        return torch.reshape(x, shape)

    @staticmethod
    def dtype(x: Array) -> str:
        return name_of(x.dtype)

    @staticmethod
    def length(x: Array, d: int) -> int:
        return x.shape[d]

    @staticmethod
    def maximum(a: Array, b: Any) -> Array:
        return torch.maximum(a, b) if isinstance(b, torch.Tensor) else a.clamp_min(b)

    @staticmethod
    def minimum(a: Array, b: Array) -> Array:
        return torch.minimum(a, b)

    @staticmethod
    def view(x: Array, dtype: str) -> Array:
        return x.view(getattr(torch, dtype))

    @staticmethod
    def constant(x: Array) -> Array:
        return x.detach()

    @staticmethod
    def all(x: Array) -> bool:
        """False also where no value can be read (under vmap, on the meta device): then both ways are computed."""
        # A tracer would wait for somebody to use the number that it has not.
        if torch._C._len_torch_dispatch_stack() > 0:
            return False
        try:
            return bool(x.all())
        except RuntimeError:
            return False

    @staticmethod
    def choose(quick_is_good: bool, quick: Any, mend: Callable[[], Any]) -> Any:
        return quick if quick_is_good else mend()

    @staticmethod
    def squares(d: Array) -> Array:
        """Of an array that nobody else has: in its place where no gradient needs it, which saves a pass over memory."""
        return d * d if torch.is_grad_enabled() else d.mul_(d)

    @staticmethod
    def multiply_add(x: Array, factor: Array, summand: Array) -> Array:
        return torch.addcmul(summand, x, factor)

    @staticmethod
    def sum(x: Array) -> Array:
        return x.sum(dim=1)

    @staticmethod
    def amin(x: Array) -> Array:
        return x.amin(dim=1)

    @staticmethod
    def amax(x: Array) -> Array:
        return x.amax(dim=1)


def plain(*arrays: Any) -> bool:
    """Whether all have memory of their own with their values in it.

    The tensors of torch.func's transforms have none, even after the transform, and neither have zeros that autograd
    makes up; a lazily negated view has the other sign in it; a scale that was left on another device is torch's to
    complain about.
    """
    if _transforms() is not None:
        return False
    on_cpu = arrays[0].is_cpu
    # A generator would take as long as all that it asks.
    for a in arrays:
        if a is not None and (
            type(a) not in _PLAIN or a.is_cpu is not on_cpu or not _has_storage(a) or a.is_neg() or a._is_zerotensor()
        ):
            return False
    return True


def wants(*arrays: Array | None) -> bool:
    """Whether autograd or forward mode may ask for a derivative."""
    if torch.is_grad_enabled():
        for a in arrays:
            if a is not None and a.requires_grad:
                return True
    return forward_ad._current_level >= 0


def forward(
    x: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    plan: Plan,
    eps: float,
    kernel: str | None = None,
) -> tuple[Array, Array, Array, composed.Stats | None]:
    """y, mean and variance over the kept axes, and what the gradient needs."""
    if plan.empty:
        nothing = x.new_zeros(plan.kept.shape, dtype=work(x))
        return x.clone(), nothing, nothing.clone(), None
    runs, scale, offset, mask = enter(x, scale, offset, mask, plan)
    if _is_native(x, mask, plan, kernel):
        y, stats, good = torch_native.forward(runs, scale, offset, plan, eps)
        if not Verbs.all(good):
            stats = composed.mended(Verbs, runs, stats, good, plan, eps)
            y = torch.where(good, y, composed.forward(Verbs, runs, scale, offset, stats, plan))
    else:
        stats = composed.statistics(Verbs, runs, mask, plan, eps)
        y = composed.forward(Verbs, runs, scale, offset, stats, plan, mask)
    return layout.from_runs(Verbs, y, x, plan).to(x.dtype), *means(x, stats, plan), stats


def backward(
    x: Array,
    dy: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    plan: Plan,
    eps: float,
    stats: composed.Stats | None = None,
    kernel: str | None = None,
) -> tuple[Array, Array | None, Array | None]:
    """dx, dscale and doffset.

    Without `stats` they are computed anew from x and carry their own gradient, so that this one is differentiable.
    """
    if plan.empty:
        return dy.clone(), *(None if s is None else torch.zeros_like(s) for s in (scale, offset))
    runs, scale_runs, _, mask = enter(x, scale, None, mask, plan)
    dy = layout.to_runs(Verbs, dy, plan).to(runs.dtype)
    native = stats is not None and _is_native(x, mask, plan, kernel)
    if stats is None:
        stats = composed.statistics(Verbs, runs, mask, plan, eps)
    if native and stats.power is None:
        dx, *small = torch_native.backward(runs, dy, scale_runs, stats.residual, stats.rstd, plan)
    else:
        dx, *small = composed.backward(Verbs, runs, dy, scale_runs, mask, stats, plan)
        if native:
            # Rows that the native kernel did well get its gradient too, whatever their neighbours needed.
            good = (stats.power == 1) & (stats.shift == 0)
            dx = torch.where(good, torch_native.backward(runs, dy, scale_runs, stats.residual, stats.rstd, plan)[0], dx)
    dscale, doffset = (
        None if s is None else layout.small_from_runs(Verbs, d, plan.affine, s, plan).to(s.dtype)
        for d, s in zip(small, (scale, offset), strict=True)
    )
    return layout.from_runs(Verbs, dx, x, plan).to(x.dtype), dscale, doffset


def _is_native(x: Array, mask: Array | None, plan: Plan, kernel: str | None) -> bool:
    return select(plan, "torch", x.device.type, Verbs.dtype(x), kernel, mask is not None).kernel == "native"


def tangent(
    x: Array,
    t: Array,
    scale: Array | None,
    t_scale: Array | None,
    t_offset: Array | None,
    mask: Array | None,
    plan: Plan,
    eps: float,
) -> Array:
    """The derivative of y along (t, t_scale, t_offset)."""
    runs, scale, _, mask = enter(x, scale, None, mask, plan)
    t, t_scale, t_offset, _ = enter(t, t_scale, t_offset, None, plan)
    stats = composed.statistics(Verbs, runs, mask, plan, eps)
    out = composed.tangent(Verbs, runs, t, scale, t_scale, t_offset, mask, stats, plan)
    return layout.from_runs(Verbs, out, x, plan).to(x.dtype)


def moments(x: Array, mask: Array | None, plan: Plan) -> tuple[Array, Array]:
    """Mean and variance, differentiable."""
    runs, _, _, mask = enter(x, None, None, mask, plan)
    mean, variance = means(x, composed.statistics(Verbs, runs, mask, plan, 0.0), plan)
    return mean, variance


def moments_backward(x: Array, mask: Array | None, dmean: Array, dvariance: Array, plan: Plan) -> Array:
    """dx of the two moments."""
    runs, _, _, mask = enter(x, None, None, mask, plan)
    stats = composed.statistics(Verbs, runs, mask, plan, 0.0)
    dmean, dvariance = (kept_to_runs(s, x, plan) for s in (dmean, dvariance))
    dx = composed.moments_backward(Verbs, runs, dmean, dvariance, mask, stats, plan)
    return layout.from_runs(Verbs, dx, x, plan).to(x.dtype)


def enter(x: Array, scale: Array | None, offset: Array | None, mask: Array | None, plan: Plan) -> list[Any]:
    """All of them shaped as the plan's runs, in the statistics' type."""
    smalls = [layout.small_to_runs(Verbs, s, plan.affine, plan, x, affine=True) for s in (scale, offset)]
    mask = None if mask is None else layout.to_runs(Verbs, mask.expand(x.shape), plan)
    wide = work(x)
    return [layout.to_runs(Verbs, x, plan).to(wide), *(s if s is None else s.to(wide) for s in smalls), mask]


def kept_to_runs(statistic: Array, x: Array, plan: Plan) -> Array:
    return layout.small_to_runs(Verbs, statistic, plan.kept, plan, x, affine=False).to(work(x))  # type: ignore


def kept_from_runs(x: Array, mean: Array, variance: Array, plan: Plan) -> tuple[Array, Array]:
    """Statistics as they lie over the kept runs, over the kept axes as users have them."""
    if plan.kept.in_order:
        shape = plan.kept.shape
        return (mean, variance) if len(shape) == 1 else (mean.reshape(shape), variance.reshape(shape))
    mean, variance = (layout.statistic_from_runs(Verbs, s, x, plan) for s in (mean, variance))
    return mean, variance


def means(x: Array, stats: composed.Stats, plan: Plan) -> tuple[Array, ...]:
    return tuple(layout.statistic_from_runs(Verbs, s, x, plan) for s in (stats.mean(), stats.unscaled_variance()))


def work(x: Array) -> Any:
    return getattr(torch, statistics_dtype(Verbs.dtype(x)))
