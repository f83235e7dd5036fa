"""How the tests of the Triton kernels run a case: on which device, and with tiles of which size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, Case

import anynorm
from anynorm.kernels.select import select
from anynorm.kernels.triton import geometry, interpreted, table

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Half a unit in the last place of the output, rounded once; Triton's interpreter cuts bfloat16 off instead.
UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-7 if interpreted() else 2.0**-8}
SERVED = [case for case in CASES if geometry(case.plan) is not None]
# The names of the launches of one pass.
FORWARD = (["forward"], ["statistics", "apply"])
BACKWARD = (["backward"], ["sums", "project"], ["sums", "project_shared"])


def small_tiles(patch: pytest.MonkeyPatch, tile: int = 512) -> None:
    """Cut every group into chunks of small tiles, as if it were large."""
    for name in ("HELD", "HELD_HALF", "HELD_GRADIENT", "HELD_SUMS"):
        patch.setattr(table, name, 0)
    patch.setattr(table, "TILE", tile)


@contextmanager
def launches() -> Iterator[list[str]]:
    """The names of the kernels that Triton's interpreter runs."""
    from triton.runtime.interpreter import InterpretedFunction

    names: list[str] = []
    run = InterpretedFunction.run

    def noted(self: Any, *arguments: Any, **options: Any) -> None:
        names.append(self.fn.__name__)
        run(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "run", noted)
        yield names


def arrays(
    case: Case, mean: float = 1.0, std: float = 1.0, dtype: str = "float32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """x and dy, in values that the type has."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=case.shape) * std + (mean if case.plan.removes_mean else 0.0)
    return tuple(torch.tensor(a, dtype=torch.float32).to(TYPES[dtype]) for a in (x, rng.normal(size=case.shape)))  # type: ignore


def differentiate(
    case: Case,
    x: torch.Tensor,
    dy: torch.Tensor,
    *,
    eps: float = 1e-5,
    parameters: Any = torch.float32,
    plain: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor | None], list[torch.Tensor | None]]:
    """y, its gradients, and the parameters: by autograd, through the Triton kernels."""
    scale, offset = (None, None) if plain else case.parameters(np.random.default_rng(5))
    leaves = [x, *(None if a is None else torch.tensor(a).to(x.device, parameters) for a in (scale, offset))]
    leaves = [None if a is None else a.clone().requires_grad_() for a in leaves]
    x, scale, offset = leaves
    device = "cpu" if x.is_cpu else "cuda"
    assert select(case.plan, "torch", device, str(x.dtype)[6:], "triton").kernel == "triton"
    y = anynorm.normalize(x, scale=scale, offset=offset, eps=eps, kernel="triton", **case.arguments)
    assert y.dtype == x.dtype
    some = iter(torch.autograd.grad(y, [a for a in leaves if a is not None], dy))
    return y.detach(), [None if a is None else next(some) for a in leaves], leaves[1:]


def doubles(a: torch.Tensor | None) -> np.ndarray | None:
    return None if a is None else a.detach().double().cpu().numpy()


def check(case: Case, x: torch.Tensor, dy: torch.Tensor, *, eps: float = 1e-5, parameters: Any = torch.float32) -> None:
    """Compare y and all gradients with the reference."""
    y, grads, given = differentiate(case, x, dy, eps=eps, parameters=parameters)
    oracle = case.reference(doubles(x), *(doubles(a) for a in given), eps=eps)
    unit = UNITS[str(x.dtype)[6:]]
    size = np.abs(oracle.y).max()
    # 4 units in the last place at y's scale where y is float32; one rounding where it is less, of a float32 result.
    bound = 8 * unit * size if unit < 1e-6 else 1.01 * unit * np.abs(oracle.y) + 4e-6 * size
    excess = np.abs(doubles(y) - oracle.y) - bound
    assert (excess <= 0).all(), ("y", excess.max())
    of_small = 2e-6 if parameters == torch.float32 else UNITS["bfloat16"]
    for name, ours, theirs, tolerance in zip(
        ("x", "scale", "offset"),
        grads,
        oracle.backward(doubles(dy)),
        (max(unit, 2e-6), of_small, of_small),
        strict=True,
    ):
        if ours is not None:
            error = np.abs(doubles(ours).ravel() - theirs.ravel()).max() / np.abs(theirs).max()
            assert error <= tolerance, (f"d{name}", error)
