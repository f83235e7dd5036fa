"""A kernel of our own that computes a normalization with all that goes around it, where there is such a kernel.

For the backward pass it keeps what was normalized, x or the sum, and nothing else of that size. A second derivative
and a batch of cotangents are those of the composed formula.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..kernels.select import FUSES, forced_by_environment
from ..spec import NormSpec, affine_names
from . import torch as ops
from . import torch_arrays, torch_choice, torch_compile
from .checks import check
from .torch_constant import constant

Array = Any


class Call(NamedTuple):
    """One call, checked, with the modulation shaped as x.

    Attributes:
        behind: what `Fused` composes behind the norm: of its output, the modulation and x's type.
    """

    x: Array
    residual: Array | None
    scale: Array | None
    offset: Array | None
    modulation: tuple[Array, Array] | None
    activation: str | None
    sentence: str
    eps: float
    behind: Callable[..., Array]


def may_serve(x: Array) -> bool:
    """Whether it is worth while to ask: for small arrays on a CPU that takes as long as a part of the norm."""
    return not x.is_cpu or _asked_for() is not None


def normalize(call: Call, statistics: bool, erasing: bool) -> tuple[Array | None, ...] | None:
    """y, the sum, mean and variance; None where no kernel takes all of it along."""
    x = call.x
    shift, gain = None, None
    if call.modulation is not None:
        channels = _channels(call.sentence, x.ndim)
        if channels is None or any(_is_wide(a, channels) for a in call.modulation):
            return None
        lengths = x.shape[0], x.shape[channels]
        shift, gain = (a.reshape(a.shape[0], a.shape[channels]).expand(lengths) for a in call.modulation)
    arrays = x, call.residual, call.scale, call.offset, shift, gain
    if not all(a is None or a.is_floating_point() for a in arrays):
        return None
    if ops.is_traced():
        kernel = _asked_for()
        if kernel is None or torch_compile.is_transformed() or torch.onnx.is_in_onnx_export():
            return None
        words = call.activation, call.sentence, call.eps, kernel
        y, total, mean, variance, _ = torch.ops.anynorm.normalize_fused(*arrays, *words, erasing)
        return y, None if call.residual is None else total, mean, variance
    if forward_ad._current_level >= 0 or not torch_arrays.plain(*arrays) or (gain is not None and not _leads(x)):
        return None
    dtype = _type_of_sum(x, call.residual)
    plan, door, eps = torch_choice.checked(x, call.scale, call.offset, call.sentence, call.eps, False, erasing, dtype)
    if not hasattr(door, "fused_forward"):
        return None
    if torch_arrays.wants(*arrays):
        y, total, mean, variance = _Fused.apply(*arrays, call, plan, eps, statistics, door)
    else:
        around = door.Around(call.residual, shift, gain, call.activation)
        y, total, mean, variance, _ = door.fused_forward(
            x, call.scale, call.offset, plan, eps, around, statistics=statistics, gradient=False
        )
    if statistics:
        mean, variance = torch_arrays.kept_from_runs(x, mean, variance, plan)
    return y, total, mean, variance


def _is_wide(values: Array, channels: int) -> bool:
    """Whether these differ along more than samples and channels."""
    return any(n != 1 for d, n in enumerate(values.shape) if d not in (0, channels))


def _leads(x: Array) -> bool:
    """Whether the samples are outermost in memory."""
    return bool(x.stride(0) == max(x.stride()))


def _type_of_sum(x: Array, residual: Array | None) -> torch.dtype:
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


@constant
def _asked_for() -> str | None:
    """The kernel that is forced and that takes all along: what shapes are not known for chooses no other."""
    forced = forced_by_environment()
    return forced if forced in FUSES else None


@constant
def _channels(sentence: str, rank: int) -> int | None:
    return _cached_channels(sentence, rank)


@lru_cache(maxsize=1024)
def _cached_channels(sentence: str, rank: int) -> int | None:
    """The one dimension that scale and offset lie along, element by element, if the first one is of samples alone."""
    spec = NormSpec.decode(sentence)
    expanded = spec.pattern.expand(rank)
    names = affine_names(spec, expanded)
    carries = [[axis.name in names for axis in dim] for dim in expanded.dims]
    found = [d for d, dim in enumerate(carries) if any(dim)]
    if len(found) != 1 or found[0] == 0 or not all(carries[found[0]]):
        return None
    return None if any(axis.shared for axis in expanded.dims[0]) else found[0]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Array, residual: Array, scale: Array, offset: Array, shift: Array, gain: Array,
        call: Call, plan: Any, eps: float, statistics: bool, door: Any,
    ) -> tuple[Array | None, ...]:  # fmt: skip
        around = door.Around(residual, shift, gain, call.activation)
        y, total, mean, variance, saved = door.fused_forward(x, scale, offset, plan, eps, around, statistics=statistics)
        ctx.set_materialize_grads(False)
        ctx.types = x.dtype, None if residual is None else residual.dtype
        # Of the call only its words: its tensors would be kept, and their graph with them.
        ctx.given = call.behind, call.activation, call.sentence, plan, eps, door
        ctx.save_for_backward(x if total is None else total, scale, offset, shift, gain, saved)
        if statistics:
            ctx.mark_non_differentiable(mean, variance)
        return y, total, mean, variance

    @staticmethod
    def backward(ctx: Any, dy: Array | None, dtotal: Array | None, *_: Any) -> tuple[Array | None, ...]:
        total, *smalls, saved = ctx.saved_tensors
        behind, activation, sentence, plan, eps, door = ctx.given
        batched = any(a is not None and torch._C._functorch.is_legacy_batchedtensor(a) for a in (dy, dtotal))
        if dy is None:
            grads = [dtotal, None, None, None, None]
        elif not torch.is_grad_enabled() and not batched and torch_arrays.plain(total, dy, dtotal):
            scale, offset, *modulation = smalls
            around = door.Around(None, *modulation, activation)
            grads = door.fused_backward(total, dy, dtotal, scale, offset, saved, plan, eps, around)
        else:
            grads = _composed([total, *smalls], dy, dtotal, behind, sentence, eps, ctx.types[0])
        return *_of_both(ctx.types, grads[0]), *grads[1:], None, None, None, None, None


def _of_both(types: tuple[torch.dtype | None, ...], d: Array | None) -> tuple[Array | None, ...]:
    """The sum's gradient, as that of x and as that of the residual."""
    return tuple(None if t is None or d is None else d.to(t) for t in types)


