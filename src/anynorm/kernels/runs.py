"""The shapes in which the composed formula sees an array, and its reductions in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..plan import Plan, Run, blocks

Array = Any
Verbs = Any


class Runs:
    """The shapes in which one array is seen: its runs, and its runs merged where scale / sqrt(var) is constant."""

    def __init__(self, v: Verbs, x: Array, plan: Plan) -> None:
        self.v, self.x, self.plan = v, x, plan
        self.extents = [v.length(x, i) if run.extent is None else run.extent for i, run in enumerate(plan.runs)]
        self.varying = [e if varies(run) else 1 for e, run in zip(self.extents, plan.runs, strict=True)]
        merged = blocks(plan, varies)
        self.folded = [_product(self.extents[i] for i in run) for _, run in merged]
        self.spreaded = [_product(self.extents[i] for i in run) if outer else 1 for outer, run in merged]

    def count(self) -> Any:
        total = _product(e for e, run in zip(self.extents, self.plan.runs, strict=True) if run.reduced)
        return float(max(total, 1)) if isinstance(total, int) else self.v.number(total, self.v.dtype(self.x))

    def fold(self, x: Array) -> Array:
        return self.v.reshape(x, self.folded) if self.plan.folds else x

    def unfold(self, x: Array) -> Array:
        return self.v.reshape(x, self.extents) if self.plan.folds else x

    def spread(self, small: Array) -> Array:
        """A statistic or a coefficient, shaped so that it broadcasts against a folded array."""
        if not self.plan.folds:
            return small
        return self.v.reshape(self.v.broadcast_to(small, self.varying), self.spreaded)

    def group(self, verb: Callable[[Array], Array], folded: Array) -> Array:
        """One number a group: first over what is constant in scale / sqrt(var), then over the rest, which is small."""
        inner = self._reduce(verb, folded, self.extents, lambda run: not varies(run))
        return self._reduce(verb, inner, self.varying, lambda run: run.reduced)

    def inner_sum(self, folded: Array) -> Array:
        """The sum over what is constant in scale / sqrt(var), in the runs' shape."""
        return self._reduce(self.v.sum, folded, self.extents, lambda run: not varies(run))

    def sum_to_group(self, inner: Array) -> Array:
        return self._reduce(self.v.sum, inner, self.varying, lambda run: run.reduced)

    def sum_to_affine(self, inner: Array) -> Array:
        return self._reduce(self.v.sum, inner, self.varying, lambda run: not run.affine)

    def _reduce(
        self, verb: Callable[[Array], Array], x: Array, lengths: Sequence[Any], taken: Callable[[Run], bool]
    ) -> Array:
        """Reduce the runs that `taken` names to length 1: what lies contiguously first, then from the outermost on."""
        parts = [run for reduced, run in blocks(self.plan, taken) if reduced]
        if parts and parts[-1][-1] == len(self.plan.runs) - 1:
            parts = [parts[-1], *parts[:-1]]
        for run in parts:
            inside = _product(lengths[i] for i in run)
            if isinstance(inside, int) and inside == 1:
                continue
            before, after = lengths[: run[0]], lengths[run[-1] + 1 :]
            x = verb(self.v.reshape(x, [_product(before), inside, _product(after)]))
            lengths = [*before, *[1] * len(run), *after]
        return self.v.reshape(x, lengths)


def varies(run: Run) -> bool:
    """Whether scale / sqrt(var) differs along this run."""
    return run.affine or not run.reduced


def _product(extents: Any) -> Any:
    total = 1
    for extent in extents:
        total = total * extent
    return total
