"""Which plan and which kernel a torch tensor gets, by its shape and how it lies in memory; cached."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from ..kernels.cpu import torch as cpu
from ..kernels.select import forced_by_environment, select
from ..plan import Plan
from ..plan import plan as make_plan
from ..precision import checked_eps
from ..spec import NormSpec
from .checks import check_shapes
from .torch_arrays import name_of

Array = Any


@lru_cache(maxsize=8192)
def _memory_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions from outermost to innermost in memory, so that channels_last needs no copy."""
    order = tuple(sorted(range(len(shape)), key=lambda d: (-strides[d], d)))
    expected = 1
    for d in reversed(order):
        if shape[d] != 1 and strides[d] != expected:
            return tuple(range(len(shape)))
        expected *= shape[d]
    return order


def plan_of(x: Array, spec: NormSpec) -> Plan:
    return plan_in_memory(tuple(x.shape), x.stride(), spec)


def plan_in_memory(shape: tuple[int, ...], strides: tuple[int, ...], spec: NormSpec) -> Plan:
    return make_plan(spec, shape, _memory_order(shape, strides))


def choice(x: Array, mask: Array | None, spec: NormSpec, forced: str | None) -> tuple[Plan, Any]:
    """The plan for x as it lies in memory, and the door to the kernel that computes it; None without one.

    A door is a module that takes tensors to a kernel of our own: kernels/cpu/torch.py and those like it.
    """
    return choice_of(x.shape, x.stride(), x.dtype, x.device, spec, forced or forced_by_environment(), mask is not None)


@lru_cache(maxsize=8192)
def choice_of(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: Any,
    device: torch.device,
    spec: NormSpec,
    forced: str | None,
    masked: bool,
) -> tuple[Plan, Any]:
    plan = make_plan(spec, tuple(shape), _memory_order(tuple(shape), strides))
    return plan, _door(select(plan, "torch", device.type, name_of(dtype), forced, masked).kernel)


def _door(kernel: str) -> Any:
    """Triton takes a second to import, which only those wait for whose tensors it serves."""
    if kernel == "triton":
        from ..kernels.triton import torch as triton

        return triton
    return cpu if kernel == "cpu" else None


def checked(
    x: Array, scale: Array | None, offset: Array | None, sentence: str, eps: float, masked: bool, erasing: bool,
    dtype: torch.dtype | None = None,
) -> tuple[Plan, Any, float]:  # fmt: skip
    """The plan, the kernel's door and eps, after all checks; cached by what they depend on.

    `dtype`: what is normalized is of x's shape and layout, and of this type.
    """
    return _checked_choice(
        x.shape,
        x.stride(),
        dtype or x.dtype,
        x.device,
        None if scale is None else scale.shape,
        None if offset is None else offset.shape,
        sentence,
        forced_by_environment(),
        eps,
        masked,
        erasing,
    )


@lru_cache(maxsize=8192)
def _checked_choice(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    scale: tuple[int, ...] | None,
    offset: tuple[int, ...] | None,
    sentence: str,
    forced: str | None,
    eps: float,
    masked: bool,
    erasing: bool,
) -> tuple[Plan, Any, float]:
    spec = NormSpec.decode(sentence)
    check_shapes(name_of(dtype), tuple(shape), scale, offset, spec, erasing)
    plan, door = choice_of(shape, strides, dtype, device, spec, forced, masked)
    return plan, door, checked_eps(eps)
