"""What is refused before anything is computed, in words that say what to do."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

from ..plan import Shape
from ..plan import plan as make_plan
from ..precision import checked_eps, statistics_dtype
from ..spec import NormSpec

Array = Any


def check(
    ops: ModuleType,
    x: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    spec: NormSpec,
    eps: float,
    erasing: bool = True,
) -> float:
    """`eps` as a float; raise unless x, its parameters and its mask fit the sentence.

    `erasing`: raise also where y would not depend on x.
    """
    check_shapes(
        ops.dtype(x),
        ops.shape(x),
        None if scale is None else ops.shape(scale),
        None if offset is None else ops.shape(offset),
        spec,
        erasing,
    )
    check_mask(ops, x, mask)
    return checked_eps(eps)


@lru_cache(maxsize=8192)
def check_shapes(
    dtype: str, shape: Shape, scale: Shape | None, offset: Shape | None, spec: NormSpec, erasing: bool
) -> None:
    statistics_dtype(dtype)
    plan = make_plan(spec, shape)
    if erasing and plan.count == 1 and plan.removes_mean:
        raise ValueError(
            f'under "{spec.text}" each statistic is over one element of an array of shape {written(shape)}, so '
            "that nothing of x would be left; put more axes in square brackets, or use fewer groups"
        )
    if (scale is not None or offset is not None) and spec.affine_text is None:
        raise ValueError(
            f'which axes of "{spec.text}" carry scale and offset? Say affine=, as in affine="{spec.pattern.names[-1]}"'
        )
    for given, name in ((scale, "scale"), (offset, "offset")):
        if given is not None and not _fits(given, plan.affine.shape):
            raise ValueError(
                f"{name} must have the shape {written(plan.affine.shape)} of the affine axes, and it has "
                f"{written(given)}"
            )


def check_mask(ops: ModuleType, x: Array, mask: Array | None) -> None:
    """Raise unless the mask is boolean and broadcasts to x."""
    if mask is None:
        return
    if not hasattr(mask, "dtype"):
        raise TypeError(f"the mask must be an array like x, of booleans, and it is a {type(mask).__name__}")
    if ops.dtype(mask) != "bool":
        raise TypeError(f"the mask must be boolean, true where an element counts, and it is {ops.dtype(mask)}")
    shape, whole = ops.shape(mask), ops.shape(x)
    if len(shape) > len(whole) or not all(
        m in (1, None) or n is None or m == n for m, n in zip(shape[::-1], whole[::-1], strict=False)
    ):
        raise ValueError(f"a mask of shape {written(shape)} does not broadcast to {written(whole)}")


def check_out(ops: ModuleType, x: Array, out: Array) -> None:
    """Raise unless `out` is an array like x."""
    if type(out) is not type(x) or ops.dtype(out) != ops.dtype(x) or ops.shape(out) != ops.shape(x):
        kind = f"{type(out).__name__} of type {getattr(out, 'dtype', '?')} and shape {getattr(out, 'shape', '?')}"
        raise TypeError(
            f"out must be like x, a {type(x).__name__} of type {ops.dtype(x)} and shape {written(ops.shape(x))}, and "
            f"it is a {kind}"
        )


def written(shape: Shape) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"


def _fits(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        a is None or b is None or a == b for a, b in zip(shape, wanted, strict=True)
    )
