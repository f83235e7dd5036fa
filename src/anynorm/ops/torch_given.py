"""Normalizing with statistics from outside in torch's own operations, which a compiler joins with their neighbours."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from ..kernels import composed
from ..plan import Plan
from ..spec import NormSpec, affine_names
from . import torch_arrays
from .torch_constant import constant

Array = Any


def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, sentence: str, eps: float
) -> Array:
    """y = (x - mean) / sqrt(variance + eps) * scale + offset, differentiable in all of them."""
    kept, affine = whole_axes(sentence, x.ndim)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32

    def spread(small: Array, shape: list[int]) -> Array:
        return small.to(work).reshape(shape)

    over_kept = [n if d in kept else 1 for d, n in enumerate(x.shape)]
    over_affine = [n if d in affine else 1 for d, n in enumerate(x.shape)]
    factor = (spread(variance, over_kept) + eps).clamp_min(torch.finfo(work).tiny).rsqrt()
    if scale is not None:
        factor = factor * spread(scale, over_affine)
    d = x.to(work) - spread(mean, over_kept)
    y = d * factor if offset is None else torch.addcmul(spread(offset, over_affine), d, factor)
    return y.to(x.dtype)


class _Given(torch.autograd.Function):
    """A kernel of our own with its own gradient rule, for statistics that have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Array, scale: Array, offset: Array, mean: Array, variance: Array, plan: Plan, eps: float, door: Any
    ) -> Array:
        y, saved = door.apply(x, mean, variance, scale, offset, plan, eps, gradient=True)
        ctx.given = offset, plan, eps, door
        ctx.save_for_backward(x, scale, saved)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Array) -> tuple[Array | None, ...]:
        x, scale, saved = ctx.saved_tensors
        offset, plan, eps, door = ctx.given
        still = _still(plan)
        batched = torch._C._functorch.is_legacy_batchedtensor(dy)
        if not torch.is_grad_enabled() and not batched and torch_arrays.plain(x, dy):
            return *door.backward(x, dy, scale, offset, saved, still, eps), None, None, None, None, None
        shape = [1 if run.reduced else run.extent for run in plan.runs]
        mean, rstd = (s.reshape(shape).to(torch_arrays.work(x)) for s in saved.unbind(-1))
        stats = composed.Stats(None, mean, None, rstd**-2 - eps, rstd, 1.0)
        return *torch_arrays.backward(x, dy, scale, offset, None, still, eps, stats), None, None, None, None, None


# As for `_apply_kernel` in torch.py.
apply_kernel = super(torch.autograd.Function, _Given).apply


@lru_cache(maxsize=8192)
def _still(plan: Plan) -> Plan:
    """Statistics that stand still take nothing out of the gradient."""
    return replace(plan, removes_mean=False, removes_scale=False)


@constant
def whole_axes(sentence: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions over which statistics are kept, and those with scale and offset."""
    return _cached_whole_axes(sentence, rank)


@lru_cache(maxsize=1024)
def _cached_whole_axes(sentence: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    spec = NormSpec.decode(sentence)
    expanded = spec.pattern.expand(rank)
    if any(len(dim) > 1 for dim in expanded.dims):
        raise ValueError(f'statistics from outside are over whole axes, and "{spec.text}" splits one')
    names = affine_names(spec, expanded)
    kept = tuple(d for d, (axis,) in enumerate(expanded.dims) if not axis.shared)
    return kept, tuple(d for d, (axis,) in enumerate(expanded.dims) if axis.name in names)
