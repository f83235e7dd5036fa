"""Kernels for GPUs in Pallas, which JAX lowers through Triton: where they can run, in plain Python.

view       an array as [outer, middle, inner], and the sizes of tiles; no framework
jax_tiles  what a program of a grid reads and writes
jax_statistics, jax_forward, jax_backward   the kernels
jax        what the primitives of ops/ call

A group that fits in one program's registers is read once: statistics and result in one launch. A larger one is cut
into parts, whose statistics a second launch joins and a third applies. The gradient goes the same way. No atomics, and
no choice that depends on how many groups there are, so that a group's result does not depend on its neighbours.
"""

from __future__ import annotations

import os
from functools import lru_cache

from ...plan import Plan
from ...precision import statistics_dtype
from .view import counts_fit, merged

# Where this is 1, CPUs interpret the kernels: slow, and meant for tests.
VARIABLE = "ANYNORM_PALLAS_INTERPRET"
# As JAX names the devices, and as programs for them are lowered.
DEVICES = ("gpu", "cuda")


@lru_cache(maxsize=1)
def interpreted() -> bool:
    """Whether CPUs are to interpret the kernels, read from the environment once."""
    return os.environ.get(VARIABLE) == "1"


def why_not(plan: Plan, device: str, dtype: str, masked: bool) -> str:
    """The reason why the kernels cannot run; empty where they can.

    >>> from anynorm import NormSpec
    >>> from anynorm.plan import plan
    >>> why_not(plan(NormSpec.of("... [c]"), (4, 64)), "cuda", "float64", False)
    "Pallas's kernels keep statistics in float32, and float64 has them in float64"
    """
    if device not in DEVICES and not (device == "cpu" and interpreted()):
        return f"Pallas's kernels are for CUDA GPUs; {VARIABLE}=1 makes a CPU interpret them, for tests"
    if statistics_dtype(dtype) != "float32":
        return f"Pallas's kernels keep statistics in float32, and {dtype} has them in {statistics_dtype(dtype)}"
    if masked:
        return "Pallas's kernels take no mask"
    # What an empty array comes to is composed.
    return "" if plan.empty else why_not_plan(plan)


def why_not_plan(plan: Plan) -> str:
    """The same, of the runs alone."""
    if plan.empty:
        return "the array is empty"
    if any(run.extent is None for run in plan.runs):
        return "Pallas's kernels need to know every length"
    if not counts_fit(merged(plan.runs)):
        return "Pallas's kernels count groups, and parts of them, in 32 bits"
    return ""
