"""What frameworks do to functions: derivatives of both modes and of second order, batching, compiling, exporting."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import torch
from arrays import back, relative
from jax.test_util import check_grads
from test_normalize import seed
from torch import func

import anynorm
from anynorm.reference import Reference

SENTENCES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("n [...] (g [c])", {"g": 2}),
    ("... [c]", {}),
    ("[...] c", {}),
    ("n h [w] c", {"remove": "scale", "affine": "w c"}),
    ("n [...] c", {"remove": "mean"}),
)
SHAPE = (2, 3, 5, 4)
NAMES = [" ".join((pattern, *(str(v) for v in rest.values()))) for pattern, rest in SENTENCES]
sentences = pytest.mark.parametrize(("pattern", "rest"), SENTENCES, ids=NAMES)
offsets = pytest.mark.parametrize("offset", [0.0, 100.0])


def arrays(pattern: str, offset: float = 0.0, dtype: Any = np.float64) -> list[np.ndarray]:
    """x, scale, offset and a cotangent."""
    rng = seed(pattern)
    small = (5, 4) if "w]" in pattern else (4,)
    return [
        (rng.normal(size=shape) + shift).astype(dtype)
        for shape, shift in ((SHAPE, offset), (small, 1), (small, 0), (SHAPE, 0))
    ]


def call(pattern: str, rest: dict[str, Any]) -> Callable[..., Any]:
    return lambda x, scale=None, offset=None: anynorm.normalize(x, pattern, scale=scale, offset=offset, **rest)


def directional(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, t: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The derivative of f along t by central differences."""
    return (f(x + step * t) - f(x - step * t)) / (2 * step)


def numpy_second(pattern: str, rest: dict[str, Any], x: Any, scale: Any, dy: Any, t: Any) -> np.ndarray:
    """The derivative along t of the gradient of sum(y * dy), by differences of the reference's gradient."""
    rest = dict(rest)
    words = {"affine": rest.pop("affine", "g c" if "g" in rest else "c"), **rest}
    words["remove"] = (words["remove"],) if "remove" in words else ("mean", "scale")
    return directional(lambda a: Reference(a, pattern, scale, **words).backward(dy)[0], x, t)


# torch


@offsets
@sentences
def test_torch_gradcheck(pattern, rest, offset):
    given = [torch.tensor(a, requires_grad=True) for a in arrays(pattern, offset)[:3]]
    assert torch.autograd.gradcheck(call(pattern, rest), given, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call(pattern, rest), given)


