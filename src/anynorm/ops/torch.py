"""torch tensors: an autograd function in eager mode, a registered operator under torch.compile."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ..kernels import composed
from ..kernels.torch_memory import can_write
from ..plan import Plan
from ..spec import NormSpec, spec_of
from . import torch_arrays, torch_choice, torch_compile, torch_given
from .checks import check_mask, written
from .torch_arrays import Verbs, plain, wants
from .torch_constant import constant
from .torch_mask import warn_of_one

Array = Any

_THIS = sys.modules[__name__]


def is_traced() -> bool:
    """Whether torch.compile reads this Python code, or a tracer what torch does: both need registered operators."""
    if is_compiling():
        return True
    return _len_torch_dispatch_stack() > 0 or _get_tracing_state() is not None


@constant
def sentence(pattern: str, affine: Any, remove: Any, sizes: tuple[tuple[str, int], ...]) -> str:
    """A specification as the string that operators take; torch.compile does not read how it comes about."""
    return spec_of(pattern, affine, remove, sizes).encode()


def dtype(x: Array) -> str:
    return Verbs.dtype(x)


def shape(x: Array) -> tuple[int | None, ...]:
    return tuple(x.shape)


def convert(values: Any, like: Array) -> Array:
    if isinstance(values, torch.Tensor) and values.device == like.device:
        return values
    return torch.as_tensor(values, device=like.device)


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
    if is_traced():
        return normalize_traced(x, scale, offset, mask, spec.encode(), eps, kernel)
    plan, door = torch_choice.choice(x, mask, spec, kernel)
    return _run(x, scale, offset, mask, plan, door, eps, kernel, statistics)


def normalize_checked(
    x: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    sentence: str,
    eps: float,
    *,
    statistics: bool = False,
    erasing: bool = True,
) -> tuple[Array, Array | None, Array | None]:
    """y, and mean and variance if `statistics`, for arrays that nobody has looked at yet: what torch's layers call.

    The checks cost no more than a look into the cache where the kernel is found. `erasing`: refuse too what would leave
    nothing of x. The sentence comes as `NormSpec.encode` writes it: strings are quick to look up, and torch.compile
    takes them as they are.
    """
    if is_traced():
        return normalize_traced(x, scale, offset, mask, sentence, eps, None, erasing)
    plan, door, eps = torch_choice.checked(x, scale, offset, sentence, eps, mask is not None, erasing)
    if mask is None:
        return _run(x, scale, offset, None, plan, door, eps, None, statistics)
    mask = convert(mask, x) if hasattr(mask, "dtype") else mask
    check_mask(_THIS, x, mask)
    y, mean, variance = _run(x, scale, offset, mask, plan, door, eps, None, statistics)
    warn_of_one(x, mask, variance, plan)
    return y, mean, variance


def _run(
    x: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    plan: Plan,
    door: Any,
    eps: float,
    kernel: str | None,
    statistics: bool,
) -> tuple[Array, Array | None, Array | None]:
    if door is not None and plain(x, scale, offset):
        if wants(x, scale, offset):
            out = _apply_kernel(x, scale, offset, plan, eps, statistics, door)
            y, mean, variance = out if statistics else (out, None, None)
        else:
            y, mean, variance, _ = door.forward(x, scale, offset, plan, eps, statistics=statistics, gradient=False)
        return y, *(torch_arrays.kept_from_runs(x, mean, variance, plan) if statistics else (None, None))
    y, mean, variance, *_ = _Normalize.apply(x, scale, offset, mask, plan, eps, kernel)
    return y, mean, variance


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
    """y written into `out`, which may be x; without a gradient."""
    if wants(x, scale, offset, out):
        raise ValueError("what is written into out= has no gradient: call it under torch.no_grad()")
    plan, door = torch_choice.choice(x, mask, spec, kernel)
    if door is not None and plain(x, scale, offset, out) and can_write(out, x, scale, offset, plan):
        door.forward(x, scale, offset, plan, eps, out)
        return out
    return out.copy_(normalize(x, scale, offset, mask, spec, eps, kernel)[0])


class _Kernel(torch.autograd.Function):
    """A kernel of our own with its own gradient rule.

    A second derivative needs the first to be differentiable itself, and a batch of cotangents has no memory of its own:
    then the composed formula computes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Array, scale: Array, offset: Array, plan: Plan, eps: float, statistics: bool, door: Any
    ) -> Array | tuple[Array, ...]:
        y, mean, variance, saved = door.forward(x, scale, offset, plan, eps, statistics=statistics)
        # Of the offset only its shape and type are needed.
        ctx.given = offset, plan, eps, statistics, door
        ctx.save_for_backward(x, scale, saved)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(x, scale)
        if not statistics:
            return y
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, dy: Array, *_: Any) -> tuple[Array | None, ...]:
        x, scale, saved = ctx.saved_tensors
        offset, plan, eps, _, door = ctx.given
        batched = torch._C._functorch.is_legacy_batchedtensor(dy)
        if not torch.is_grad_enabled() and not batched and plain(x, dy):
            return *door.backward(x, dy, scale, offset, saved, plan, eps), None, None, None, None
        return *torch_arrays.backward(x, dy, scale, offset, None, plan, eps), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, t: Array, t_scale: Array, t_offset: Array, *_: Any) -> Array | tuple[Array | None, ...]:
        x, scale = ctx.saved_tensors
        _, plan, eps, statistics, _ = ctx.given
        t = torch.zeros_like(x) if t is None else t
        out = _tangent(x, t, scale, t_scale, t_offset, None, plan, eps)
        return (out, None, None) if statistics else out


