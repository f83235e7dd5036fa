"""Every case through every framework and every kernel, against the float64 reference: values and gradients."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from cases import BY_NAME, CASES, Case
from runners import RUNNERS

import anynorm
from anynorm.kernels.cpu import calls
from anynorm.kernels.select import forced_by_environment, select

QUICK = ("numpy", "torch", "jax", "tensorflow")
COMPILED = ("torch compile", "jax jit", "tensorflow graph", "tensorflow xla", "tensorflow unknown")
SOME = ("group, channels last", "group, channels first", "layer, last axis", "layer, the tutorial's", "RMS, last axis")


def seed(*words: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(" ".join(words).encode()))


def _counting(counts: Counter[str], name: str) -> Any:
    function = getattr(calls, name)

    def call(*arguments: Any) -> None:
        counts[name] += 1
        function(*arguments)

    return call


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often the C interface is called for whole passes."""
    counts: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("forward", "backward"):
            patch.setattr(calls, name, _counting(counts, name))
        yield counts


def check(
    case: Case,
    runner: str,
    x: np.ndarray,
    *,
    eps: float = 1e-5,
    mask: np.ndarray | None = None,
    kernel: str | None = None,
) -> None:
    """Run a case, and compare y and all gradients, for a random cotangent, with the reference.

    `kernel` is the one that must compute it; by default it is the best there is.
    """
    rng = seed(case.name, runner)
    scale, offset = case.parameters(rng)
    dy = rng.normal(size=x.shape).astype(np.float32)
    framework = runner.split()[0]
    expected = kernel or forced_by_environment() or ("composed" if mask is not None else "cpu")
    assert select(case.plan, framework, "cpu", str(x.dtype), kernel, mask is not None).kernel == expected
    with counted() as counts:
        y, grads = RUNNERS[runner]((x, scale, offset), dy, mask, {**case.arguments, "eps": eps, "kernel": kernel})
    if framework in ("numpy", "torch"):  # the others' calls are compiled: see tests/test_jax_door.py and its neighbour
        assert counts["forward"] == (expected == "cpu")
        assert counts["backward"] == (expected == "cpu" and framework == "torch")

    oracle = case.reference(x, scale, offset, eps=eps, mask=mask)
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    valid = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    # 1e-6 in units of the normalized values: the largest |h| may exceed 1 where few elements share a statistic, and
    # scale and offset stretch it.
    size = max(1.0, float(np.abs(oracle.y[valid]).max(initial=0.0)))
    np.testing.assert_allclose(y[valid], oracle.y[valid], rtol=0, atol=1e-6 * size)
    for got, want, name in zip(grads, oracle.backward(dy), ("dx", "dscale", "doffset"), strict=False):
        if got is not None:
            np.testing.assert_allclose(
                np.ravel(got), np.ravel(want), rtol=0, atol=1e-5 * np.abs(want).max(initial=1e-30), err_msg=name
            )


@pytest.mark.parametrize("kernel", ["cpu", "composed"])
@pytest.mark.parametrize("runner", QUICK)
@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4, -1e6])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_offsets(case: Case, offset: float, runner: str, kernel: str) -> None:
    check(case, runner, (seed(case.name).normal(size=case.shape) + offset).astype(np.float32), kernel=kernel)


ROWS = [case for case in CASES if re.fullmatch("k?K?(Rr?|r)", case.plan.labels) and case.remove == ("mean", "scale")]


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4, -1e6])
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_rows_by_torchs_own_kernel(case: Case, offset: float) -> None:
    x = (seed(case.name).normal(size=case.shape) + offset).astype(np.float32)
    check(case, "torch", x, kernel="native")


@pytest.mark.parametrize("kernel", ["cpu", "composed"])
@pytest.mark.parametrize("runner", COMPILED)
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("name", SOME)
def test_compiled(name: str, offset: float, runner: str, kernel: str) -> None:
    case = BY_NAME[name]
    check(case, runner, (seed(name).normal(size=case.shape) + offset).astype(np.float32), kernel=kernel)


@pytest.mark.parametrize("runner", [*QUICK, "jax jit", "tensorflow xla", "tensorflow unknown"])
@pytest.mark.parametrize("offset", [0.0, 3.0, 1e6])
@pytest.mark.parametrize(
    ("pattern", "shape"), [("[...] c", (1, 331, 307, 2)), ("n [...] c", (2, 100003, 3)), ("... [c]", (2, 100003))]
)
def test_long_sums(pattern: str, shape: tuple[int, ...], offset: float, runner: str) -> None:
    """One row added after the other loses a digit per hundred rows, in TensorFlow's and XLA's own sums."""
    x = (seed(pattern).normal(size=shape) + offset).astype(np.float32)
    check(Case("long", pattern, shape), runner, x)


@pytest.mark.parametrize("runner", ["torch", "jax jit", "tensorflow", "tensorflow graph", "tensorflow xla"])
def test_a_million_rows(runner: str) -> None:
    """XLA merges sums of sums into one that adds row after row: a digit lost, and dscale off by half."""
    shape = (1, 1024, 1024, 2)
    check(Case("million", "[...] c", shape), runner, (seed(runner).normal(size=shape) + 3).astype(np.float32))


@pytest.mark.parametrize("pattern", ["n (g [c]) [...]", "n [...] (g [c])", "n c [...]", "... [c]"])
def test_views_of_torch_tensors(pattern: str) -> None:
    """Slices and strides, whose rows torch's own kernels refuse as they lie."""
    whole = torch.tensor(seed(pattern).normal(size=(4, 12, 6, 8)).astype(np.float32))
    sizes = {"g": 2} if "g" in pattern else {}
    for view in (whole[:, :6], whole[::2], whole[:1].expand(4, 12, 6, 8), whole[..., ::2], whole.transpose(1, 2)):
        got, plain = view.detach().requires_grad_(), view.detach().contiguous().requires_grad_()
        ys = [anynorm.normalize(x, pattern, **sizes) for x in (got, plain)]
        torch.testing.assert_close(*ys, rtol=0, atol=1e-6)
        dy = torch.tensor(seed("dy").normal(size=view.shape).astype(np.float32))
        for y in ys:
            y.backward(dy)
        torch.testing.assert_close(got.grad, plain.grad, rtol=0, atol=1e-5)