@sentences
def test_torch_func(pattern, rest):
    x, scale, offset, dy = (torch.tensor(a) for a in arrays(pattern))
    f = call(pattern, rest)
    loss = lambda x: (f(x, scale, offset) * dy).sum()  # noqa: E731
    (want,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    x = x.detach()
    relative(back(func.grad(loss)(x)), back(want), 1e-12)
    _, pushed = func.jvp(loss, (x,), (dy,))
    relative(back(pushed), back((want * dy).sum()), 1e-12)
    many = torch.stack([x, 3 * x + 1, x.flip(0)])
    relative(back(func.vmap(f)(many)), np.stack([back(f(a)) for a in many]), 1e-12)
    relative(back(func.vmap(func.grad(loss))(many)), np.stack([back(func.grad(loss)(a)) for a in many]), 1e-12)
    scales = torch.stack([scale, scale + 1])
    relative(back(func.vmap(f, in_dims=(None, 0))(x, scales)), np.stack([back(f(x, s)) for s in scales]), 1e-12)
    hessian = func.hessian(loss)(x).reshape(x.numel(), x.numel())
    second = numpy_second(pattern, rest, *(back(a) for a in (x, scale, dy)), t := seed("t").normal(size=SHAPE))
    np.testing.assert_allclose(back(hessian) @ t.ravel(), second.ravel(), atol=1e-6)


def test_torch_saves_no_graph_where_none_is_wanted():
    x = torch.ones(2, 4, requires_grad=True)
    with torch.no_grad():
        assert anynorm.normalize(x, "n [c]").grad_fn is None
    assert not anynorm.normalize(x.detach(), "n [c]").requires_grad
    assert anynorm.normalize(x, "n [c]").grad_fn is not None


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile_serves_every_batch_size(backend):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    x, scale, offset, dy = (torch.tensor(a) for a in arrays("c", 10.0, np.float32))
    f = lambda x, scale: anynorm.normalize(x, "n [...] (g [c])", scale=scale, offset=offset, g=2) * 2  # noqa: E731
    compiled = torch.compile(f, fullgraph=True, backend=backend)
    counted = []
    for n in (2, 3, 5, 7) if backend == "aot_eager" else (2, 3, 5):
        leaves = [torch.cat([x] * 4)[:n].requires_grad_(), scale.clone().requires_grad_()]
        weights = torch.cat([dy] * 4)[:n]
        got, want = ((y := g(*leaves), *torch.autograd.grad((y * weights).sum(), leaves)) for g in (compiled, f))
        for one, other in zip(got, want, strict=True):
            relative(back(one), back(other), 1e-6)
        counted.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counted[0] == 1
    assert counted[1:] == [2] * (len(counted) - 1), "one graph for the first size, one for all others"
    assert not torch._dynamo.utils.counters["graph_break"]


def test_torch_compile_keeps_channels_last():
    torch._dynamo.reset()
    x = torch.tensor(seed("x").normal(size=(2, 4, 3, 5)).astype(np.float32)).to(memory_format=torch.channels_last)
    x = x.requires_grad_()
    f = torch.compile(lambda x: anynorm.normalize(x, "n (g [c]) [...]", g=2), fullgraph=True, backend="aot_eager")
    y = f(x)
    (dx,) = torch.autograd.grad(y.pow(3).sum(), x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)
    relative(back(y), back(anynorm.normalize(x, "n (g [c]) [...]", g=2)), 1e-6)


def test_torch_compile_says_what_is_wrong():
    torch._dynamo.reset()
    f = torch.compile(lambda x: anynorm.normalize(x, "n [...] (g [c])", g=5), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="multiple of the number of groups"):
        f(torch.ones(2, 3, 4))


@pytest.mark.parametrize("pattern", ["n [...] (g [c])", "n (g [c]) [...]"])
def test_torch_meta_device(pattern):
    x = torch.empty(2, 6, 5, 6, device="meta", requires_grad=True)
    y = anynorm.normalize(x, pattern, g=2)
    assert (y.shape, y.device.type) == (x.shape, "meta")
    assert torch.autograd.grad(y, x, torch.empty_like(y))[0].shape == x.shape
    mean, variance = anynorm.moments(x, pattern, g=2)
    assert mean.shape == variance.shape == (2, 2)


# JAX


@sentences
def test_jax_gradients_of_both_modes_and_orders(pattern, rest):
    with jax.enable_x64(True):
        x, scale, shift, _ = (jnp.asarray(a) for a in arrays(pattern, 10.0))
        check_grads(call(pattern, rest), (x, scale, shift), order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


@sentences
def test_jax_modes_agree(pattern, rest):
    with jax.enable_x64(True):
        x, scale, shift, dy = (jnp.asarray(a) for a in arrays(pattern))
        f = partial(call(pattern, rest), scale=scale, offset=shift)
        forward, reverse = jax.jacfwd(f)(x), jax.jacrev(f)(x)
        relative(back(forward), back(reverse), 1e-12)
        y, linear = jax.linearize(f, x)
        relative(back(y), back(f(x)), 1e-12)
        relative(back(linear(dy)), back(jnp.tensordot(forward, dy, 4)), 1e-12)
        loss = lambda x: (f(x) * dy).sum()  # noqa: E731
        relative(back(jax.grad(jax.checkpoint(loss))(x)), back(jnp.tensordot(dy, reverse, 4)), 1e-12)
        relative(back(jax.jit(jax.grad(loss))(x)), back(jax.grad(loss)(x)), 1e-12)
        t = seed("t").normal(size=SHAPE)
        hessian = jnp.tensordot(jax.hessian(loss)(x), t, 4)
        np.testing.assert_allclose(hessian, numpy_second(pattern, rest, *arrays(pattern)[:2], dy, t), atol=1e-6)
        relative(back(jax.jvp(jax.grad(loss), (x,), (jnp.asarray(t),))[1]), back(hessian), 1e-11)


@sentences
@pytest.mark.parametrize("masked", [False, True])
def test_jax_the_pullback_is_the_transpose_of_the_pushforward(pattern, rest, masked):
    """<J t, dy> = <t, J^T dy>, for x and both parameters at once."""
    with jax.enable_x64(True):
        given = tuple(jnp.asarray(a) for a in arrays(pattern)[:3])
        mask = jnp.asarray(seed("mask").random(SHAPE) < 0.7) if masked else None
        f = lambda x, s, o: anynorm.normalize(x, pattern, scale=s, offset=o, mask=mask, **rest)  # noqa: E731
        rng = seed("dot")
        tangents = tuple(jnp.asarray(rng.normal(size=a.shape)) for a in given)
        dy = jnp.asarray(rng.normal(size=SHAPE))
        _, pushed = jax.jvp(f, given, tangents)
        pulled = jax.vjp(f, *given)[1](dy)
        left, right = (pushed * dy).sum(), sum((t * d).sum() for t, d in zip(tangents, pulled, strict=True))
        np.testing.assert_allclose(left, right, rtol=1e-11)


@sentences
def test_jax_vmap(pattern, rest):
    with jax.enable_x64(True):
        x, scale, _, dy = (jnp.asarray(a) for a in arrays(pattern))
        f = call(pattern, rest)
        many, scales = jnp.stack([x, 3 * x + 100, x * 1e-3]), jnp.stack([scale, scale + 1, -scale])
        relative(back(jax.vmap(f)(many)), np.stack([back(f(a)) for a in many]), 1e-11)
        both = np.stack([back(f(a, s)) for a, s in zip(many, scales, strict=True)])
        relative(back(jax.vmap(f)(many, scales)), both, 1e-11)
        relative(back(jax.vmap(f, in_axes=(None, 0))(x, scales)), np.stack([back(f(x, s)) for s in scales]), 1e-11)
        nested = jax.vmap(jax.vmap(f, in_axes=(None, 0)), in_axes=(0, None))(many, scales)
        relative(back(nested), np.stack([[back(f(a, s)) for s in scales] for a in many]), 1e-11)
        gradient = jax.grad(lambda x, s: (f(x, s) * dy).sum(), argnums=(0, 1))
        for i, got in enumerate(jax.vmap(gradient, in_axes=(0, None))(many, scale)):
            relative(back(got), np.stack([back(gradient(a, scale)[i]) for a in many]), 1e-10)
        assert jax.vmap(f, in_axes=-1, out_axes=-1)(jnp.moveaxis(many, 0, -1)).shape == (*SHAPE, 3)


# TensorFlow


def second_derivative(f: Callable[..., Any], x: Any, scale: Any, dy: Any, t: Any) -> Any:
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = f(x, scale)
        dx = inner.gradient(y, x, dy)
    return outer.gradient(dx, x, t)


@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, tf.function, partial(tf.function, jit_compile=True)],
    ids=["eager", "graph", "xla"],
)
@sentences
def test_tensorflow_second_derivative(pattern, rest, wrap):
    given = arrays(pattern)
    x, scale, _, dy = (tf.constant(a) for a in given)
    t = seed("t").normal(size=SHAPE)
    run = wrap(lambda x, scale, dy, t: second_derivative(call(pattern, rest), x, scale, dy, t))
    want = numpy_second(pattern, rest, given[0], given[1], given[3], t)
    np.testing.assert_allclose(back(run(x, scale, dy, tf.constant(t))), want, atol=1e-6)