# What `apply` comes to for arrays that are `plain`: its own part, in Python, is about transforms, and takes as long as
# all the rest for small arrays.
_apply_kernel = super(torch.autograd.Function, _Kernel).apply


class _Normalize(torch.autograd.Function):
    """y = (x - mean) * rstd * scale + offset with its own gradient rule.

    Behind y, mean and variance come the statistics for the gradient; an empty tensor stands for one that is left out.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Array, scale: Array, offset: Array, mask: Array, plan: Plan, eps: float, kernel: str | None
    ) -> tuple[Array, ...]:
        *out, stats = torch_arrays.forward(x, scale, offset, mask, plan, eps, kernel)
        kept = [None] * 6 if stats is None else [*stats[:-1], stats.count if mask is not None else None]
        return *out, *(x.new_empty(0) if a is None else a for a in kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Array, ...]) -> None:
        *arrays, ctx.plan, ctx.eps, ctx.kernel = inputs
        # The same for both, since under vmap torch keeps the batch dimensions of the last call alone.
        ctx.save_for_backward(*arrays, *output[3:])
        ctx.save_for_forward(*arrays, *output[3:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Array) -> tuple[Array | None, ...]:
        x, scale, offset, mask, *kept = ctx.saved_tensors
        stats = None
        if not torch.is_grad_enabled():
            power, shift, residual, variance, rstd, count = (None if a.numel() == 0 else a for a in kept)
            count = float(ctx.plan.count) if mask is None else count
            stats = composed.Stats(power, shift, residual, variance, rstd, count)
        out = torch_arrays.backward(x, grads[0], scale, offset, mask, ctx.plan, ctx.eps, stats, ctx.kernel)
        return *out, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, t: Array, t_scale: Array, t_offset: Array, *_: Any) -> tuple[Array | None, ...]:
        x, scale, _, mask, *_ = ctx.saved_tensors
        t = torch.zeros_like(x) if t is None else t
        return _tangent(x, t, scale, t_scale, t_offset, mask, ctx.plan, ctx.eps), *[None] * 8


def _tangent(x: Array, t: Array, scale: Array | None, *rest: Any) -> Array:
    """A tangent that has one itself: torch turns forward mode off in a `jvp`, and that of a tangent would be zero."""
    with forward_ad._set_fwd_grad_enabled(True):
        # The values without this level's tangents, and with those of the levels around it.
        x, scale = (a if a is None else forward_ad.unpack_dual(a, level=0).primal for a in (x, scale))
        return torch_arrays.tangent(x, t, scale, *rest)


def moments(x: Array, mask: Array | None, spec: NormSpec, kernel: str | None = None) -> tuple[Array, Array]:
    """Mean and variance, differentiable."""
    if is_traced():
        return moments_traced(x, mask, spec.encode(), kernel)
    plan, door = torch_choice.choice(x, mask, spec, kernel)
    # Their derivative is composed, so that where one may be asked for the whole is.
    if door is None or wants(x) or not plain(x):
        return torch_arrays.moments(x, mask, plan)
    mean, variance = door.moments(x, plan)
    return torch_arrays.kept_from_runs(x, mean, variance, plan)


normalize_traced, moments_traced = torch_compile.normalize, torch_compile.moments
is_first_pass, is_transformed = torch_compile.is_first_pass, torch_compile.is_transformed


def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, spec: NormSpec, eps: float
) -> Array:
    """Normalize with mean and variance given from outside, over the sentence's kept axes."""
    return apply_checked(x, mean, variance, scale, offset, spec.encode(), eps)


def apply_checked(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, sentence: str, eps: float
) -> Array:
    """`apply` for arrays that nobody has looked at yet."""
    if is_traced():
        return torch_given.apply(x, mean, variance, scale, offset, sentence, eps)
    plan, door, eps = torch_choice.checked(x, scale, offset, sentence, eps, False, False)
    kept = plan.kept.shape
    if mean.shape != kept or variance.shape != kept:
        raise ValueError(
            f"mean and variance must have the shape {written(kept)} of the axes outside square brackets, and they have "
            f"{written(tuple(mean.shape))} and {written(tuple(variance.shape))}"
        )
    if door is not None and not wants(mean, variance) and plain(x, mean, variance, scale, offset):
        if wants(x, scale, offset):
            return torch_given.apply_kernel(x, scale, offset, mean, variance, plan, eps, door)
        return door.apply(x, mean, variance, scale, offset, plan, eps)[0]
    return torch_given.apply(x, mean, variance, scale, offset, sentence, eps)
