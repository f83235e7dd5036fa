"""Which kernel computes a normalization, and why: the one run-time choice, pure and printable.

cpu        anynorm's own loops for CPUs, wherever they have loops for the runs at hand
triton     anynorm's own kernels for NVIDIA GPUs on torch, where they are asked for
pallas     anynorm's own kernels for CUDA GPUs on JAX, where they are asked for
native     the framework's own kernel, where its answer keeps the precision contract and anynorm's own are missing
composed   the formula in the framework's primitives: the answer everywhere else
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache

from ..plan import Plan
from ..precision import statistics_dtype
from . import cpu, pallas, triton

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")
KERNELS = ("cpu", "triton", "pallas", "native", "composed")
# Those that compute along what goes around a normalization: activation, residual and modulation.
FUSES = ("triton",)
# The environment variable that forces one of them.
VARIABLE = "ANYNORM_KERNEL"

# The library by which each framework reaches the kernels in cpu/.
_DOORS = {"numpy": "cpu", "torch": "cpu", "jax": "jax", "tensorflow": "tensorflow"}

# What who saves a program with a kernel in it has to know.
_NOTES = {
    "jax": "; jax.export writes composed instead, and refuses them where they are asked for",
    "tensorflow": "; a SavedModel with them loads after anynorm.kernels.cpu.tensorflow.register(), and one exported "
    f"under {VARIABLE}=composed anywhere; XLA compiles only the latter, as it compiles no tf.function that ran by "
    "itself with them before",
}


@dataclass(frozen=True)
class Choice:
    """The kernel's name, and the reason in words."""

    kernel: str
    why: str


def select(
    plan: Plan, framework: str, device: str, dtype: str, forced: str | None = None, masked: bool = False
) -> Choice:
    """The kernel for arrays of `dtype` on `device` ("cpu", "cuda", …) under `plan`.

    Args:
        forced: the name of a kernel that must be the one; None means the environment's ANYNORM_KERNEL, or, where that
            is not set, the best. The environment is read once, at the first call: set it before, best before Python
            starts. A function that was compiled (by jax.jit, torch.compile, tf.function) keeps the kernels with which
            it was.
        masked: whether some elements do not count.

    Raises:
        ValueError: an unknown framework, or a forced kernel that does not exist or cannot run.
        TypeError: a type that cannot be normalized.

    >>> from anynorm import NormSpec
    >>> from anynorm.plan import plan
    >>> select(plan(NormSpec.of("... [c]"), (4, 64)), "jax", "cpu", "float32", forced="composed").kernel
    'composed'
    """
    return _select(plan, framework, device, dtype, forced or forced_by_environment(), masked)


@lru_cache(maxsize=1)
def forced_by_environment() -> str | None:
    """The kernel that ANYNORM_KERNEL names, None where it is unset or empty."""
    return os.environ.get(VARIABLE) or None


@lru_cache(maxsize=8192)
def _select(plan: Plan, framework: str, device: str, dtype: str, forced: str | None, masked: bool) -> Choice:
    if framework not in FRAMEWORKS:
        raise ValueError(f'"{framework}" is none of the frameworks: {", ".join(FRAMEWORKS)}')
    statistics = statistics_dtype(dtype)
    if forced is not None and forced not in KERNELS:
        raise ValueError(f'there is no kernel "{forced}" ({VARIABLE} or kernel=); there are {", ".join(KERNELS)}')
    why_not = {
        "cpu": _why_not_cpu(plan, framework, device, masked),
        "triton": _why_not_triton(plan, framework, device, dtype, masked, forced),
        "pallas": _why_not_pallas(plan, framework, device, dtype, masked, forced),
        "native": _why_not_native(plan, framework, device, masked),
    }
    if forced is not None and why_not.get(forced):
        raise ValueError(
            f"the {forced} kernel was asked for ({VARIABLE} or kernel=) and cannot run here: {why_not[forced]}"
        )
    able = [name for name, reason in why_not.items() if not reason and forced in (None, name)]
    if "cpu" in able:
        note = _NOTES.get(framework, "")
        return Choice("cpu", f"anynorm's own loops for CPUs, statistics in {statistics} and double{note}")
    if "triton" in able:
        return Choice(
            "triton",
            "anynorm's own loops for GPUs, with activation, residual and modulation in them, statistics in "
            f"{statistics} and double",
        )
    if "pallas" in able:
        note = _NOTES[framework]
        return Choice("pallas", f"anynorm's own kernels for CUDA GPUs in Pallas, statistics in {statistics}{note}")
    if "native" in able:
        return Choice(
            "native",
            f"{framework}'s own kernel for rows, statistics in {statistics}; rows outside its precise range go to "
            f"composed; not cpu: {why_not['cpu']}",
        )
    if device == "cpu":
        del why_not["triton"]
    reasons = "it was asked for" if forced else "; ".join(why_not.values())
    work = "float64" if framework == "numpy" else statistics
    return Choice(
        "composed", f"the formula in {framework}'s own operations on {device}, statistics in {work}; {reasons}"
    )


