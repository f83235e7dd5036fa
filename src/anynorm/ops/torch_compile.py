"""The operation as one registered operator: what torch.compile puts into its graph, for any batch size and no break."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

from ..plan import Plan
from ..spec import NormSpec
from . import torch_arrays, torch_choice, torch_onnx
from .checks import check, check_mask
from .torch_constant import constant


def normalize(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    sentence: str,
    eps: float,
    kernel: str | None,
    erasing: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and variance; `erasing`: refuse what would leave nothing of x."""
    if torch.onnx.is_in_onnx_export():
        # Nobody who asks for statistics comes here.
        none = x.new_empty(0)
        return torch_onnx.normalize(x, scale, offset, NormSpec.decode(sentence), eps, mask), none, none
    if is_transformed():
        y, mean, variance = torch.ops.anynorm.normalize_openly(x, scale, offset, mask, sentence, eps, erasing)
        return y, mean, variance
    y, mean, variance, _ = _forward(x, scale, offset, mask, sentence, eps, kernel, erasing)
    return y, mean, variance


@constant
def is_transformed() -> bool:
    """Whether a derivative is taken inside what is traced, by torch.func or forward mode: operators have none there."""
    differentiates = (TransformType.Grad, TransformType.Jvp)
    stack = torch._C._functorch.get_interpreter_stack() or []
    return forward_ad._current_level >= 0 or any(level.key() in differentiates for level in stack)


