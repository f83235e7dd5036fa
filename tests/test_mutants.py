"""Tests of the tests: kernels known to be wrong must make the checks fail, and the right one must pass them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from cases import BY_NAME
from test_contract import test_a_sample_does_not_see_its_neighbours as of_neighbours
from test_contract import test_constants_give_exactly_the_offset as of_constants
from test_contract import test_the_scale_of_x_does_not_matter as of_scale
from test_masks import test_padding_changes_nothing_that_counts as of_padding
from test_normalize import check, seed
from test_transforms import SENTENCES
from test_transforms import test_jax_the_pullback_is_the_transpose_of_the_pushforward as dot_product

import anynorm.kernels.composed as composed
from anynorm.kernels.cpu import calls
from anynorm.kernels.runs import Runs
from anynorm.kernels.select import forced_by_environment

GROUP, LAST, BATCH = "group, channels last", "layer, last axis", "batch, channels last"
TUTORIAL, RMS = "layer, the tutorial's", "RMS, last axis"
Test = Callable[[str], None]

_carefully, _quickly = composed._carefully, composed._quickly
forward, backward, tangent = composed.forward, composed.backward, composed.tangent


def checked(name: str, offset: float = 0.0, factor: float = 1.0, eps: float = 1e-5, masked: bool = False) -> Test:
    """The check that every case goes through."""

    def test(framework: str) -> None:
        case, rng = BY_NAME[name], seed(name)
        x = ((rng.normal(size=case.shape) + offset) * factor).astype(np.float32)
        check(case, framework, x, eps=eps, mask=rng.random(case.shape) < 0.6 if masked else None)

    return test


def contract(test: Callable[..., None], name: str, **arguments: Any) -> Test:
    """A test of the precision contract."""
    return lambda framework: test(BY_NAME[name], framework=framework, **arguments)


def statistics(change: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Both ways to the statistics, changed: `change(v, x, mask, plan, eps, stats)` gives other statistics."""

    def quickly(v, x, plan, eps):
        stats, good = _quickly(v, x, plan, eps)
        return change(v, x, None, plan, eps, stats), good

    def carefully(v, x, mask, plan, eps):
        return change(v, x, mask, plan, eps, _carefully(v, x, mask, plan, eps))

    return {"_quickly": quickly, "_carefully": carefully}


def mean_kept_in_gradient(v, x, dy, scale, mask, stats, plan):
    dx, *small = backward(v, x, dy, scale, mask, stats, _with(plan, removes_mean=False))
    return dx, *small


def scale_kept_in_gradient(v, x, dy, scale, mask, stats, plan):
    dx, *small = backward(v, x, dy, scale, mask, stats, _with(plan, removes_scale=False))
    return dx, *small


def _with(plan: Any, **labels: bool) -> Any:
    return type(plan)(**{**{name: getattr(plan, name) for name in plan.__dataclass_fields__}, **labels})


