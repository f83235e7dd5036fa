"""Tests of the tests: Triton kernels known to be wrong must make the checks fail, and the right ones must pass them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cases import BY_NAME
from triton_runs import arrays, check, small_tiles

from anynorm.kernels.triton import interpreted

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


def unscaled(powers: Any) -> Any:
    """Every power of two is 1."""
    import triton
    import triton.language as tl

    @triton.jit
    def wrong(bits):
        return tl.zeros_like(bits).to(tl.float32) + 1.0, tl.zeros_like(bits).to(tl.float32) + 1.0

    return wrong


def rounded(scaled: Any) -> Any:
    """The mean is one float32."""
    import triton

    @triton.jit
    def wrong(mean, rstd):
        power, high, low, factor = scaled(mean, rstd)
        return power, high, low * 0.0, factor

    return wrong


def alike(counts: Any) -> Any:
    """Every chunk is taken to be full."""
    import triton

    @triton.jit
    def wrong(t, reduced, each, chunk, chunks, KEPT):  # noqa: N803
        return counts(t * 0, reduced, each, chunk, chunks, KEPT)

    return wrong


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
    "last sum skipped": ("split_gradient", "gather", less("before"), GROUP, True, {}),
    "chunks of one length": ("split", "_counts", alike, GROUP, True, {"mean": 30.0}),
    "scale's and offset's gradients exchanged": (
        "split_gradient", "gather", exchanged("dscale_at", "doffset_at"), ROWS, False, {}
    ),
    "the mean in one float32": ("split", "scaled", rounded, GROUP, True, {"mean": 1e6}),
    "the mean in one float32, gradient": ("held", "scaled", rounded, ROWS, False, {"mean": 1e6}),
    "never scaled": ("tiles", "powers", unscaled, ROWS, False, {"mean": 0.0, "std": 1e30}),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name, monkeypatch):
    import anynorm.kernels.triton.torch  # noqa: F401
    from anynorm.kernels import triton

    module, function, change, case, cut, how = MUTANTS[name]
    if cut:
        small_tiles(monkeypatch)
    values = arrays(BY_NAME[case], **how)
    check(BY_NAME[case], *values)
    module = getattr(triton, module)
    monkeypatch.setattr(module, function, change(getattr(module, function)))
    with pytest.raises(AssertionError):
        check(BY_NAME[case], *values)
