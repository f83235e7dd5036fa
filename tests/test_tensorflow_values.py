"""The CPU kernels in TensorFlow: what they compute, in every type, way and derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from arrays import back, relative
from cases import BY_NAME, Case
from tensorflow_runs import GROUP, SERVED, WRAPS, check, given, gradients, kinds, needs_door, open_batch, ways
from test_normalize import seed

import anynorm
from anynorm.ops import tensorflow as ops
from anynorm.reference import Reference

pytestmark = needs_door


def test_moments_and_running_statistics():
    x, scale, offset, _ = (tf.constant(a) for a in given(GROUP))

    def run(x: Any) -> tuple[Any, ...]:
        mean, variance = ops.moments(x, None, GROUP.spec)
        return mean, variance, ops.apply(x, mean, variance, scale, offset, GROUP.spec, 1e-5)

    spread = x.numpy().astype(np.float64).reshape(3, 35, 4, 3)
    for f in (run, tf.function(run), tf.function(run, jit_compile=True), open_batch(run)):
        mean, variance, y = f(x)
        relative(back(mean), spread.mean((1, 3)), 1e-6)
        relative(back(variance), spread.var((1, 3)), 1e-6)
        relative(back(y), GROUP.reference(x, scale, offset).y, 1e-6)
    concrete = open_batch(run).get_concrete_function()
    assert kinds(concrete) == {"AnynormMoments", "AnynormApply"}
    assert [a.shape.as_list() for a in concrete.structured_outputs[:2]] == [[None, 4]] * 2


@ways
def test_gradient_of_running_statistics(wrap):
    """Of all five that go in, against differences in float64."""
    x, scale, offset, dy = (tf.constant(a, tf.float64) for a in given(GROUP, np.float64))
    mean, variance = (tf.constant(a) for a in seed("running").uniform(0.5, 2, size=(2, 3, 4)))
    some = [x, mean, variance, scale, offset]
    loss = lambda *some: tf.reduce_sum(ops.apply(*some, GROUP.spec, 1e-5) * dy)  # noqa: E731

    def run(*some: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(some)
            value = loss(*some)
        return tape.gradient(value, some)

    for number, gradient in enumerate(wrap(run)(*some)):
        t = tf.constant(seed(str(number)).normal(size=some[number].shape))
        up, down = (loss(*(a + e * t if i == number else a for i, a in enumerate(some))) for e in (1e-6, -1e-6))
        np.testing.assert_allclose(np.sum(gradient * t), (up - down) / 2e-6, rtol=1e-6)


@ways
def test_gradient_of_one_moment(wrap):
    x = tf.constant(given(GROUP)[0])

    def run(x: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            mean, variance = anynorm.moments(x, "n [...] (g [c])", g=4)
        return tape.gradient(mean, x), tape.gradient(variance, x)

    dmean, dvariance = wrap(run)(x)
    spread = x.numpy().astype(np.float64).reshape(3, 35, 4, 3)
    relative(back(dmean), np.full(x.shape, 1 / 105), 1e-6)
    relative(back(dvariance), 2 * (spread - spread.mean((1, 3), keepdims=True)) / 105, 1e-5)


TYPES = {"float64": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
types = pytest.mark.parametrize("dtype", TYPES)


def check_types(case: Case, dtype: str, wrap: Callable[..., Any]) -> None:
    x, scale, offset, dy = (None if a is None else tf.constant(a) for a in given(case))
    x, dy = tf.cast(x, dtype), tf.cast(dy, dtype)
    got = wrap(lambda x, dy: gradients(case, x, scale, offset, dy))(x, dy)
    assert [a.dtype.name for a in got] == [dtype] * 2 + ["float32"] * (len(got) - 2)
    check(case, got, x, scale, offset, dy, TYPES[dtype])
    if dtype == "float64":
        relative(back(got[0]), case.reference(x, scale, offset).y, 1e-13)


@types
@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_types(case, dtype):
    """Scale and offset in float32 beside arrays of another type."""
    check_types(case, dtype, WRAPS["eager"])


@types
@pytest.mark.parametrize("wrap", [WRAPS["graph"], WRAPS["xla"]], ids=["graph", "xla"])
def test_types_in_graphs(dtype, wrap):
    check_types(GROUP, dtype, wrap)


@ways
@pytest.mark.parametrize("there", [(True, False), (False, True), (False, False)])
def test_scale_or_offset_alone(there, wrap):
    x, *both, dy = (tf.constant(a) for a in given(GROUP))
    scale, offset = (a if yes else None for a, yes in zip(both, there, strict=True))
    got = wrap(lambda x, dy: gradients(GROUP, x, scale, offset, dy))(x, dy)
    check(GROUP, got, x, scale, offset, dy, 1e-6)


@ways
def test_whole_numbers_as_scale(wrap):
    x, *_ = (tf.constant(a) for a in given(GROUP))
    scale = tf.range(12)
    y = wrap(lambda x: anynorm.normalize(x, scale=scale, **GROUP.arguments))(x)
    relative(back(y), GROUP.reference(x, scale).y, 1e-6)


def test_every_way_gives_the_same():
    x = tf.constant(given(GROUP, offset=1e4)[0])
    f = lambda x: anynorm.normalize(x, **GROUP.arguments)  # noqa: E731
    compiled = tf.function(f, jit_compile=True)
    for other in (tf.function(f), open_batch(f), compiled, compiled.get_concrete_function(x)):
        assert np.array_equal(back(other(x)), back(f(x)))


def test_memory_is_not_written_while_others_read_it():
    """The operation writes y over x where nobody else needs x."""
    x = tf.constant(given(GROUP)[0])

    @tf.function
    def f(x: Any) -> Any:
        alone, shared = x + 1, x * 2
        return anynorm.normalize(alone, **GROUP.arguments), anynorm.normalize(shared, **GROUP.arguments), shared

    kept = x.numpy()
    first, second, shared = f(x)
    assert np.array_equal(x, kept)
    assert np.array_equal(shared, kept * 2)
    relative(back(first), GROUP.reference(kept + 1).y, 1e-6)
    relative(back(second), GROUP.reference(kept * 2).y, 1e-6)


@pytest.mark.parametrize("wrap", [*WRAPS.values(), open_batch], ids=[*WRAPS, "unknown"])
@pytest.mark.parametrize("shape", [(0, 5, 7, 12), (3, 0, 7, 12)])
def test_nothing_to_normalize(shape, wrap):
    if wrap is open_batch and shape[0]:
        pytest.skip("only the batch is open")
    x, scale, offset = tf.zeros(shape), tf.ones(12), tf.ones(12)
    y, dx, dscale, doffset = wrap(lambda x: gradients(GROUP, x, scale, offset, x))(x)
    assert y.shape == dx.shape == shape
    assert not np.any(dscale)
    assert not np.any(doffset)


@ways
@pytest.mark.parametrize("name", ["group, channels last", "layer, two axes", "RMS, last axis", "mean only"])
def test_second_derivative(name, wrap):
    """Of the sum of squares of all gradients, against differences of first derivatives."""
    case = BY_NAME[name]
    x, scale, offset, dy = (tf.constant(a, tf.float64) for a in given(case, np.float64))
    t = tf.constant(seed("t").normal(size=case.shape))

    def loss(x: Any) -> Any:
        return tf.add_n([tf.reduce_sum(d * d) for d in gradients(case, x, scale, offset, dy)[1:]])

    def run(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(x)
        return tape.gradient(value, x)

    want = (loss(x + 1e-5 * t) - loss(x - 1e-5 * t)) / 2e-5
    np.testing.assert_allclose(np.sum(wrap(run)(x) * t), want, rtol=1e-6)


def test_jacobian():
    """pfor, which has no rule for the operations, runs them in a loop."""
    x = tf.constant(seed("jacobian").normal(size=(2, 3)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = anynorm.normalize(x, "n [c]")
    jacobian = tape.jacobian(y, x)
    for i, j in np.ndindex(2, 3):
        dy = np.zeros((2, 3))
        dy[i, j] = 1
        relative(back(jacobian[i, j]), Reference(x.numpy(), "n [c]").backward(dy)[0], 1e-12)