@sentences
def test_tensorflow_forward_mode(pattern, rest):
    given = arrays(pattern, 10.0)
    x, scale, _, t = (tf.constant(a) for a in given)
    with tf.autodiff.ForwardAccumulator(x, t) as accumulator:
        y = call(pattern, rest)(x, scale)
    want = directional(lambda a: call(pattern, rest)(a, given[1]), given[0], given[3])
    np.testing.assert_allclose(back(accumulator.jvp(y)), want, atol=1e-6)


def test_tensorflow_keeps_known_dimensions():
    shapes = []

    @tf.function(input_signature=[tf.TensorSpec([None, None, 5, 4])])
    def f(x):
        y = anynorm.normalize(x, "n [...] (g [c])", g=2)
        shapes.append(y.shape.as_list())
        return y

    for n, h in ((1, 3), (4, 2), (0, 3)):
        x = seed("x").normal(size=(n, h, 5, 4)).astype(np.float32)
        relative(back(f(x)), anynorm.normalize(x, "n [...] (g [c])", g=2), 1e-6)
    assert shapes == [[None, None, 5, 4]]


def test_tensorflow_variable():
    """The kernel of a convolution, which weight standardization is for, is a variable."""
    kernel = tf.Variable(arrays("[h w i] o", 3.0)[0])
    with tf.GradientTape() as tape:
        y = anynorm.normalize(kernel, "[h w i] o")
        loss = tf.reduce_sum(y**3)
    relative(back(y), Reference(kernel.numpy(), "[h w i] o").y, 1e-12)
    dx = tape.gradient(loss, kernel)
    relative(back(dx), Reference(kernel.numpy(), "[h w i] o").backward(3 * back(y) ** 2)[0], 1e-9)


