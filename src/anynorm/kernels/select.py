"""Which kernel computes a normalization, and why: the one run-time choice, pure and printable."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..plan import Plan
from ..precision import statistics_dtype

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")
KERNELS = ("native", "composed")


@dataclass(frozen=True)
class Choice:
    """The kernel's name, and the reason in words."""

    kernel: str
    why: str


def select(plan: Plan, framework: str, device: str, dtype: str, forced: str | None = None) -> Choice:
    """The kernel for arrays of `dtype` on `device` ("cpu", "cuda", …) under `plan`.

    Args:
        forced: the name of a kernel that must be the one.

    Raises:
        ValueError: an unknown framework, or a forced kernel that does not exist or cannot run.
        TypeError: a type that cannot be normalized.

    >>> from anynorm import NormSpec
    >>> from anynorm.plan import plan
    >>> select(plan(NormSpec.of("... [c]"), (4, 64)), "torch", "cpu", "float32").kernel
    'native'
    """
    if framework not in FRAMEWORKS:
        raise ValueError(f'"{framework}" is none of the frameworks: {", ".join(FRAMEWORKS)}')
    work = "float64" if framework == "numpy" else statistics_dtype(dtype)
    statistics_dtype(dtype)
    if forced is not None and forced not in KERNELS:
        raise ValueError(f'there is no kernel "{forced}"; there are {", ".join(KERNELS)}')
    why_not = _why_not_native(plan, framework, device)
    if forced == "native" and why_not:
        raise ValueError(f"the native kernel cannot run here: {why_not}")
    if not why_not and forced != "composed":
        return Choice(
            "native",
            f"{framework}'s own kernel for rows, statistics in {work}; rows outside its precise range go to composed",
        )
    return Choice(
        "composed", f"the formula in {framework}'s own operations on {device}, statistics in {work}; {why_not}"
    )


def _why_not_native(plan: Plan, framework: str, device: str) -> str:
    """The reason why the framework's own kernel does not serve; empty where it does."""
    if framework != "torch":
        return f"{framework} has no kernel of its own that keeps the precision"
    if device != "cpu":
        return "torch's own kernel was not measured on other devices"
    if plan.empty:
        return "the array is empty"
    if not (plan.removes_mean and plan.removes_scale):
        return "torch's own kernel removes both moments"
    if any(run.extent is None for run in plan.runs) or not re.fullmatch("k?K?(Rr?|r)", plan.labels):
        return "the elements that share a statistic do not lie in a row"
    return ""
