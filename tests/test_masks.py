"""Masks: what counts is right against the reference, and what does not count changes nothing."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from arrays import FRAMEWORKS, back, differentiate, normalize, relative, to, ulps
from cases import BY_NAME, CASES
from test_normalize import COMPILED, QUICK, check, seed

import anynorm

frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)
IMAGES = BY_NAME["group, channels last"]


def image(*words: str) -> np.ndarray:
    return seed("image", *words).normal(size=IMAGES.shape).astype(np.float32)


@pytest.mark.parametrize("runner", QUICK)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masked_values_and_gradients(case, runner):
    rng = seed(case.name)
    mask = rng.random(case.shape) < 0.6
    check(case, runner, (rng.normal(size=case.shape) * 2 + 1).astype(np.float32), mask=mask)


@frameworks
def test_masked_float64(framework):
    rng = seed("float64")
    x, dy = rng.normal(size=(2, *IMAGES.shape))
    mask = rng.random(IMAGES.shape) < 0.6
    scale, offset = (a.astype(np.float64) for a in IMAGES.parameters(rng))
    oracle = IMAGES.reference(x, scale, offset, mask=mask)
    with jax.enable_x64(True):
        y, *grads = differentiate(framework, x, dy, scale, offset, mask=mask, **IMAGES.arguments)
    relative(y[mask], oracle.y[mask], 1e-12)
    for got, want in zip(grads, oracle.backward(dy), strict=True):
        assert (got is None) == (framework == "numpy")
        if got is not None:
            relative(got, want, 1e-12)


@pytest.mark.parametrize("runner", COMPILED)
@pytest.mark.parametrize("name", ["group, channels last", "RMS, last axis", "batch, channels last"])
def test_masked_and_compiled(name, runner):
    case, rng = BY_NAME[name], seed(name)
    check(case, runner, rng.normal(size=case.shape).astype(np.float32), mask=rng.random(case.shape) < 0.6)


@pytest.mark.parametrize("runner", QUICK)
@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_masked_far_from_zero(offset, runner):
    x = image() + np.float32(offset)
    check(IMAGES, runner, x, mask=seed("mask").random(IMAGES.shape) < 0.6)


@frameworks
@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("garbage", [7.0, 1e38, -3.4e38, np.nan, np.inf])
@pytest.mark.parametrize("remove", [("mean", "scale"), ("scale",), ("mean",)])
def test_padding_changes_nothing_that_counts(remove, garbage, eps, framework):
    """Values, and gradients of a loss that leaves the padding out, whatever lies in it."""
    mask = np.broadcast_to(np.arange(IMAGES.shape[1])[:, None, None] < 3, IMAGES.shape)
    dy = np.where(mask, image("dy"), 0).astype(np.float32)
    scale = np.linspace(0.5, 2, 12).astype(np.float32)
    words: dict[str, Any] = {**IMAGES.arguments, "remove": remove, "mask": mask, "eps": eps}
    clean, spoiled = (
        differentiate(framework, np.where(mask, image() + 2, np.float32(g)), dy, scale, scale, **words)
        for g in (0, garbage)
    )
    assert np.array_equal(spoiled[0][mask], clean[0][mask])
    for got, want in zip(spoiled[1:], clean[1:], strict=True):
        assert (got is None) == (framework == "numpy") or np.array_equal(got, want)
    if framework != "numpy":
        assert not spoiled[1][~mask].any()


@frameworks
@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("garbage", [1.0, 1e38, np.nan, -np.inf])
def test_a_wholly_masked_group_is_the_offset(garbage, eps, framework):
    x, dy = image(), image("dy")
    mask = np.ones((*IMAGES.shape[:3], 1), bool)
    mask[1], x[1] = False, garbage
    scale, offset = IMAGES.parameters(seed("whole"))
    y, dx, dscale, doffset = differentiate(framework, x, dy, scale, offset, mask=mask, eps=eps, **IMAGES.arguments)
    assert np.array_equal(y[1], np.broadcast_to(offset, y[1].shape))
    assert np.isfinite(y).all()
    if dx is not None:
        assert not dx[1].any()
        rest = differentiate(framework, x[::2], dy[::2], scale, offset, mask=mask[::2], eps=eps, **IMAGES.arguments)
        ulps(dscale, rest[2], 8)
        ulps(doffset, dy.astype(np.float64).sum((0, 1, 2)), 8)
        ulps(dx[::2], rest[1])


@frameworks
@pytest.mark.parametrize("shape", [(), (1,), (12,), (7, 1), (5, 1, 1), (3, 1, 1, 1), (1, 5, 7, 1), (3, 5, 1, 12)])
def test_a_mask_broadcasts(shape, framework):
    x, mask = image(), np.array(seed(str(shape)).random(shape) < 0.7)
    y = normalize(framework, x, "n [...] c", mask=mask)
    ulps(y, normalize(framework, x, "n [...] c", mask=np.broadcast_to(mask, x.shape).copy()))
    if not mask.all():
        assert not np.array_equal(y, normalize(framework, x, "n [...] c"))


@frameworks
@pytest.mark.parametrize("case", CASES[::5], ids=lambda case: case.name)
def test_a_mask_that_is_true_everywhere_is_no_mask(case, framework):
    x = seed(case.name).normal(size=case.shape).astype(np.float32)
    y = normalize(framework, x, mask=np.array(True), **case.arguments)
    ulps(y, normalize(framework, x, **case.arguments))


@frameworks
def test_masked_moments(framework):
    x, mask = image() + 5, seed("moments").random(IMAGES.shape) < 0.6
    mask[1] = False
    spoiled = np.where(mask, x, np.float32("nan"))
    mean, variance = (back(m) for m in anynorm.moments(to(framework, spoiled), "n [...] c", mask=to(framework, mask)))
    for n in (0, 2):
        for c in range(12):
            seen = x[n, ..., c][mask[n, ..., c]].astype(np.float64)
            np.testing.assert_allclose((mean[n, c], variance[n, c]), (seen.mean(), seen.var()), rtol=1e-6)
    assert not mean[1].any()
    assert not variance[1].any()
