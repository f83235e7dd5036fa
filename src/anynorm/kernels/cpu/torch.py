"""The CPU kernels for torch tensors: memory in, memory out, no autograd."""

from __future__ import annotations

from typing import Any

import torch

from ...plan import Plan
from ..torch_memory import NAMES, as_lies, dense, like, room_for_moments, room_for_saved, small, statistic
from ..torch_reuse import empty_like
from . import Problem, calls, problem

Array = Any


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
    x, scale, offset = dense(x, plan), small(scale, x, plan), small(offset, x, plan)
    # Small arrays first: behind a large one they would keep its memory from joining the rest when it is given back, and
    # the next y would lie in memory that no cache knows.
    mean, variance = room_for_moments(x, plan) if statistics else (None, None)
    saved = room_for_saved(x, plan) if gradient else None
    y = empty_like(x) if out is None else out
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


def backward(
    x: Array, dy: Array, scale: Array | None, offset: Array | None, saved: Array, plan: Plan, eps: float
) -> tuple[Array, Array | None, Array | None]:
    """dx, dscale and doffset; None for what was not given."""
    x, like_scale, like_offset = dense(x, plan), scale, offset
    scale, offset = small(scale, x, plan), small(offset, x, plan)
    dy = as_lies(dy, x)
    dscale = None if scale is None else torch.empty_like(scale)
    doffset = None if offset is None else torch.empty_like(offset)
    dx = empty_like(x)
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
    return dx, like(dscale, like_scale, plan.affine), like(doffset, like_offset, plan.affine)


def moments(x: Array, plan: Plan) -> tuple[Array, Array]:
    """Mean and variance over the kept runs."""
    x = dense(x, plan)
    mean, variance = room_for_moments(x, plan)
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
    x, scale, offset = dense(x, plan), small(scale, x, plan), small(offset, x, plan)
    mean, variance = statistic(mean, x, plan), statistic(variance, x, plan)
    saved = room_for_saved(x, plan) if gradient else None
    y = empty_like(x)
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
    of_scale = None if scale is None else NAMES[scale.dtype]
    of_offset = None if offset is None else NAMES[offset.dtype]
    return problem(plan, NAMES[x.dtype], of_scale, of_offset, eps, torch.get_num_threads())
