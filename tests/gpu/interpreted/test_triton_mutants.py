"""Tests of the tests: Triton kernels known to be wrong must make the checks fail, and the right ones must pass them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import triton
import triton.language as tl
from cases import BY_NAME
from triton_runs import around, arrays, check, check_fused, small_tiles

from anynorm.kernels import triton as kernels
from anynorm.kernels.triton import interpreted
from anynorm.kernels.triton.epilogue import derivative
from anynorm.kernels.triton.split import shares
from anynorm.kernels.triton.tiles import scaled

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1 before Triton is imported"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

GROUP, ROWS, COLUMNS = "group, channels last", "layer, last axis", "layer, channels first"


class Told:
    """A kernel that is told something else than it ought to be."""

    def __init__(self, kernel: Any, change: Callable[[dict[str, Any]], None]) -> None:
        self.kernel, self.change = kernel, change

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            named = dict(zip(self.kernel.arg_names, arguments, strict=False)) | options
            self.change(named)
            self.kernel[grid](**named)

        return launch


def told(**changed: Any) -> Callable[[Any], Any]:
    return lambda kernel: Told(kernel, lambda named: named.update(changed))


def less(name: str) -> Callable[[Any], Any]:
    return lambda kernel: Told(kernel, lambda named: named.update({name: named[name] - 1}))


def exchanged(one: str, other: str) -> Callable[[Any], Any]:
    return lambda kernel: Told(kernel, lambda named: named.update({one: named[other], other: named[one]}))


def instead(wrong: Any) -> Callable[[Any], Any]:
    return lambda right: wrong


@triton.jit
def unscaled(bits):
    """Every power of two is 1."""
    return tl.zeros_like(bits).to(tl.float32) + 1.0, tl.zeros_like(bits).to(tl.float32) + 1.0


@triton.jit
def rounded(mean, rstd):
    """The mean is one float32."""
    power, high, low, factor = scaled(mean, rstd)
    return power, high, low * 0.0, factor


@triton.jit
def alike(g, t, each, chunks, KEPT, COLUMNS):  # noqa: N803
    """Every tile is taken to hold as much of a group as its first."""
    return shares(g, t * 0, each, chunks, KEPT, COLUMNS)


@triton.jit
def of_silu(m, ACTIVATION):  # noqa: N803
    """GELU's derivative is taken for SiLU's."""
    return derivative(m, "silu")


@triton.jit
def of_y(m, ACTIVATION):  # noqa: N803
    """The derivative is taken at what comes out of the activation."""
    return derivative(tl.where(m > 0.0, m, 0.0), ACTIVATION)


# What is wrong: the module, what is changed in it and how; then a case that sees it, and whether its groups are cut.
MUTANTS: dict[str, tuple[str, str, Callable[[Any], Any], str, bool, dict[str, float]]] = {
    "no mean term in the gradient, held": ("held", "backward", told(REMOVES_MEAN=False), ROWS, False, {}),
    "no scale term in the gradient, held": ("held", "backward", told(REMOVES_SCALE=False), ROWS, False, {}),
    "no mean term in the gradient, cut": ("split_gradient", "project", told(REMOVES_MEAN=False), GROUP, True, {}),
    "no scale term in the gradient, shared": (
        "split_gradient", "project_shared", told(REMOVES_SCALE=False), COLUMNS, True, {}
    ),
    "no scale in the gradient": ("split_gradient", "project", told(scale_at=None), GROUP, True, {}),
    "offset left out": ("held", "forward", told(offset_at=None), ROWS, False, {}),
    "eps left out": ("split", "apply", told(root=0.0), GROUP, True, {}),
    "last element skipped": ("split", "statistics", less("reduced"), GROUP, True, {}),
    "last sum skipped": ("split_gradient", "gather", less("within"), GROUP, True, {}),
    "equal shares of a group": ("split", "shares", instead(alike), "group, channels in the middle", True, {}),
    "scale's and offset's gradients exchanged": (
        "split_gradient", "gather", exchanged("dscale_at", "doffset_at"), ROWS, False, {}
    ),
    "the mean in one float32": ("split", "scaled", instead(rounded), GROUP, True, {"mean": 1e6}),
    "the mean in one float32, gradient": ("held", "scaled", instead(rounded), ROWS, False, {"mean": 1e6}),
    "never scaled": ("tiles", "powers", instead(unscaled), ROWS, False, {"mean": 0.0, "std": 1e30}),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name, monkeypatch):
    module, function, change, case, cut, how = MUTANTS[name]
    if cut:
        small_tiles(monkeypatch)
    values = arrays(BY_NAME[case], **how)
    check(BY_NAME[case], *values)
    module = getattr(kernels, module)
    monkeypatch.setattr(module, function, change(getattr(module, function)))
    with pytest.raises(AssertionError):
        check(BY_NAME[case], *values)


# As above, with a residual, a modulation and an activation around the norm.
AROUND: dict[str, tuple[str, str, Callable[[Any], Any], str, bool]] = {
    "another activation's derivative": ("epilogue", "derivative", instead(of_silu), ROWS, False),
    "the derivative at y": ("epilogue", "derivative", instead(of_y), GROUP, True),
    "no derivative of the activation in dx": ("split_gradient", "project", told(ACTIVATION=None), GROUP, True),
    "no derivative of the activation in the sums": ("split_gradient", "sums", told(ACTIVATION=None), GROUP, True),
    "offset left out before the activation": ("held", "backward", told(offset_at=None), ROWS, False),
    "shift of another sample before the activation": ("split_gradient", "sums", told(row=0), GROUP, True),
    "residual left out": ("held", "forward", told(residual_at=None), ROWS, False),
    "modulation left out": ("split", "apply", told(gain_at=None), GROUP, True),
    "the first sample's modulation for all": ("held", "forward", told(row=0), COLUMNS, False),
    "frames taken for samples": ("split", "apply", told(span=2), GROUP, True),
    "shift and scale exchanged": ("split", "apply", exchanged("shift_at", "gain_at"), COLUMNS, True),
    "the sum's own gradient left out": ("held", "backward", told(dtotal_at=None), ROWS, False),
    "the sum's own gradient left out, cut": ("split_gradient", "project", told(dtotal_at=None), GROUP, True),
    "the sum's own gradient left out, shared": (
        "split_gradient", "project_shared", told(dtotal_at=None), COLUMNS, True
    ),
    "modulation's gradient summed over samples, not chunks": (
        "split_gradient", "gather", exchanged("samples", "lead"), GROUP, True
    ),
    "no offset in the gradient of the modulation's scale": (
        "split_gradient", "gather", told(offset_at=None), ROWS, False
    ),
    "scale's gradient without the modulation": ("split_gradient", "gather", told(row=0), ROWS, False),
    "gradients of shift and scale exchanged": (
        "split_gradient", "gather", exchanged("dshift_at", "dgain_at"), COLUMNS, False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AROUND)
def test_a_mutant_with_something_around_is_caught(name, monkeypatch):
    module, function, change, case, cut = AROUND[name]
    if cut:
        small_tiles(monkeypatch)
    case = BY_NAME[case]
    given = *arrays(case), *around(case), "gelu"
    check_fused(case, *given)
    module = getattr(kernels, module)
    monkeypatch.setattr(module, function, change(getattr(module, function)))
    with pytest.raises(AssertionError):
        check_fused(case, *given)