# Not opaque: what a transform or a compiler sees are the operators of torch's own that it consists of.
torch.library.define(
    "anynorm::normalize_openly",
    "(Tensor x, Tensor? scale, Tensor? offset, Tensor? mask, str sentence, float eps, bool erasing)"
    " -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("anynorm::normalize_openly", "CompositeImplicitAutograd")
def _openly(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    sentence: str,
    eps: float,
    erasing: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The composed formula, for one shape: lengths that a compiler left open are fixed."""
    from . import torch as ops

    spec = NormSpec.decode(sentence)
    eps = check(ops, x, scale, offset, mask, spec, eps, erasing)
    plan = _fixed_plan(x, spec)
    # Reverse mode over forward mode stumbles at views of what the forward mode made, and not of a copy.
    y, mean, variance, _ = torch_arrays.forward(x.clone(), scale, offset, mask, plan, eps, "composed")
    return y, mean.detach(), variance.detach()


@torch.library.custom_op("anynorm::normalize", mutates_args=())
def _forward(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    sentence: str,
    eps: float,
    kernel: str | None,
    erasing: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, mean, variance, and what the gradient of a kernel of our own needs; zeros where none ran."""
    from . import torch as ops

    spec = NormSpec.decode(sentence)
    eps = check(ops, x, scale, offset, mask, spec, eps, erasing)
    plan, door = torch_choice.choice(x, mask, spec, kernel)
    if door is not None:
        y, mean, variance, saved = door.forward(x, scale, offset, plan, eps)
        mean, variance = torch_arrays.kept_from_runs(x, mean, variance, plan)
    else:
        y, mean, variance, _ = torch_arrays.forward(x, scale, offset, mask, plan, eps, kernel)
        saved = x.new_zeros((mean.numel(), 2), dtype=torch.float64)
    return laid_out(y, x), mean, variance, saved


@_forward.register_fake
def _forward_fake(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    sentence: str,
    eps: float,
    kernel: str | None,
    erasing: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, variance = moments_fake(x, mask, sentence)
    return torch.empty_like(x), mean, variance, x.new_empty((mean.numel(), 2), dtype=torch.float64)


@torch.library.custom_op("anynorm::normalize_backward", mutates_args=())
def _backward(
    x: Tensor,
    dy: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    saved: Tensor,
    sentence: str,
    eps: float,
    kernel: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dscale and doffset; empty where there is no scale or offset, since an operator's results cannot be None."""
    plan, door = torch_choice.choice(x, mask, NormSpec.decode(sentence), kernel)
    if door is not None:
        dx, dscale, doffset = door.backward(x, dy, scale, offset, saved, plan, eps)
    else:
        dx, dscale, doffset = torch_arrays.backward(x, dy, scale, offset, mask, plan, eps)
    none = x.new_empty(0)
    return laid_out(dx, x), none if dscale is None else dscale, none.clone() if doffset is None else doffset


@_backward.register_fake
def _backward_fake(
    x: Tensor, dy: Tensor, scale: Tensor | None, offset: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *(x.new_empty(0) if s is None else torch.empty_like(s) for s in (scale, offset))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, ctx.sentence, ctx.eps, ctx.kernel, _ = inputs
    ctx.save_for_backward(*arrays, output[3])
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    x, scale, offset, mask, saved = ctx.saved_tensors
    dx, dscale, doffset = _backward(x, dy, scale, offset, mask, saved, ctx.sentence, ctx.eps, ctx.kernel)
    small = (None if s is None else d for s, d in ((scale, dscale), (offset, doffset)))
    return dx, *small, None, None, None, None, None


_forward.register_autograd(_gradient, setup_context=_setup_context)


def moments(x: Tensor, mask: Tensor | None, sentence: str, kernel: str | None) -> tuple[Tensor, Tensor]:
    """Mean and variance, differentiable."""
    if is_transformed():
        mean, variance = torch.ops.anynorm.moments_openly(x, mask, sentence)
    else:
        mean, variance = _moments(x, mask, sentence, kernel)
    return mean, variance


torch.library.define("anynorm::moments_openly", "(Tensor x, Tensor? mask, str sentence) -> (Tensor, Tensor)")


@torch.library.impl("anynorm::moments_openly", "CompositeImplicitAutograd")
def _moments_openly(x: Tensor, mask: Tensor | None, sentence: str) -> tuple[Tensor, Tensor]:
    from . import torch as ops

    check_mask(ops, x, mask)
    return torch_arrays.moments(x.clone(), mask, _fixed_plan(x, NormSpec.decode(sentence)))


def _fixed_plan(x: Tensor, spec: NormSpec) -> Plan:
    return torch_choice.plan_in_memory(tuple(map(int, x.shape)), tuple(map(int, x.stride())), spec)


@torch.library.custom_op("anynorm::moments", mutates_args=())
def _moments(x: Tensor, mask: Tensor | None, sentence: str, kernel: str | None) -> tuple[Tensor, Tensor]:
    from . import torch as ops

    check_mask(ops, x, mask)
    plan, door = torch_choice.choice(x, mask, NormSpec.decode(sentence), kernel)
    if door is not None:
        mean, variance = door.moments(x, plan)
        return torch_arrays.kept_from_runs(x, mean, variance, plan)
    return torch_arrays.moments(x, mask, plan)


@_moments.register_fake
def moments_fake(x: Tensor, mask: Tensor | None, sentence: str, kernel: str | None = None) -> tuple[Tensor, Tensor]:
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
    plan = torch_choice.plan_of(x, NormSpec.decode(sentence))
    return laid_out(torch_arrays.moments_backward(x, mask, dmean, dvariance, plan), x)


@_moments_backward.register_fake
def _moments_backward_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _setup_moments(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, ctx.sentence, _ = inputs
    ctx.save_for_backward(*arrays)


def _moments_gradient(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    return _moments_backward(*ctx.saved_tensors, *grads, ctx.sentence), None, None, None


_moments.register_autograd(_moments_gradient, setup_context=_setup_moments)


@torch.library.custom_op("anynorm::is_first_pass", mutates_args=())
def is_first_pass(like: Tensor) -> Tensor:
    """A number of the tensor's type: 1, and 0 inside a backward pass, where checkpointing runs a forward pass again."""
    return like.new_tensor(torch._C._current_graph_task_id() == -1)


@is_first_pass.register_fake
def _is_first_pass_fake(like: Tensor) -> Tensor:
    return like.new_empty(())


@is_first_pass.register_vmap
def _is_first_pass_batched(info: Any, dims: Any, like: Tensor) -> tuple[Tensor, None]:
    return is_first_pass(like), None


def laid_out(y: Tensor, like: Tensor) -> Tensor:
    """y with the strides that the fake operator promised."""
    promised = torch.empty_like(like, dtype=y.dtype)
    return y if y.stride() == promised.stride() else promised.copy_(y)
