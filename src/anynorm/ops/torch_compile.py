"""The operation as one registered operator: what torch.compile puts into its graph, for any batch size and no break."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..spec import NormSpec
from . import torch_arrays
from .checks import check, check_mask


@torch.library.custom_op("anynorm::normalize", mutates_args=())
def normalize(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    sentence: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import torch as ops

    spec = NormSpec.decode(sentence)
    eps = check(ops, x, scale, offset, mask, spec, eps)
    y, mean, variance, _ = torch_arrays.forward(x, scale, offset, mask, torch_arrays.plan_of(x, spec), eps)
    return _laid_out(y, x), mean, variance


@normalize.register_fake
def _normalize_fake(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    sentence: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *_moments_fake(x, mask, sentence)


@torch.library.custom_op("anynorm::normalize_backward", mutates_args=())
def _backward(
    x: Tensor,
    dy: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    sentence: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dscale and doffset; empty where there is no scale or offset, since an operator's results cannot be None."""
    plan = torch_arrays.plan_of(x, NormSpec.decode(sentence))
    dx, dscale, doffset = torch_arrays.backward(x, dy, scale, offset, mask, plan, eps)
    none = x.new_empty(0)
    return _laid_out(dx, x), none if dscale is None else dscale, none.clone() if doffset is None else doffset


@_backward.register_fake
def _backward_fake(
    x: Tensor, dy: Tensor, scale: Tensor | None, offset: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *(x.new_empty(0) if s is None else torch.empty_like(s) for s in (scale, offset))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, ctx.sentence, ctx.eps = inputs
    ctx.save_for_backward(*arrays)
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    x, scale, offset, mask = ctx.saved_tensors
    dx, dscale, doffset = _backward(x, dy, scale, offset, mask, ctx.sentence, ctx.eps)
    small = (None if s is None else d for s, d in ((scale, dscale), (offset, doffset)))
    return dx, *small, None, None, None


normalize.register_autograd(_gradient, setup_context=_setup_context)


@torch.library.custom_op("anynorm::moments", mutates_args=())
def moments(x: Tensor, mask: Tensor | None, sentence: str) -> tuple[Tensor, Tensor]:
    from . import torch as ops

    check_mask(ops, x, mask)
    return torch_arrays.moments(x, mask, NormSpec.decode(sentence))


@moments.register_fake
def _moments_fake(x: Tensor, mask: Tensor | None, sentence: str) -> tuple[Tensor, Tensor]:
    spec = NormSpec.decode(sentence)
    sizes = dict(spec.sizes)
    kept = []
    for dim, length in zip(spec.pattern.expand(x.ndim).dims, x.shape, strict=True):
        given = math.prod(sizes[axis.name] for axis in dim if axis.name in sizes)
        kept += [sizes.get(axis.name, length // given) for axis in dim if not axis.shared]
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(kept, dtype=work), x.new_empty(kept, dtype=work)


@torch.library.custom_op("anynorm::moments_backward", mutates_args=())
def _moments_backward(x: Tensor, mask: Tensor | None, dmean: Tensor, dvariance: Tensor, sentence: str) -> Tensor:
    return _laid_out(torch_arrays.moments_backward(x, mask, dmean, dvariance, NormSpec.decode(sentence)), x)


@_moments_backward.register_fake
def _moments_backward_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _setup_moments(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, ctx.sentence = inputs
    ctx.save_for_backward(*arrays)


def _moments_gradient(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    return _moments_backward(*ctx.saved_tensors, *grads, ctx.sentence), None, None


moments.register_autograd(_moments_gradient, setup_context=_setup_moments)


def _laid_out(y: Tensor, like: Tensor) -> Tensor:
    """y with the strides that the fake operator promised."""
    promised = torch.empty_like(like)
    return y if y.stride() == promised.stride() else promised.copy_(y)
