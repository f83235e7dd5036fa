"""torch tensors: an autograd function in eager mode, a registered operator under torch.compile."""

from __future__ import annotations

from typing import Any

import torch

from ..kernels import composed
from ..plan import Plan
from ..spec import NormSpec, spec_of
from . import layout, torch_arrays, torch_compile
from .torch_arrays import Verbs

Array = Any


def is_traced() -> bool:
    """Whether torch.compile is reading this very Python code."""
    return torch.compiler.is_compiling()


@torch.compiler.assume_constant_result
def sentence(pattern: str, affine: Any, remove: Any, sizes: tuple[tuple[str, int], ...]) -> str:
    """A specification as the string that operators take; torch.compile does not read how it comes about."""
    return spec_of(pattern, affine, remove, sizes).encode()


def dtype(x: Array) -> str:
    return Verbs.dtype(x)


def shape(x: Array) -> tuple[int | None, ...]:
    return tuple(x.shape)


def convert(values: Any, like: Array) -> Array:
    return torch.as_tensor(values, device=like.device)


def normalize(
    x: Array, scale: Array | None, offset: Array | None, mask: Array | None, spec: NormSpec, eps: float
) -> tuple[Array, Array, Array]:
    """y, mean and variance; the two statistics carry no gradient (`moments` does)."""
    if is_traced():
        return normalize_traced(x, scale, offset, mask, spec.encode(), eps)
    y, mean, variance, *_ = _Normalize.apply(x, scale, offset, mask, torch_arrays.plan_of(x, spec), eps)
    return y, mean, variance


class _Normalize(torch.autograd.Function):
    """y = (x - mean) * rstd * scale + offset with its own gradient rule.

    Behind y, mean and variance come the statistics for the gradient; an empty tensor stands for one that is left out.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Array, scale: Array, offset: Array, mask: Array, plan: Plan, eps: float) -> tuple[Array, ...]:
        *out, stats = torch_arrays.forward(x, scale, offset, mask, plan, eps)
        kept = [None] * 6 if stats is None else [*stats[:-1], stats.count if mask is not None else None]
        return *out, *(x.new_empty(0) if a is None else a for a in kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        *arrays, ctx.plan, ctx.eps = inputs
        ctx.save_for_backward(*arrays, *output[3:])
        ctx.save_for_forward(*arrays)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Array) -> tuple[Array | None, ...]:
        x, scale, offset, mask, *kept = ctx.saved_tensors
        stats = None
        if not torch.is_grad_enabled():
            power, shift, residual, variance, rstd, count = (None if a.numel() == 0 else a for a in kept)
            count = float(ctx.plan.count) if mask is None else count
            stats = composed.Stats(power, shift, residual, variance, rstd, count)
        out = torch_arrays.backward(x, grads[0], scale, offset, mask, ctx.plan, ctx.eps, stats)
        return *out, None, None, None

    @staticmethod
    def jvp(ctx: Any, t: Array, t_scale: Array, t_offset: Array, *_: Any) -> tuple[Array | None, ...]:
        x, scale, _, mask = ctx.saved_tensors
        t = torch.zeros_like(x) if t is None else t
        return torch_arrays.tangent(x, t, scale, t_scale, t_offset, mask, ctx.plan, ctx.eps), *[None] * 8


def moments(x: Array, mask: Array | None, spec: NormSpec) -> tuple[Array, Array]:
    """Mean and variance, differentiable."""
    return moments_traced(x, mask, spec.encode()) if is_traced() else torch_arrays.moments(x, mask, spec)


normalize_traced, moments_traced = torch_compile.normalize, torch_compile.moments


def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, spec: NormSpec, eps: float
) -> Array:
    """Normalize with mean and variance given from outside, over the sentence's kept axes."""
    plan = torch_arrays.plan_of(x, spec)
    runs, scale, offset, _ = torch_arrays.enter(x, scale, offset, None, plan)
    mean, variance = (torch_arrays.kept_to_runs(s, x, plan) for s in (mean, variance))
    y = composed.forward(Verbs, runs, scale, offset, composed.given(Verbs, mean, variance, eps), plan)
    return layout.from_runs(Verbs, y, x, plan).to(x.dtype)
