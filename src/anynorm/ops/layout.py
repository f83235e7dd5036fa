"""Arrays as users have them, to arrays as the plan's runs, and back; with the verbs of any framework."""

from __future__ import annotations

import math
from typing import Any

from ..plan import Plan, Run, Small

Array = Any
Verbs = Any


def to_runs(v: Verbs, x: Array, plan: Plan) -> Array:
    """x in memory order, shaped as the runs."""
    extents = [_extent(v, x, run) for run in plan.runs]
    return v.reshape(x if plan.in_order else v.transpose(x, plan.order), extents)


def from_runs(v: Verbs, y: Array, like: Array, plan: Plan) -> Array:
    """y, shaped as the runs, in the shape of the user's array `like`."""
    y = v.reshape(y, [v.length(like, d) for d in plan.order])
    return y if plan.in_order else v.transpose(y, _inverse(plan.order))


def small_to_runs(v: Verbs, values: Array | None, small: Small, plan: Plan, x: Array, affine: bool) -> Array | None:
    """Scale or offset (`affine`) or a statistic, shaped to broadcast against the runs."""
    if values is None:
        return None
    if not small.in_order:
        axes = [-1 if length is None else length for length in small.axes]
        values = v.transpose(v.reshape(values, axes), small.order)
    return v.reshape(values, [_extent(v, x, run) if _carries(run, affine) else 1 for run in plan.runs])


def small_from_runs(v: Verbs, values: Array, small: Small, like: Array | None, plan: Plan) -> Array:
    """The way back of `small_to_runs`; `like` has the shape to give, where it is at hand."""
    shape = small.shape if like is None else [v.length(like, d) for d in range(len(small.shape))]
    if not small.in_order:
        axes = [small.axes[i] for i in small.order]
        values = v.transpose(v.reshape(values, [-1 if n is None else n for n in axes]), _inverse(small.order))
    return v.reshape(values, shape)


def statistic_from_runs(v: Verbs, values: Array, x: Array, plan: Plan) -> Array:
    """A statistic over the sentence's kept axes."""
    if not plan.kept.in_order or None not in plan.kept.shape:
        return small_from_runs(v, values, plan.kept, None, plan)
    unknown = iter([d for run in plan.runs if not run.reduced for d in run.unknown])
    return v.reshape(values, [v.length(x, next(unknown)) if n is None else n for n in plan.kept.shape])


def _extent(v: Verbs, x: Array, run: Run) -> Any:
    return math.prod([v.length(x, d) for d in run.unknown], start=run.known)


def _carries(run: Run, affine: bool) -> bool:
    return run.affine if affine else not run.reduced


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))
