"""Tensors as every kernel of ours takes them: as they lie in memory, with scale, offset and statistics along the runs.

`plan.order` are the tensor's dimensions from outermost to innermost, so that channels_last needs no copy; results lie
as x does. Tensors must have memory of their own: those of vmap have none.
"""

from __future__ import annotations

from typing import Any

import torch

from ..plan import Plan, Small

Array = Any

NAMES = {getattr(torch, name): name for name in ("float32", "float64", "float16", "bfloat16")}


def can_write(out: Array, x: Array, scale: Array | None, offset: Array | None, plan: Plan) -> bool:
    """Whether y may be written into `out` as it comes: it lies as x does, is x or apart from it, and from the rest."""
    if out.stride() != x.stride() or (plan.in_order and not x.is_contiguous()):
        return False
    same = out.data_ptr() == x.data_ptr()
    return (same or _apart(out, x)) and all(a is None or _apart(out, a) for a in (scale, offset))


def _apart(a: Array, b: Array) -> bool:
    return bool(a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr())


def dense(x: Array, plan: Plan) -> Array:
    """x itself where its elements lie next to each other in the plan's order, else a copy that does."""
    # Another order than that of the dimensions was read from the strides of a tensor without gaps.
    return x if not plan.in_order or x.is_contiguous() else x.contiguous()


def as_lies(dy: Array, x: Array) -> Array:
    """dy in the type and the layout of a dense x."""
    if dy.dtype == x.dtype and dy.stride() == x.stride():
        return dy
    return torch.empty_like(x).copy_(dy)


def laid_as(values: Array, x: Array) -> Array:
    """Values in the layout of a dense x, whatever their type."""
    return values if values.stride() == x.stride() else torch.empty_like(x, dtype=values.dtype).copy_(values)


def small(values: Array | None, x: Array, plan: Plan) -> Array | None:
    """Scale or offset as it lies on the runs, in a type that the kernels read."""
    if values is None:
        return None
    if values.dtype not in NAMES:
        values = values.to(_work(x))
    return _in_memory(values, plan.affine)


def statistic(values: Array, x: Array, plan: Plan) -> Array:
    """Mean or variance as it lies on the kept runs, in the type of statistics."""
    work = _work(x)
    return _in_memory(values if values.dtype == work else values.to(work), plan.kept)


def _in_memory(values: Array, small: Small) -> Array:
    if not small.in_order:
        values = values.reshape(small.axes).permute(small.order)
    return values if values.is_contiguous() else values.contiguous()


def like(values: Array | None, like: Array | None, small: Small) -> Array | None:
    """The way back of `small`, for a gradient."""
    if values is None or like is None:
        return None
    if not small.in_order:
        back = sorted(range(len(small.order)), key=small.order.__getitem__)
        values = values.permute(back)
    if values.shape == like.shape and values.dtype == like.dtype:
        return values
    return values.reshape(like.shape).to(like.dtype)


def room_for_moments(x: Array, plan: Plan) -> tuple[Array, Array]:
    """Mean and variance over the kept runs, to be written."""
    # Apart: an operator's results may not share memory.
    groups, work = plan.groups or 0, _work(x)
    return x.new_empty(groups, dtype=work), x.new_empty(groups, dtype=work)


def room_for_saved(x: Array, plan: Plan) -> Array:
    """What the gradient needs, to be written."""
    # Its lengths one by one: torch takes longer to read a pair of them.
    return torch.empty(plan.groups or 0, 2, dtype=torch.float64, device=x.device)


def _work(x: Array) -> Any:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
