"""The NNX modules under JAX's and NNX's transformations, on one device and on several."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import relative
from jax.test_util import check_grads
from test_normalize import seed

nnx = pytest.importorskip("flax.nnx")

import anynorm  # noqa: E402
import anynorm.nnx as A  # noqa: E402, N812

MAKE = {
    "BatchNorm": lambda: A.BatchNorm(4, rngs=nnx.Rngs(0)),
    "GroupNorm": lambda: A.GroupNorm(4, 2, rngs=nnx.Rngs(0)),
    "InstanceNorm": lambda: A.InstanceNorm(4, rngs=nnx.Rngs(0)),
    "LayerNorm": lambda: A.LayerNorm(4, rngs=nnx.Rngs(0)),
    "RMSNorm": lambda: A.RMSNorm(4, rngs=nnx.Rngs(0)),
    "Norm": lambda: A.Norm("n [h] c", 3, affine="h", rngs=nnx.Rngs(0)),
}
SHAPE = (2, 3, 4)
every = pytest.mark.parametrize("name", MAKE)
three = pytest.mark.parametrize("name", ["BatchNorm", "GroupNorm", "RMSNorm"])


def arrays(count: int, shape: tuple[int, ...] = SHAPE) -> list[np.ndarray]:
    rng = seed("transforms")
    return [rng.normal(size=shape) for _ in range(count)]


def merged(graph: Any, state: Any) -> Any:
    """With variables of its own, which belong to the trace that is going on and may be moved in it."""
    return nnx.merge(graph, state, copy=True)


@three
def test_derivatives_of_both_modes_and_both_orders(name):
    """Forward and reverse against differences of the function, then forward over reverse, and the hessian."""
    with jax.enable_x64(True):
        graph, state = nnx.split(MAKE[name]())
        x, dy = (jnp.asarray(a) for a in arrays(2))
        f = lambda x, state: (merged(graph, state)(x) * dy).sum()  # noqa: E731
        check_grads(lambda x: merged(graph, state)(x), (x,), order=1, modes=("fwd", "rev"))
        gradient = jax.grad(f)
        t = jnp.asarray(arrays(3)[2])
        step = 1e-5
        want = (gradient(x + step * t, state) - gradient(x - step * t, state)) / (2 * step)
        hessian = jax.jit(jax.hessian(f))(x, state)
        relative(jnp.tensordot(hessian, t, 3), want, 1e-7)
        relative(jax.jvp(lambda x: gradient(x, state), (x,), (t,))[1], want, 1e-7)
        forward, reverse = jax.jacfwd(f, argnums=1)(x, state), jax.grad(f, argnums=1)(x, state)
        for a, b in zip(jax.tree.leaves(forward), jax.tree.leaves(reverse), strict=True):
            relative(a, b, 1e-7)


@every
def test_jit_checkpoint_and_vmap_change_nothing(name):
    module = MAKE[name]()
    graph, state = nnx.split(module)
    xs, dy = (jnp.asarray(a, jnp.float32) for a in arrays(2, (3, *SHAPE)))
    f = lambda state, x: merged(graph, state)(x)  # noqa: E731
    pulled = lambda f, x: jax.vjp(f, state, x)[1](dy[0])  # noqa: E731
    want = pulled(f, xs[0])
    for other in (jax.jit(f), jax.checkpoint(f)):
        np.testing.assert_allclose(other(state, xs[0]), f(state, xs[0]), rtol=0, atol=1e-6)
        for a, b in zip(jax.tree.leaves(pulled(other, xs[0])), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    alone = jnp.stack([f(state, x) for x in xs])
    np.testing.assert_allclose(jax.vmap(f, (None, 0))(state, xs), alone, rtol=0, atol=1e-6)
    each = nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(module, xs) if name != "BatchNorm" else alone
    np.testing.assert_allclose(each, alone, rtol=0, atol=1e-6)


def test_without_jit():
    """Under `jax.disable_jit()`, by which people look into their programs, values and derivatives are the same."""
    module, x = MAKE["LayerNorm"](), jnp.asarray(arrays(1)[0], jnp.float32)
    loss = lambda x: (module(x) ** 3).sum()  # noqa: E731
    wanted = module(x), jax.grad(loss)(x), jax.jvp(loss, (x,), (x,))[1], jax.vmap(module)(x)
    with jax.disable_jit():
        got = module(x), jax.grad(loss)(x), jax.jvp(loss, (x,), (x,))[1], jax.vmap(module)(x)
        mean, _ = anynorm.moments(x, "[n] ...")
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, x.mean(0), rtol=0, atol=1e-6)


def test_many_modules_in_one_vmap():
    """As an ensemble has them: parameters and running statistics with one more axis."""
    make = nnx.vmap(lambda rngs: A.BatchNorm(4, rngs=rngs), in_axes=0)
    modules = make(nnx.Rngs(0).fork(split=3))
    xs = jnp.asarray(arrays(1, (3, 5, 4))[0], jnp.float32)
    y = nnx.vmap(lambda m, x: m(x))(modules, xs)
    for i, x in enumerate(xs):
        one = MAKE["BatchNorm"]()
        np.testing.assert_allclose(y[i], one(x), rtol=0, atol=1e-6)
        np.testing.assert_allclose(modules.var[i], one.var[...], rtol=1e-6)


def test_scan_carries_the_running_statistics():
    module, by_hand = MAKE["BatchNorm"](), MAKE["BatchNorm"]()
    graph, state = nnx.split(module)
    xs = jnp.asarray(arrays(1, (5, *SHAPE))[0], jnp.float32)

    def step(state: Any, x: Any) -> Any:
        module = merged(graph, state)
        y = jax.checkpoint(lambda x: module(x, use_running_average=True))(x)
        module(x)
        return nnx.state(module), y

    state, ys = jax.jit(lambda state, xs: jax.lax.scan(step, state, xs))(state, xs)
    for x, y in zip(xs, ys, strict=True):
        np.testing.assert_allclose(y, by_hand(x, use_running_average=True), rtol=0, atol=2e-6)
        by_hand(x)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(nnx.state(by_hand)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_training_inside_nnx_jit_moves_the_statistics_once():
    module, by_hand = MAKE["BatchNorm"](), MAKE["BatchNorm"]()
    x, dy = (jnp.asarray(a, jnp.float32) for a in arrays(2))

    @nnx.jit
    def step(module: Any, x: Any) -> Any:
        remat = nnx.remat(lambda module, x: module(x))
        return nnx.grad(lambda module: (remat(module, x) * dy).sum())(module)

    gradient = step(module, x)
    by_hand(x)
    np.testing.assert_allclose(module.mean[...], by_hand.mean[...], rtol=0, atol=1e-7)
    np.testing.assert_allclose(module.var[...], by_hand.var[...], rtol=1e-6)
    relative(gradient["bias"][...], dy.sum((0, 1)), 1e-6)


@three
def test_export(name):
    """Saved without any of anynorm's operations, also with a batch of unknown size; gradients are saved along."""
    graph, state = nnx.split(MAKE[name]())
    f = jax.jit(lambda x: merged(graph, state)(x))
    x = jnp.asarray(arrays(1)[0], jnp.float32)
    f(x)
    (n,) = jax.export.symbolic_shape("n")
    for first in (n, len(x)):
        shape = jax.ShapeDtypeStruct((first, *SHAPE[1:]), jnp.float32)
        exported = jax.export.export(f, platforms=("cpu", "cuda"))(shape)
        loaded = jax.export.deserialize(exported.serialize(vjp_order=1))
        np.testing.assert_allclose(loaded.call(x), f(x), rtol=0, atol=1e-6)
        np.testing.assert_allclose(jax.vjp(loaded.call, x)[1](x)[0], jax.vjp(f, x)[1](x)[0], rtol=0, atol=1e-5)


PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec as P
import anynorm.nnx as A

rng = np.random.default_rng(0)
mesh = Mesh(np.array(jax.devices()), ("d",))
assert len(jax.devices()) == 4
near = lambda a, b, size=1e-6: np.testing.assert_allclose(a, b, rtol=0, atol=size * np.abs(b).max())

def both(make, x, mask, spec):
    "y, state and gradient of the parts together, and of the whole on one device."
    graph, state = nnx.split(make(axis_name="d"))
    def call(state, x, mask):
        module = nnx.merge(graph, state)
        return module(x, mask=mask), nnx.state(module)
    together = jax.shard_map(call, mesh=mesh, in_specs=(P(), spec, spec), out_specs=(spec, P()))
    alone = lambda state, x, mask: (lambda m: (m(x, mask=mask), nnx.state(m)))(nnx.merge(nnx.graphdef(make()), state))
    dy = jnp.asarray(rng.normal(size=x.shape), x.dtype)
    for f in (together, alone):
        def loss(state, x):
            y, moved = f(state, x, mask)
            return (y * dy).sum(), (y, moved)
        (_, (y, moved)), gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(state, x)
        yield y, moved, gradient

def same(make, x, mask, spec):
    (y, *rest), (want, *want_rest) = both(make, x, mask, spec)
    near(y, want)
    for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(want_rest), strict=True):
        near(a, b, 1e-5) if np.isfinite(b).all() else np.testing.assert_array_equal(np.isinf(a), np.isinf(b))

x = rng.normal(size=(8, 5, 6)).astype("float32")
mask = rng.random(x.shape) > 0.6
mask[:2, :, 0] = False      # the first device has nothing of the first channel
mask[:, :, 1] = False       # and nobody of the second
holes = np.where(mask, x, np.nan).astype("float32")
batch = lambda **k: A.BatchNorm(6, rngs=nnx.Rngs(0), **k)
for offset, factor, marks in ((0, 1, None), (1e6, 1, mask), (0, 1e30, None)):
    shown = (x if marks is None else np.where(mask, x, 0)) + np.float32(offset)
    same(batch, shown * np.float32(factor), marks, P("d"))
assert np.isfinite(next(both(batch, holes, mask, P("d")))[0][mask]).all()

# An image in strips: statistics over an axis that lies on several devices.
image = rng.normal(2, 3, size=(2, 8, 5, 6)).astype("float32")
for make in (
    lambda **k: A.GroupNorm(6, 3, rngs=nnx.Rngs(0), **k),
    lambda **k: A.RMSNorm(6, reduction_axes=(1, 3), rngs=nnx.Rngs(0), **k),
    lambda **k: A.Norm("n [...] c", 6, remove="mean", rngs=nnx.Rngs(0), **k),
):
    same(make, image, None, P(None, "d"))

# Named axes of pmap and vmap, and groups of devices, each with statistics of its own.
parts = x.reshape(4, 2, 5, 6)
whole = batch()(x).reshape(parts.shape)
run = lambda **k: lambda x: (lambda m: (m(x), m.mean[...]))(batch(axis_name="d", **k))
near(jax.vmap(run(), axis_name="d")(parts)[0], whole)
near(jax.pmap(run(), axis_name="d")(parts)[0], whole)
pairs, mean = jax.pmap(run(axis_index_groups=[[0, 2], [1, 3]]), axis_name="d")(parts)
near(pairs[::2], batch()(parts[::2].reshape(4, 5, 6)).reshape(2, 2, 5, 6))
near(mean[1], 0.01 * parts[1::2].mean((0, 1, 2)))
assert (mean[0] == mean[2]).all() and (mean[0] != mean[1]).all()
"""


def test_statistics_across_devices():
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
