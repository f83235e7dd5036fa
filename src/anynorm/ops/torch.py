"""torch tensors: an autograd function in eager mode, a registered operator under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..kernels import composed
from ..plan import Plan
from ..plan import plan as make_plan
from ..precision import statistics_dtype
from ..spec import NormSpec
from . import layout

Array = Any


class verbs:
    """What the composed formula is made of."""

    sqrt, zeros_like, ones_like, broadcast_to = torch.sqrt, torch.zeros_like, torch.ones_like, torch.broadcast_to
    where, clip, transpose, reshape = torch.where, torch.clamp, torch.permute, torch.reshape

    @staticmethod
    def dtype(x: Array) -> str:
        return str(x.dtype).removeprefix("torch.")

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
        return bool(x.all())

    @staticmethod
    def cond(yes: bool, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        return then() if yes else otherwise()

    @staticmethod
    def sum(x: Array) -> Array:
        return x.sum(dim=1)

    @staticmethod
    def amin(x: Array) -> Array:
        return x.amin(dim=1)

    @staticmethod
    def amax(x: Array) -> Array:
        return x.amax(dim=1)


def dtype(x: Array) -> str:
    return verbs.dtype(x)


def shape(x: Array) -> tuple[int | None, ...]:
    return tuple(x.shape)


def convert(values: Any, like: Array) -> Array:
    return torch.as_tensor(values, device=like.device)


def memory_order(x: Array) -> tuple[int, ...]:
    """The dimensions from outermost to innermost in memory, so that channels_last needs no copy."""
    strides = x.stride()
    order = tuple(sorted(range(x.ndim), key=lambda d: (-strides[d], d)))
    expected = 1
    for d in reversed(order):
        if x.shape[d] != 1 and strides[d] != expected:
            return tuple(range(x.ndim))
        expected *= x.shape[d]
    return order


def normalize(
    x: Array, scale: Array | None, offset: Array | None, mask: Array | None, spec: NormSpec, eps: float
) -> tuple[Array, Array, Array]:
    """y, mean and variance; the two statistics carry no gradient (`moments` does)."""
    plan = make_plan(spec, shape(x), memory_order(x))
    if plan.empty:
        empty = x.new_zeros(plan.kept.shape, dtype=_work(x))
        return x + 0, empty, empty
    y, *moments = _Normalize.apply(x, scale, offset, mask, plan, eps)
    return y, *moments


class _Normalize(torch.autograd.Function):
    """y = (x - mean) * rstd * scale + offset with its own gradient rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Array, scale: Array, offset: Array, mask: Array, plan: Plan, eps: float) -> tuple[Array, ...]:
        runs, scale, offset, mask = _enter(x, scale, offset, mask, plan)
        stats = composed.statistics(verbs, runs, mask, plan, eps)
        y = layout.from_runs(verbs, composed.forward(verbs, runs, scale, offset, stats, plan), x, plan).to(x.dtype)
        return y, *_moments(x, stats, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        x, scale, offset, mask, ctx.plan, ctx.eps = inputs
        ctx.save_for_backward(x, scale, offset, mask)
        ctx.save_for_forward(x, scale, offset, mask)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Array) -> tuple[Array | None, ...]:
        """Differentiable in turn: the statistics are computed anew from x, so that they carry their own gradient."""
        x, scale, offset, mask = ctx.saved_tensors
        runs, scale_runs, _, mask = _enter(x, scale, None, mask, ctx.plan)
        stats = composed.statistics(verbs, runs, mask, ctx.plan, ctx.eps)
        dy = layout.to_runs(verbs, grads[0], ctx.plan).to(runs.dtype)
        dx, *small = composed.backward(verbs, runs, dy, scale_runs, mask, stats, ctx.plan)
        dscale, doffset = (
            None if s is None else layout.small_from_runs(verbs, d, ctx.plan.affine, s, ctx.plan).to(s.dtype)
            for d, s in zip(small, (scale, offset), strict=True)
        )
        return layout.from_runs(verbs, dx, x, ctx.plan).to(x.dtype), dscale, doffset, None, None, None

    @staticmethod
    def jvp(ctx: Any, t: Array, t_scale: Array, t_offset: Array, *_: Any) -> tuple[Array | None, ...]:
        x, scale, offset, mask = ctx.saved_tensors
        runs, scale, _, mask = _enter(x, scale, None, mask, ctx.plan)
        t = torch.zeros_like(x) if t is None else t
        t, t_scale, t_offset, _ = _enter(t, t_scale, t_offset, None, ctx.plan)
        stats = composed.statistics(verbs, runs, mask, ctx.plan, ctx.eps)
        out = composed.tangent(verbs, runs, t, scale, t_scale, t_offset, mask, stats, ctx.plan)
        return layout.from_runs(verbs, out, x, ctx.plan).to(x.dtype), None, None


def moments(x: Array, mask: Array | None, spec: NormSpec) -> tuple[Array, Array]:
    plan = make_plan(spec, shape(x), memory_order(x))
    runs, _, _, mask = _enter(x, None, None, mask, plan)
    return _moments(x, composed.statistics(verbs, runs, mask, plan, 0.0), plan)


def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, spec: NormSpec, eps: float
) -> Array:
    """Normalize with statistics given from outside, over the sentence's kept axes."""
    plan = make_plan(spec, shape(x), memory_order(x))
    runs, scale, offset, _ = _enter(x, scale, offset, None, plan)
    mean, variance = (
        layout.small_to_runs(verbs, s, plan.kept, plan, x, affine=False).to(runs.dtype) for s in (mean, variance)
    )
    y = composed.forward(verbs, runs, scale, offset, composed.given(verbs, mean, variance, eps), plan)
    return layout.from_runs(verbs, y, x, plan).to(x.dtype)


def _work(x: Array) -> Any:
    return getattr(torch, statistics_dtype(dtype(x)))


def _enter(x: Array, scale: Array | None, offset: Array | None, mask: Array | None, plan: Plan) -> list[Any]:
    smalls = [layout.small_to_runs(verbs, s, plan.affine, plan, x, affine=True) for s in (scale, offset)]
    mask = None if mask is None else layout.to_runs(verbs, mask.broadcast_to(x.shape), plan)
    work = _work(x)
    return [layout.to_runs(verbs, x, plan).to(work), *(s if s is None else s.to(work) for s in smalls), mask]


def _moments(x: Array, stats: composed.Stats, plan: Plan) -> tuple[Array, ...]:
    return tuple(layout.statistic_from_runs(verbs, s, x, plan) for s in (stats.mean(), stats.unscaled_variance()))