def _composed(
    arrays: list[Array], dy: Array, dtotal: Array | None, behind: Callable[..., Array], sentence: str,
    eps: float, dtype: torch.dtype,
) -> list[Array | None]:  # fmt: skip
    """The gradients by way of the composed formula, differentiable themselves."""
    keeps = torch.is_grad_enabled()
    total, scale, offset, *modulation = arrays
    with torch.enable_grad():
        n = ops.normalize(total, scale, offset, None, NormSpec.decode(sentence), eps, "composed")[0]
        if modulation[0] is not None:
            channels = _channels(sentence, total.ndim)
            shape = [length if d in (0, channels) else 1 for d, length in enumerate(total.shape)]
            modulation = [a.reshape(shape) for a in modulation]
        y = behind(n, None if modulation[0] is None else tuple(modulation), dtype)
        asked = [a for a in arrays if a is not None and a.requires_grad]
        found = iter(torch.autograd.grad(y, asked, dy, create_graph=keeps))
    grads = [next(found) if a is not None and a.requires_grad else None for a in arrays]
    if dtotal is not None:
        grads[0] = dtotal if grads[0] is None else grads[0] + dtotal
    return grads


@torch.library.custom_op("anynorm::normalize_fused", mutates_args=())
def _forward(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    shift: Tensor | None,
    gain: Tensor | None,
    activation: str | None,
    sentence: str,
    eps: float,
    kernel: str,
    erasing: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, the sum (empty without a residual), mean, variance, and what the gradient needs."""
    spec = NormSpec.decode(sentence)
    eps = check(ops, x, scale, offset, None, spec, eps, erasing)
    seen = _seen(x, gain)
    plan, door = _choice(seen, _type_of_sum(x, residual), spec, kernel)
    around = door.Around(residual, shift, gain, activation)
    y, total, mean, variance, saved = door.fused_forward(seen, scale, offset, plan, eps, around)
    mean, variance = torch_arrays.kept_from_runs(seen, mean, variance, plan)
    total = x.new_empty(0) if total is None else torch_compile.laid_out(total, x)
    return torch_compile.laid_out(y, x), total, mean, variance, saved


def _seen(x: Tensor, gain: Tensor | None) -> Tensor:
    """x without gaps, as the sum lies too, so that both passes have one plan; its samples outermost if they must be."""
    x = torch_compile.laid_out(x, x)
    return x if gain is None or _leads(x) else x.contiguous()


def _choice(x: Tensor, dtype: torch.dtype, spec: NormSpec, kernel: str) -> tuple[Any, Any]:
    return torch_choice.choice_of(x.shape, x.stride(), dtype, x.device, spec, kernel, False)


@_forward.register_fake
def _forward_fake(
    x: Tensor, residual: Tensor | None, scale: Any, offset: Any, shift: Any, gain: Any, activation: Any, sentence: str,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    mean, variance = torch_compile.moments_fake(x, None, sentence)
    total = x.new_empty(0) if residual is None else torch.empty_like(x, dtype=_type_of_sum(x, residual))
    return torch.empty_like(x), total, mean, variance, x.new_empty((mean.numel(), 2), dtype=torch.float64)


@torch.library.custom_op("anynorm::normalize_fused_backward", mutates_args=())
def _backward(
    total: Tensor,
    dy: Tensor,
    dtotal: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    shift: Tensor | None,
    gain: Tensor | None,
    saved: Tensor,
    activation: str | None,
    sentence: str,
    eps: float,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dscale, doffset, dshift and dgain; empty for what is not there."""
    x = _seen(total, gain)
    plan, door = _choice(x, x.dtype, NormSpec.decode(sentence), kernel)
    around = door.Around(None, shift, gain, activation)
    dx, *smalls = door.fused_backward(x, dy, dtotal, scale, offset, saved, plan, eps, around)
    dscale, doffset, dshift, dgain = (x.new_empty(0) if d is None else d for d in smalls)
    return torch_compile.laid_out(dx, total), dscale, doffset, dshift, dgain


@_backward.register_fake
def _backward_fake(
    total: Tensor, dy: Tensor, dtotal: Any, scale: Any, offset: Any, shift: Any, gain: Any, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dscale, doffset = (total.new_empty(0) if a is None else torch.empty_like(a) for a in (scale, offset))
    dshift, dgain = (total.new_empty(0) if a is None else a.new_empty(a.shape) for a in (shift, gain))
    return torch.empty_like(total), dscale, doffset, dshift, dgain


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, *smalls, activation, sentence, eps, kernel, _ = inputs
    _, total, mean, variance, saved = output
    ctx.set_materialize_grads(False)
    ctx.types = x.dtype, None if residual is None else residual.dtype
    ctx.words = activation, sentence, eps, kernel
    ctx.save_for_backward(x if residual is None else total, *smalls, saved)
    ctx.mark_non_differentiable(mean, variance, saved, *([total] if residual is None else []))


def _gradient(ctx: Any, dy: Tensor | None, dtotal: Tensor | None, *_: Any) -> tuple[Any, ...]:
    total, *smalls, saved = ctx.saved_tensors
    dtotal = None if ctx.types[1] is None else dtotal
    if dy is None:
        dx, grads = dtotal, [None] * 4
    else:
        dx, *grads = _backward(total, dy, dtotal, *smalls, saved, *ctx.words)
        grads = [None if a is None else d for a, d in zip(smalls, grads, strict=True)]
    return *_of_both(ctx.types, dx), *grads, None, None, None, None, None


_forward.register_autograd(_gradient, setup_context=_setup_context)