def of_gradients(change: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """`change(dx, dscale, doffset, stats)`, of the gradients."""

    def changed(v, x, dy, scale, mask, stats, plan):
        return change(*backward(v, x, dy, scale, mask, stats, plan), stats)

    return {"backward": changed}


def last_row_skipped(v, x, mask, plan, eps, stats):
    """Statistics of all rows but the last, as of a loop that ends too early."""
    d = next(i for i, run in enumerate(plan.runs) if run.reduced)
    counted = torch.ones(x.reshape([run.extent for run in plan.runs]).shape, dtype=torch.bool)
    counted.narrow(d, -1, 1).fill_(False)
    return _carefully(v, x, counted, plan, eps)


def in_half_precision(v, x, mask, plan, eps, stats):
    """The mean and the factor rounded to ten bits, as if they had been saved in the input's own type."""

    def rounded(a: Any) -> Any:
        return None if a is None else (a + a * 2.0**13) - a * 2.0**13

    return stats._replace(shift=rounded(stats.shift), residual=rounded(stats.residual), rstd=rounded(stats.rstd))


def of_squares(v, x, mask, plan, eps, stats):
    """E[x²] - E[x]²."""
    runs = Runs(v, x, plan)
    mean = runs.group(v.sum, runs.fold(x)) / stats.count
    variance = runs.group(v.sum, runs.fold(x * x)) / stats.count - mean * mean
    rstd = 1.0 / v.sqrt(v.maximum(variance + eps, 1e-30))
    return stats._replace(
        power=None if stats.power is None else v.ones_like(rstd),
        shift=None if stats.shift is None else v.zeros_like(rstd),
        residual=mean, variance=variance, rstd=rstd,
    )  # fmt: skip


def of_a_sample(v, x, mask, plan, eps, stats):
    """Divided by n - 1, which is Bessel's correction."""
    variance = stats.variance * (stats.count / (stats.count - 1.0))
    return stats._replace(variance=variance, rstd=1.0 / v.sqrt(variance + eps))


def without_residual(v, x, mask, plan, eps, stats):
    return stats if stats.shift is None else stats._replace(residual=v.zeros_like(stats.residual))


def eps_outside_the_root(v, x, mask, plan, eps, stats):
    return stats._replace(rstd=1.0 / (v.sqrt(stats.variance) + eps))


def eps_left_out(v, x, mask, plan, eps, stats):
    return stats._replace(rstd=1.0 / v.sqrt(v.maximum(stats.variance, 1e-30)))


def always_quick(v, x, plan, eps):
    stats, good = _quickly(v, x, plan, eps)
    return stats, good | ~good


def all_careful_where_one_is(v, x, plan, eps):
    """The choice between quick and careful made once for all groups."""
    stats, good = _quickly(v, x, plan, eps)
    return stats, good & v.all(good)


def without_mask(v, x, mask, plan, eps):
    return _carefully(v, x, None if mask is None else (mask | ~mask), plan, eps)


def mask_left_out_of_gradient(v, x, dy, scale, mask, stats, plan):
    return backward(v, x, dy, scale, None, stats, plan)


def offset_left_out(v, x, scale, offset, stats, plan, mask=None):
    return forward(v, x, scale, None, stats, plan, mask)


# What is wrong, the functions of kernels/composed.py that are, and a test that sees it.
MUTANTS: dict[str, tuple[dict[str, Callable[..., Any]], Test]] = {
    "no mean term in the gradient": ({"backward": mean_kept_in_gradient}, checked(GROUP)),
    "no scale term in the gradient": ({"backward": scale_kept_in_gradient}, checked(BATCH)),
    "no scale term in the gradient, RMS": ({"backward": scale_kept_in_gradient}, checked(RMS)),
    "last row skipped": (statistics(last_row_skipped), checked(TUTORIAL)),
    "no gradient of the offset": (of_gradients(lambda dx, ds, do, s: (dx, ds, 0.0 * do)), checked(GROUP)),
    "gradient of the offset scaled": (of_gradients(lambda dx, ds, do, s: (dx, ds, 1.001 * do)), checked(TUTORIAL)),
    "gradient of the scale without rstd": (of_gradients(lambda dx, ds, do, s: (dx, 3.0 * ds, do)), checked(BATCH)),
    "gradient of x off by 0.1 %": (of_gradients(lambda dx, ds, do, s: (1.001 * dx, ds, do)), checked(BATCH)),
    "statistics in half precision": (statistics(in_half_precision), checked(BATCH, offset=2.0)),
    "variance from squares": (statistics(of_squares), checked(BATCH, offset=30.0)),
    "Bessel's correction": (statistics(of_a_sample), checked(GROUP)),
    "residual ignored": (statistics(without_residual), checked(GROUP, offset=-1e6)),
    "eps outside the root": (statistics(eps_outside_the_root), checked(GROUP)),
    "eps left out": (statistics(eps_left_out), checked(BATCH)),
    "never careful, far from 0": ({"_quickly": always_quick}, checked(BATCH, offset=1e4)),
    "never careful, large": ({"_quickly": always_quick}, contract(of_scale, GROUP, factor=1e30, eps=0.0)),
    "never careful, small": ({"_quickly": always_quick}, contract(of_scale, GROUP, factor=1e-30, eps=0.0)),
    "never careful, constant": ({"_quickly": always_quick}, contract(of_constants, GROUP, eps=1e-5)),
    "one choice for all": ({"_quickly": all_careful_where_one_is}, contract(of_neighbours, GROUP, neighbour="far")),
    "mask ignored": ({"_carefully": without_mask}, checked(GROUP, masked=True)),
    "mask ignored by the gradient": ({"backward": mask_left_out_of_gradient}, checked(GROUP, masked=True)),
    "mask ignored, garbage": ({"_carefully": without_mask}, lambda f: of_padding(("mean", "scale"), 7.0, 1e-5, f)),
    "offset left out": ({"forward": offset_left_out}, checked(TUTORIAL)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_traces_left():
    """JAX would answer from what it compiled before the change, and keep what it compiles of a mutant."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def _composed(monkeypatch):
    """The formula that is changed has to be the one that runs."""
    monkeypatch.setenv("ANYNORM_KERNEL", "composed")
    forced_by_environment.cache_clear()
    yield
    monkeypatch.undo()
    forced_by_environment.cache_clear()


@pytest.mark.usefixtures("_composed")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name, monkeypatch):
    """On torch, where nothing is compiled, so that the change is sure to be what runs."""
    functions, test = MUTANTS[name]
    test("torch")
    for function, wrong in functions.items():
        assert hasattr(composed, function), f"there is no {function} to change"
        monkeypatch.setattr(composed, function, wrong)
    with pytest.raises(AssertionError):
        test("torch")


@pytest.mark.usefixtures("_composed")
@pytest.mark.parametrize(
    ("name", "framework"),
    [
        ("no mean term in the gradient", "jax"),
        ("no mean term in the gradient", "tensorflow"),
        ("residual ignored", "tensorflow"),
        ("Bessel's correction", "numpy"),
        ("Bessel's correction", "jax"),
        ("offset left out", "numpy"),
    ],
)
def test_a_mutant_is_caught_on_every_framework(name, framework, monkeypatch):
    functions, test = MUTANTS[name]
    test(framework)
    for function, wrong in functions.items():
        monkeypatch.setattr(composed, function, wrong)
    jax.clear_caches()
    with pytest.raises(AssertionError):
        test(framework)


def torch_tangent_without(term: str) -> Callable[..., Any]:
    return lambda v, x, t, scale, ts, to, mask, stats, plan: tangent(
        v, x, t, scale, ts, to, mask, stats, _with(plan, **{f"removes_{term}": False})
    )


@pytest.mark.usefixtures("_composed")
@pytest.mark.parametrize("term", ["mean", "scale"])
def test_a_wrong_tangent_is_caught(term, monkeypatch):
    dot_product(*SENTENCES[0], masked=False)
    monkeypatch.setattr(composed, "tangent", torch_tangent_without(term))
    jax.clear_caches()
    with pytest.raises(AssertionError):
        dot_product(*SENTENCES[0], masked=False)


def told(change: Callable[[Any], None]) -> Callable[..., Any]:
    """The kernel, told of another problem."""

    def wrong(problem: Any, *rest: Any) -> tuple[Any, ...]:
        other = type(problem).from_buffer_copy(problem)
        change(other)
        return other, *rest

    return wrong


def set_to(name: str, value: Any) -> Callable[..., Any]:
    return told(lambda problem: setattr(problem, name, value))


def shorter(problem: Any) -> None:
    problem.extents[1] -= 1


# What is wrong, in which call, how its arguments are changed, and a case that sees it.
KERNEL_MUTANTS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "offset left out": ("forward", lambda p, x, s, o, *rest: (p, x, s, None, *rest), TUTORIAL),
    "scale left out": ("forward", lambda p, x, s, o, *rest: (p, x, None, o, *rest), GROUP),
    "eps left out": ("forward", set_to("eps", 0.0), BATCH),
    "mean not removed": ("forward", set_to("removes", 2), GROUP),
    "affine per group": ("forward", set_to("affine", 4), GROUP),
    "last row skipped": ("forward", told(shorter), TUTORIAL),
    "no mean term in the gradient": ("backward", set_to("removes", 2), GROUP),
    "no scale term in the gradient": ("backward", set_to("removes", 1), BATCH),
    "no scale in the gradient": ("backward", lambda p, x, dy, s, *rest: (p, x, dy, None, *rest), LAST),
    "gradients of scale and offset exchanged": ("backward", lambda *a: (*a[:6], a[7], a[6]), LAST),
    "no gradient of x": ("backward", lambda p, x, dy, s, saved, dx, *rest: (p, dy, dy, s, saved, dx, *rest), RMS),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNEL_MUTANTS)
def test_a_mutant_of_the_cpu_kernel_is_caught(name, monkeypatch):
    function, change, case = KERNEL_MUTANTS[name]
    checked(case)("torch")
    right = getattr(calls, function)
    monkeypatch.setattr(calls, function, lambda *arguments: right(*change(*arguments)))
    with pytest.raises(AssertionError):
        checked(case)("torch")
