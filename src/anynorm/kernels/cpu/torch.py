"""The CPU kernels for torch tensors: memory in, memory out, no autograd.

Tensors are taken as they lie in memory, `plan.order` being their dimensions from outermost to innermost, so that
channels_last needs no copy; results lie as x does. Tensors must have memory of their own: those of vmap have none.
"""

from __future__ import annotations

from typing import Any

import torch

from ...plan import Plan, Small
from ...precision import FORMATS
from . import DTYPES, Problem, calls, problem

Array = Any

# The smallest sum of variance and eps that counts, as in the composed formula.
_TINY = FORMATS["float32"].tiny
_NAMES = {getattr(torch, name): name for name in DTYPES}


def forward(
    x: Array,
    scale: Array | None,
    offset: Array | None,
    plan: Plan,
    eps: float,
    out: Array | None = None,
    *,
    statistics: bool = True,
    gradient: bool = True,
) -> tuple[Array, Array | None, Array | None, Array | None]:
    """y (in `out`, if that is given), mean and variance over the kept runs, and what the gradient needs.

    What is not asked for is None: for small arrays most of the time goes into making tensors.
    """
    x, scale, offset = _dense(x, plan), _small(scale, x, plan), _small(offset, x, plan)
    # Small arrays first: behind a large one they would keep its memory from joining the rest when it is given back, and
    # the next y would lie in memory that no cache knows.
    mean, variance = _moments(x, plan) if statistics else (None, None)
    saved = _saved(x, plan) if gradient else None
    y = torch.empty_like(x) if out is None else out
    calls.forward(
        _problem(x, scale, offset, plan, eps),
        x.data_ptr(),
        None if scale is None else scale.data_ptr(),
        None if offset is None else offset.data_ptr(),
        y.data_ptr(),
        None if mean is None else mean.data_ptr(),
        None if variance is None else variance.data_ptr(),
        None if saved is None else saved.data_ptr(),
    )
    return y, mean, variance, saved


def can_write(out: Array, x: Array, scale: Array | None, offset: Array | None, plan: Plan) -> bool:
    """Whether y may be written into `out` as it comes: it lies as x does, is x or apart from it, and from the rest."""
    if out.stride() != x.stride() or (plan.in_order and not x.is_contiguous()):
        return False
    same = out.data_ptr() == x.data_ptr()
    return (same or _apart(out, x)) and all(a is None or _apart(out, a) for a in (scale, offset))


def _apart(a: Array, b: Array) -> bool:
    return bool(a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr())


def backward(
    x: Array, dy: Array, scale: Array | None, offset: Array | None, saved: Array, plan: Plan, eps: float
) -> tuple[Array, Array | None, Array | None]:
    """dx, dscale and doffset; None for what was not given."""
    x, like_scale, like_offset = _dense(x, plan), scale, offset
    scale, offset = _small(scale, x, plan), _small(offset, x, plan)
    if dy.dtype != x.dtype or dy.stride() != x.stride():
        dy = torch.empty_like(x).copy_(dy)
    dscale = None if scale is None else torch.empty_like(scale)
    doffset = None if offset is None else torch.empty_like(offset)
    dx = torch.empty_like(x)
    calls.backward(
        _problem(x, scale, offset, plan, eps),
        x.data_ptr(),
        dy.data_ptr(),
        None if scale is None else scale.data_ptr(),
        saved.data_ptr(),
        dx.data_ptr(),
        None if dscale is None else dscale.data_ptr(),
        None if doffset is None else doffset.data_ptr(),
    )
    return dx, _like(dscale, like_scale, plan.affine), _like(doffset, like_offset, plan.affine)


def moments(x: Array, plan: Plan) -> tuple[Array, Array]:
    """Mean and variance over the kept runs."""
    x = _dense(x, plan)
    mean, variance = _moments(x, plan)
    calls.moments(_problem(x, None, None, plan, 0.0), x.data_ptr(), mean.data_ptr(), variance.data_ptr(), None)
    return mean, variance


def apply(
    x: Array,
    mean: Array,
    variance: Array,
    scale: Array | None,
    offset: Array | None,
    plan: Plan,
    eps: float,
    *,
    gradient: bool = False,
) -> tuple[Array, Array | None]:
    """y from statistics made elsewhere, over the kept axes as users have them, and what the gradient needs."""
    x, scale, offset = _dense(x, plan), _small(scale, x, plan), _small(offset, x, plan)
    mean, variance = _statistic(mean, x, plan), _statistic(variance, x, plan)
    saved = _saved(x, plan) if gradient else None
    y = torch.empty_like(x)
    calls.apply(
        _problem(x, scale, offset, plan, eps),
        x.data_ptr(),
        mean.data_ptr(),
        variance.data_ptr(),
        None if scale is None else scale.data_ptr(),
        None if offset is None else offset.data_ptr(),
        y.data_ptr(),
        None if saved is None else saved.data_ptr(),
    )
    return y, saved


def _problem(x: Array, scale: Array | None, offset: Array | None, plan: Plan, eps: float) -> Problem:
    of_scale = None if scale is None else _NAMES[scale.dtype]
    of_offset = None if offset is None else _NAMES[offset.dtype]
    return problem(plan, _NAMES[x.dtype], of_scale, of_offset, eps, torch.get_num_threads())


def _dense(x: Array, plan: Plan) -> Array:
    """x itself where its elements lie next to each other in the plan's order, else a copy that does."""
    # Another order than that of the dimensions was read from the strides of a tensor without gaps.
    return x if not plan.in_order or x.is_contiguous() else x.contiguous()


def _small(values: Array | None, x: Array, plan: Plan) -> Array | None:
    """Scale or offset as it lies on the runs, in a type that the kernels read."""
    if values is None:
        return None
    if values.dtype not in _NAMES:
        values = values.to(_work(x))
    return _in_memory(values, plan.affine)


def _statistic(values: Array, x: Array, plan: Plan) -> Array:
    work = _work(x)
    return _in_memory(values if values.dtype == work else values.to(work), plan.kept)


def _in_memory(values: Array, small: Small) -> Array:
    if not small.in_order:
        values = values.reshape(small.axes).permute(small.order)
    return values if values.is_contiguous() else values.contiguous()


def _like(values: Array | None, like: Array | None, small: Small) -> Array | None:
    """The way back of `_small`, for a gradient."""
    if values is None or like is None:
        return None
    if not small.in_order:
        back = sorted(range(len(small.order)), key=small.order.__getitem__)
        values = values.permute(back)
    if values.shape == like.shape and values.dtype == like.dtype:
        return values
    return values.reshape(like.shape).to(like.dtype)


def _moments(x: Array, plan: Plan) -> tuple[Array, Array]:
    # Apart: an operator's results may not share memory.
    groups, work = plan.groups or 0, _work(x)
    return x.new_empty(groups, dtype=work), x.new_empty(groups, dtype=work)


def _saved(x: Array, plan: Plan) -> Array:
    return x.new_empty((plan.groups or 0, 2), dtype=torch.float64)


def _work(x: Array) -> Any:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
