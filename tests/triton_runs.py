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
from anynorm.kernels.select import forced_by_environment, select
from anynorm.kernels.triton import geometry, interpreted, table
from anynorm.ops.torch_fused import Fused

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


# Of m in double.
ACTIVATIONS = {
    None: lambda m: m,
    "relu": torch.nn.functional.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda m: torch.nn.functional.gelu(m, approximate="tanh"),
}


@contextmanager
def asked_for() -> Iterator[None]:
    """ANYNORM_KERNEL=triton."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYNORM_KERNEL", "triton")
        forced_by_environment.cache_clear()
        yield
    forced_by_environment.cache_clear()


def around(
    case: Case, dtype: str = "float32", *, residual: bool = True, modulation: bool = True, channels: int | None = None
) -> tuple[torch.Tensor | None, tuple[torch.Tensor, torch.Tensor] | None]:
    """A residual, and shift and scale for each sample and channel, two halves of one tensor."""
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(case.shape[0], 2 * (channels or int(np.prod(case.plan.affine.shape)))))
    of_sum = torch.tensor(rng.normal(size=case.shape), dtype=torch.float32).to(TYPES[dtype])
    pair = torch.tensor(vectors, dtype=torch.float32).chunk(2, dim=1)
    return of_sum if residual else None, pair if modulation else None


def check_fused(
    case: Case,
    x: torch.Tensor,
    dy: torch.Tensor,
    residual: torch.Tensor | None,
    modulation: tuple[torch.Tensor, torch.Tensor] | None,
    activation: str | None,
    *,
    eps: float = 1e-5,
) -> list[torch.Tensor]:
    """Compare y, the sum and all gradients with the reference between operations in double; y and the gradients."""
    small = [None if a is None else torch.tensor(a).to(x.device) for a in case.parameters(np.random.default_rng(5))]
    given = [x, residual, *small, *(modulation or (None, None))]
    given = [None if a is None else a.detach().requires_grad_() for a in given]
    shift, gain = given[4:]
    call = Fused(given[1], None if shift is None else (shift, gain), activation)
    with asked_for():
        out = call.normalize_checked(given[0], *given[2:4], None, case.spec.encode(), eps)[0]
        y, total = (out, None) if residual is None else out
        dtotal = None if total is None else dy.flip(0).to(total.dtype)
        outs, their = ([y], [dy]) if total is None else ([y, total], [dy, dtotal])
        leaves = [a for a in given if a is not None]
        some = iter(torch.autograd.grad(outs, leaves, their))
    got = [None if a is None else next(some) for a in given]
    unit = UNITS[str(x.dtype)[6:]]
    seen = x if total is None else total
    if total is not None:
        assert total.dtype == torch.promote_types(x.dtype, residual.dtype)
        exact = doubles(x) + doubles(residual)
        assert (np.abs(doubles(total) - exact) <= UNITS[str(total.dtype)[6:]] * np.abs(exact)).all(), "sum"

    oracle = case.reference(doubles(seen), *(doubles(a) for a in small), eps=eps)
    n = torch.tensor(oracle.y, requires_grad=True)
    wide = [None if a is None else a.detach().double().cpu().requires_grad_() for a in (shift, gain)]
    m = n
    if wide[0] is not None:
        over = [length if d in (0, channels_of(case)) else 1 for d, length in enumerate(case.shape)]
        m = n * (1 + wide[1].reshape(over)) + wide[0].reshape(over)
    wanted = ACTIVATIONS[activation](m)
    dn, *rest = torch.autograd.grad(wanted, [n, *(a for a in wide if a is not None)], dy.double().cpu())
    dx, *dsmall = oracle.backward(dn.numpy())
    dx = dx if total is None else dx + doubles(dtotal)
    wanted, size = doubles(wanted), float(m.detach().abs().max())
    bound = 8 * unit * size if unit < 1e-6 else 1.01 * unit * np.abs(wanted) + 4e-6 * size
    excess = np.abs(doubles(y) - wanted) - bound
    assert y.dtype == x.dtype
    assert (excess <= 0).all(), ("y", excess.max())
    words = ("dx", "dresidual", "dscale", "doffset", "dshift", "dgain")
    for name, ours, theirs, leaf in zip(words, got, [dx, dx, *dsmall, *(rest or (None, None))], given, strict=True):
        if ours is not None:
            assert (ours.dtype, ours.shape) == (leaf.dtype, leaf.shape)
            theirs = np.asarray(theirs)
            error = np.abs(doubles(ours).ravel() - theirs.ravel()).max() / np.abs(theirs).max()
            assert error <= max(UNITS[str(ours.dtype)[6:]] * 1.01, 1e-5), (name, error)
    return [y.detach(), *got]


def channels_of(case: Case) -> int:
    """The dimension of the affine axes."""
    from anynorm.ops.torch_fused import _cached_channels

    found = _cached_channels(case.spec.encode(), len(case.shape))
    assert found is not None
    return found