def _why_not_cpu(plan: Plan, framework: str, device: str, masked: bool) -> str:
    """The reason why anynorm's loops for CPUs do not serve; empty where they do."""
    if device != "cpu":
        return "anynorm's CPU kernels are for CPUs"
    if cpu.why_not():
        return cpu.why_not()
    if cpu.door(_DOORS[framework]) is None:
        return f"anynorm was built without the CPU kernels' door for {framework}"
    if masked:
        return "the CPU kernels take no mask"
    # TensorFlow's operation learns the lengths when it runs.
    if framework != "tensorflow" and any(run.extent is None for run in plan.runs):
        return "the CPU kernels need to know every length"
    if not cpu.supports(plan):
        return f"the CPU kernels have no loops for runs of this order, {plan}"
    return ""


def _why_not_triton(plan: Plan, framework: str, device: str, dtype: str, masked: bool, forced: str | None) -> str:
    """The reason why anynorm's loops for GPUs do not serve; empty where they do."""
    if framework != "torch":
        return "the Triton kernels are for torch"
    if device != "cuda" and not (device == "cpu" and triton.interpreted()):
        return "the Triton kernels are for CUDA devices"
    if triton.why_not():
        return triton.why_not()
    if dtype not in triton.DTYPES:
        return f"the Triton kernels compute in float32, and this is {dtype}"
    if masked:
        return "the Triton kernels take no mask"
    # Of an empty array nothing is launched.
    if triton.geometry(plan) is None and not plan.empty:
        return f"the Triton kernels have no loops for runs of this order, {plan}"
    if forced != "triton":
        return f"the Triton kernels have not run on a GPU yet; {VARIABLE}=triton takes them"
    return ""


def _why_not_pallas(plan: Plan, framework: str, device: str, dtype: str, masked: bool, forced: str | None) -> str:
    """The reason why the kernels in Pallas do not serve; empty where they do."""
    if framework != "jax":
        return "Pallas's kernels are for jax"
    if reason := pallas.why_not(plan, device, dtype, masked):
        return reason
    if forced != "pallas":
        return f"Pallas's kernels were not measured against XLA's own fusion yet; {VARIABLE}=pallas takes them"
    return ""


def _why_not_native(plan: Plan, framework: str, device: str, masked: bool) -> str:
    """The reason why the framework's own kernel does not serve; empty where it does."""
    if framework != "torch":
        return f"{framework} has no kernel of its own that keeps the precision"
    if device != "cpu":
        return "torch's own kernel was not measured on other devices"
    if masked:
        return "torch's own kernel takes no mask"
    if plan.empty:
        return "the array is empty"
    if not (plan.removes_mean and plan.removes_scale):
        return "torch's own kernel removes both moments"
    if any(run.extent is None for run in plan.runs) or not re.fullmatch("k?K?(Rr?|r)", plan.labels):
        return "the elements that share a statistic do not lie in a row"
    return ""
