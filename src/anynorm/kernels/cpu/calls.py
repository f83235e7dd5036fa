"""The CPU kernels by addresses, for every framework whose arrays tell theirs (NumPy and torch)."""

from __future__ import annotations

from . import OK, Problem, library

_MESSAGES = {
    1: "the CPU kernels cannot compute this; ANYNORM_KERNEL=composed computes it otherwise",
    2: "the CPU kernels found no memory for their sums",
}

Address = int | None


def forward(
    told: Problem, x: int, scale: Address, offset: Address, y: int, mean: Address, variance: Address, saved: Address
) -> None:
    _check(library().anynorm_forward(told, x, scale, offset, y, mean, variance, saved))  # type: ignore[union-attr]


def backward(
    told: Problem, x: int, dy: int, scale: Address, saved: int, dx: int, dscale: Address, doffset: Address
) -> None:
    _check(library().anynorm_backward(told, x, dy, scale, saved, dx, dscale, doffset))  # type: ignore[union-attr]


def moments(told: Problem, x: int, mean: int, variance: int, saved: Address) -> None:
    _check(library().anynorm_moments(told, x, mean, variance, saved))  # type: ignore[union-attr]


def apply(
    told: Problem, x: int, mean: int, variance: int, scale: Address, offset: Address, y: int, saved: Address = None
) -> None:
    _check(library().anynorm_apply(told, x, mean, variance, scale, offset, y, saved))  # type: ignore[union-attr]


def _check(status: int) -> None:
    if status != OK:
        raise (MemoryError if status == 2 else RuntimeError)(_MESSAGES.get(status, f"the CPU kernels failed: {status}"))
