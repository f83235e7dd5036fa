"""Any sentence over any shape, not only those that somebody thought of."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from arrays import differentiate, relative
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from anynorm import NormSpec
from anynorm.catalogue import CATALOGUE
from anynorm.pattern import Axis, Pattern, parse
from anynorm.plan import plan
from anynorm.reference import Reference

LAWS = settings(deadline=None, derandomize=True, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
COSTLY = settings(LAWS, max_examples=40)
NAMES = ("n", "g", "c", "h", "w", "t")


@st.composite
def patterns(draw: Any, ellipsis: bool = True) -> Pattern:
    """One to four dimensions, at most one of them joined from two or three axes, at least one axis shared."""
    rank = draw(st.integers(1, 4))
    names = iter(draw(st.permutations(NAMES)))
    joined = draw(st.integers(-1, rank - 1))
    dims = []
    for d in range(rank):
        count = draw(st.integers(2, 3)) if d == joined else 1
        dims.append(tuple(Axis(next(names), draw(st.booleans())) for _ in range(count)))
    spread = draw(st.integers(-1, rank - 1)) if ellipsis else -1
    if spread >= 0 and len(dims[spread]) == 1:
        dims[spread] = (Axis("...", dims[spread][0].shared),)
    pattern = Pattern(tuple(dims))
    assume(any(axis.shared for axis in pattern.axes))
    return pattern


@st.composite
def specs(draw: Any) -> tuple[NormSpec, tuple[int, ...]]:
    """A sentence and a shape that it fits."""
    pattern = draw(patterns())
    spread = draw(st.integers(0, 2))
    sizes: dict[str, int] = {}
    shape: list[int] = []
    for dim in pattern.dims:
        lengths = [draw(st.integers(1, 4)) for _ in dim]
        if dim[0].name == "...":
            shape += [draw(st.integers(1, 4)) for _ in range(spread)]
            continue
        if len(dim) > 1:
            known = draw(st.permutations(range(len(dim))))[: draw(st.integers(len(dim) - 1, len(dim)))]
            sizes |= {dim[i].name: lengths[i] for i in known}
        elif draw(st.booleans()):
            sizes[dim[0].name] = lengths[0]
        shape.append(int(np.prod(lengths)))
    affine = " ".join(name for name in pattern.names if draw(st.booleans()))
    remove = draw(st.sampled_from([("mean", "scale"), ("scale",), ("mean",)]))
    return NormSpec.of(str(pattern), affine=affine, remove=remove, **sizes), tuple(shape)


@LAWS
@given(patterns())
def test_a_pattern_is_read_as_it_is_written(pattern):
    assert parse(str(pattern)) == pattern


@LAWS
@given(specs())
def test_a_specification_survives_its_code_and_its_print(made):
    spec, _ = made
    assert NormSpec.decode(spec.encode()) == spec
    assert eval(repr(spec), {"NormSpec": NormSpec}) == spec
    assert hash(NormSpec.decode(spec.encode())) == hash(spec)


@LAWS
@given(specs(), st.randoms(use_true_random=False))
def test_a_plan_accounts_for_every_element(made, random):
    spec, shape = made
    order = list(range(len(shape)))
    random.shuffle(order)
    for way in (None, tuple(order)):
        made_plan = plan(spec, shape, way)
        size = int(np.prod(shape))
        assert np.prod([run.extent for run in made_plan.runs]) == size
        assert made_plan.count * made_plan.groups == size
        assert all(
            a[1:] != b[1:] for a, b in itertools.pairwise((r.known, r.reduced, r.affine) for r in made_plan.runs)
        )
        assert not any(run.reduced and run.extent == 1 for run in made_plan.runs)
        assert np.prod([r.extent for r in made_plan.runs if r.affine]) == np.prod(made_plan.affine.shape)
        assert sorted(made_plan.affine.order) == list(range(len(made_plan.affine.order)))


@LAWS
@given(specs(), st.data())
def test_unknown_dimensions_become_what_they_are(made, data):
    """A plan that does not know some lengths has the runs of the one that does, once they are filled in."""
    spec, shape = made
    joined = {i for i, dim in enumerate(spec.pattern.expand(len(shape)).dims) if len(dim) > 1}
    hidden = tuple(None if i not in joined and n > 1 and data.draw(st.booleans()) else n for i, n in enumerate(shape))
    seen, blind = plan(spec, shape), plan(spec, hidden)
    filled = [(int(np.prod([shape[d] for d in r.unknown], initial=r.known)), r.reduced, r.affine) for r in blind.runs]
    assert filled == [(run.extent, run.reduced, run.affine) for run in seen.runs]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", CATALOGUE)
def test_four_runs_are_enough_for_every_named_norm(name, first):
    entry = CATALOGUE[name]
    spec = entry.spec(first, **dict(entry.sizes))
    rank = 4 if "..." in spec.text or len(spec.pattern.dims) == 4 else len(spec.pattern.dims)
    made = plan(spec, (3, 6, 4, 10)[:rank])
    assert len(made.runs) <= 4
    assert made.count > 1


@COSTLY
@given(specs(), st.sampled_from(["torch", "jax", "tensorflow"]), st.integers(0, 2**31), st.data())
def test_every_sentence_is_computed_as_the_reference_does(made, framework, seed, data):
    """NumPy and one framework: values, and gradients for a random cotangent."""
    spec, shape = made
    made_plan = plan(spec, shape)
    removes_mean = "mean" in spec.remove
    assume(not (removes_mean and made_plan.count == 1))
    rng = np.random.default_rng(seed)
    offset = data.draw(st.sampled_from([0.0, 3.0, -1e4, 1e6])) * removes_mean
    power = data.draw(st.sampled_from([1.0, 2.0**60, 2.0**-60])) if spec.remove != ("mean",) else 1.0
    x = ((rng.normal(size=shape) + offset) * power).astype(np.float32)
    parameters: list[Any] = [None, None]
    if spec.affine is not None:
        parameters = [rng.normal(size=made_plan.affine.shape).astype(np.float32) for _ in range(2)]
    mask = rng.random(shape) < 0.7 if data.draw(st.booleans()) else None
    dy = rng.normal(size=shape).astype(np.float32)
    words = {"affine": str(spec.affine or ""), "remove": spec.remove, "eps": 1e-3 * power**2, **dict(spec.sizes)}
    oracle = Reference(x, spec.text, *parameters, mask=mask, **words)
    valid = np.ones(shape, bool) if mask is None else mask
    for name in ("numpy", framework):
        y, *grads = differentiate(name, x, dy, *parameters, pattern=spec.text, mask=mask, **words)
        # Of few elements some are nearly equal now and then; their difference, all that is left, may be short of 1.
        size = max(1.0, np.abs(oracle.y[valid]).max(initial=0.0))
        np.testing.assert_allclose(y[valid], oracle.y[valid], rtol=0, atol=2e-6 * size)
        for got, want in zip(grads, oracle.backward(dy), strict=True):
            if got is not None:
                # dx is the small rest of dy * scale / std where projections take nearly all of it.
                whole = np.abs(dy).max() * np.abs(oracle.scale).max() * (oracle.inverse.max() if got is grads[0] else 1)
                np.testing.assert_allclose(
                    np.ravel(got), np.ravel(want), rtol=0, atol=1e-5 * np.abs(want).max() + 2e-6 * whole
                )
    with jax.enable_x64(True):
        got = differentiate(
            framework, *(a.astype(np.float64) for a in (x, dy)),
            *(None if a is None else a.astype(np.float64) for a in parameters), pattern=spec.text, mask=mask, **words,
        )  # fmt: skip
    relative(got[0][valid], oracle.y[valid], 1e-9)