def test_tensorflow_vectorized_map():
    x = tf.constant(arrays("n [...] c", 10.0)[0])
    got = tf.vectorized_map(lambda a: anynorm.normalize(a, "[...] c"), x)
    relative(back(got), anynorm.normalize(back(x), "n [...] c"), 1e-12)


def test_tensorflow_saved_model(tmp_path):
    class Module(tf.Module):
        def __init__(self):
            self.scale = tf.Variable(np.linspace(1, 2, 4, dtype=np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 4])])
        def __call__(self, x):
            return anynorm.normalize(x, "n [...] (g [c])", scale=self.scale.value(), g=2)

    module = Module()
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for offset in (0.0, 1e5):
        x = arrays("c", offset, np.float32)[0]
        assert np.array_equal(back(loaded(x)), back(module(x)))
        relative(back(loaded(x)), Reference(x, "n [...] (g [c])", module.scale.numpy(), affine="g c", g=2).y, 1e-6)


# Mean and variance


def torch_moments(f: Callable[..., Any], x: np.ndarray, dmean: Any, dvariance: Any) -> tuple[Any, ...]:
    leaf = torch.tensor(x, requires_grad=True)
    out = f(leaf)
    return *out, torch.autograd.grad(out, leaf, (torch.tensor(dmean), torch.tensor(dvariance)))[0]


def jax_moments(f: Callable[..., Any], x: np.ndarray, dmean: Any, dvariance: Any) -> tuple[Any, ...]:
    out, pull = jax.vjp(f, jnp.asarray(x))
    return *out, pull((jnp.asarray(dmean), jnp.asarray(dvariance)))[0]


def tensorflow_moments(f: Callable[..., Any], x: np.ndarray, dmean: Any, dvariance: Any) -> tuple[Any, ...]:
    given = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(given)
        out = f(given)
    return *out, tape.gradient(out, given, [tf.constant(dmean), tf.constant(dvariance)])


MOMENTS: dict[str, Callable[..., Any]] = {
    "numpy": lambda f, x, *_: f(x),
    "torch": torch_moments,
    "torch compile": lambda f, *a: torch_moments(torch.compile(f, fullgraph=True, backend="aot_eager"), *a),
    "jax": jax_moments,
    "jax jit": lambda f, *a: jax_moments(jax.jit(f), *a),
    "tensorflow": tensorflow_moments,
    "tensorflow graph": lambda f, *a: tensorflow_moments(tf.function(f), *a),
    "tensorflow xla": lambda f, *a: tensorflow_moments(tf.function(f, jit_compile=True), *a),
}


@pytest.mark.parametrize("runner", MOMENTS)
@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize(
    ("pattern", "axes", "sizes"),
    [("n [...] (g [c])", (1, 2, 4), {"g": 2}), ("[...] c", (0, 1, 2), {}), ("n h w [c]", (3,), {})],
)
def test_moments(pattern, axes, sizes, offset, runner):
    x = arrays("n", offset, np.float32)[0]
    spread = x.astype(np.float64).reshape(2, 3, 5, 2, 2) if "g" in sizes else x.astype(np.float64)
    mean, variance = spread.mean(axes), spread.var(axes)
    rng = seed("moments")
    dmean, dvariance = (rng.normal(size=mean.shape).astype(np.float32) for _ in range(2))
    got = MOMENTS[runner](lambda a: anynorm.moments(a, pattern, **sizes), x, dmean, dvariance)
    np.testing.assert_allclose(back(got[0]), mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(back(got[1]), variance, rtol=4e-6)
    if runner != "numpy":
        count = spread.size / mean.size
        whole = [np.expand_dims(a.astype(np.float64), axes) for a in (dmean, dvariance, mean)]
        want = (whole[0] + 2 * whole[1] * (spread - whole[2])) / count
        relative(back(got[2]), want, 1e-5)
