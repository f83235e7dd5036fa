"""Which kernel computes a normalization, and why: the one run-time choice, pure and printable."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import Plan
from ..precision import statistics_dtype

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")
KERNELS = ("composed",)


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
    'composed'
    """
    if framework not in FRAMEWORKS:
        raise ValueError(f'"{framework}" is none of the frameworks: {", ".join(FRAMEWORKS)}')
    work = "float64" if framework == "numpy" else statistics_dtype(dtype)
    statistics_dtype(dtype)
    if forced is not None and forced not in KERNELS:
        raise ValueError(f'there is no kernel "{forced}"; there are {", ".join(KERNELS)}')
    if plan.empty:
        return Choice("composed", "the array is empty; there is nothing to compute")
    return Choice(
        "composed",
        f"the formula in {framework}'s own primitives on {device}, statistics in {work}; no other kernel exists",
    )
