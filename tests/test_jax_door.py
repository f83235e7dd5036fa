"""The CPU kernels in JAX: that they run, that every transformation agrees with composed, and what stays composed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME, CASES, Case
from test_normalize import seed

import anynorm
from anynorm.kernels import cpu
from anynorm.kernels.select import Choice, select
from anynorm.ops import jax as ops

pytestmark = pytest.mark.skipif(cpu.door("jax") is None, reason=f"no door for JAX: {cpu.why_not() or 'not built'}")

LAYER = BY_NAME["layer, last axis"]
SOME = [
    BY_NAME[name] for name in ("group, channels last", "layer, last axis", "batch, channels last", "layer, apart axes")
]
some = pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)


@contextmanager
def composed() -> Iterator[None]:
    """JAX computes composed in here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "select", lambda *_, **__: Choice("composed", "a test wants it"))
        jax.clear_caches()
        yield
    jax.clear_caches()


def given(case: Case, count: int = 0, dtype: Any = np.float32) -> list[Any]:
    """x, scale, offset and a cotangent, each `count` times where that is asked for."""
    rng = seed("jax door", case.name)
    scale, offset = case.parameters(rng)
    shapes = [None if a is None else np.shape(a) for a in (rng.normal(size=case.shape), scale, offset)]
    front = (count,) if count else ()
    arrays = [None if s is None else rng.normal(size=(*front, *s)) + 0.5 for s in (*shapes, case.shape)]
    return [None if a is None else jnp.asarray(a.astype(dtype)) for a in arrays]


def function(case: Case, **more: Any) -> Any:
    return lambda x, scale=None, offset=None: anynorm.normalize(x, scale=scale, offset=offset, **case.arguments, **more)


def kernels_in(f: Any, *args: Any) -> list[str]:
    """The handlers that a program calls, in order."""
    text = jax.jit(f).lower(*args).as_text()
    return [word.split("(")[0] for word in text.split("@") if word.startswith("Anynorm")]


def assert_close(got: Any, want: Any, rtol: float = 2e-6) -> None:
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max(initial=1.0))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward_and_gradient_are_one_kernel_each(case):
    x, scale, offset, dy = given(case)
    f = function(case)

    def both(x: Any, scale: Any, offset: Any, dy: Any) -> Any:
        y, pull = jax.vjp(f, x, scale, offset)
        return y, pull(dy)

    got = jax.jit(both)(x, scale, offset, dy)
    assert kernels_in(f, x, scale, offset) == ["AnynormForward"]
    assert kernels_in(both, x, scale, offset, dy) == ["AnynormForward", "AnynormBackward"]
    with composed():
        assert kernels_in(both, x, scale, offset, dy) == []
        assert_close(got, jax.jit(both)(x, scale, offset, dy), 5e-6)


def test_unused_statistics_are_not_asked_for():
    x, scale, offset, _ = given(LAYER)
    y_only = jax.jit(function(LAYER)).lower(x, scale, offset).as_text()
    assert "wanted = 0" in y_only
    spec = anynorm.NormSpec.of("... [c]")
    text = jax.jit(lambda x: ops.normalize(x, None, None, None, spec, 1e-5)[:2]).lower(x).as_text()
    assert "wanted = 1" in text


@some
def test_forward_mode(case):
    x, scale, offset, t = given(case)
    arguments = (x, scale, offset), (t, 2.0 * scale, offset + 1.0)
    push = lambda p, t: jax.jvp(function(case), p, t)  # noqa: E731
    got = push(*arguments)
    assert kernels_in(push, *arguments) == ["AnynormForward", "AnynormBackward", "AnynormForward"]
    with composed():
        assert_close(got, push(*arguments))


BATCHED = [(0, None, None), (0, 0, None), (None, 0, 0), (0, 0, 0), (None, None, 0), (-1, None, 0)]


@pytest.mark.parametrize("axes", BATCHED, ids=str)
@some
def test_vmap(case, axes):
    many, one = given(case, 3), given(case)
    args = [b if axis is None else jnp.moveaxis(a, 0, axis) for a, b, axis in zip(many, one, axes, strict=False)]
    mapped = jax.vmap(function(case), in_axes=axes)
    pull = lambda dy, *a: jax.vjp(function(case), *a)[1](dy)  # noqa: E731
    gradients = jax.vmap(pull, in_axes=(0, *axes))
    got = mapped(*args), gradients(many[3], *args)
    with composed():
        assert_close(got, (mapped(*args), gradients(many[3], *args)), 5e-6)


def test_a_batch_is_one_call():
    many, one = given(LAYER, 3), given(LAYER)
    f = function(LAYER)
    assert kernels_in(jax.vmap(f, in_axes=(0, None, None)), many[0], *one[1:3]) == ["AnynormForward"]
    nested = jax.vmap(jax.vmap(f, in_axes=(0, None, None)), in_axes=(0, None, None))
    twice = jnp.stack([many[0], many[0] + 1.0])
    assert kernels_in(nested, twice, *one[1:3]) == ["AnynormForward"]
    np.testing.assert_array_equal(nested(twice, *one[1:3])[1, 2], f(twice[1, 2], *one[1:3]))


@some
def test_kernels_take_arrays_as_users_have_them(case):
    """Reshaped for a call, they would be in XLA's loops beside it too, which run slowly over a few channels a group."""

    def step(x, scale, offset, dy):
        y, pull = jax.vjp(lambda x, *a: function(case)(x + 1.0, *a), x, scale, offset)
        return y, pull(2.0 * dy)

    def lines(f: Any, *args: Any) -> list[str]:
        text = jax.jit(f).lower(*args).compile().as_text()
        return [line for line in text.splitlines() if 'custom_call_target="Anynorm' in line]

    written = ",".join(map(str, case.shape))
    calls = lines(step, *given(case))
    assert len(calls) == 2
    assert all(f"f32[{written}]" in line for line in calls)
    calls = lines(jax.vmap(step), *given(case, 3))
    assert len(calls) == 2
    assert all(f"f32[3,{written}]" in line for line in calls)


def test_gradients_of_each_example():
    """A parameter that the examples share has one gradient for each of them."""
    x, (_, scale, offset, _) = given(LAYER, 3)[0], given(LAYER)
    gradient = jax.grad(lambda s, o, x: (function(LAYER)(x, s, o) ** 2).sum(), argnums=(0, 1))
    got = jax.vmap(gradient, in_axes=(None, None, 0))(scale, offset, x)
    for i in range(3):
        assert_close([g[i] for g in got], gradient(scale, offset, x[i]))


@some
def test_hessian_of_the_parameters_and_x(case):
    with jax.enable_x64(True):
        x, scale, offset, dy = given(case, dtype=np.float64)
        x = x[:1] if case is LAYER else x
        dy = dy[: len(x)]
        loss = lambda x, s, o: (function(case)(x, s, o) ** 2 * dy).sum()  # noqa: E731
        along = jax.jvp(jax.grad(loss, argnums=(0, 1, 2)), (x, scale, offset), (dy, 2 * scale, offset))[1]
        hessian = jax.jit(jax.hessian(loss, argnums=1))(x, scale, offset)
        assert "AnynormForward" in kernels_in(jax.grad(loss), x, scale, offset)
        with composed():
            gradient = jax.grad(loss, argnums=(0, 1, 2))
            assert_close(along, jax.jvp(gradient, (x, scale, offset), (dy, 2 * scale, offset))[1], 1e-11)
            assert_close(hessian, jax.jit(jax.hessian(loss, argnums=1))(x, scale, offset), 1e-11)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@some
def test_half_precision_with_float32_parameters(case, dtype):
    x, scale, offset, dy = given(case)
    x, dy = x.astype(dtype), dy.astype(dtype)
    run = lambda x, s, o: (lambda y, pull: (y, pull(dy)))(*jax.vjp(function(case), x, s, o))  # noqa: E731
    y, grads = jax.jit(run)(x, scale, offset)
    assert [g.dtype for g in (y, *grads)] == [x.dtype, x.dtype, jnp.float32, jnp.float32]
    assert kernels_in(run, x, scale, offset) == ["AnynormForward", "AnynormBackward"]
    with composed():
        want_y, want_grads = jax.jit(run)(x, scale, offset)
        step = float(jnp.finfo(dtype).eps)
        assert_close((y, grads[0]), (want_y, want_grads[0]), step)
        assert_close(grads[1:], want_grads[1:], 5e-6)


def test_empty_arrays_and_masks_are_composed():
    f = function(LAYER)
    assert kernels_in(f, jnp.zeros((0, 5, 13))) == []
    assert f(jnp.zeros((0, 5, 13))).shape == (0, 5, 13)
    assert jax.vmap(f)(jnp.zeros((0, 2, 13))).shape == (0, 2, 13)
    masked = lambda x: anynorm.normalize(x, "... [c]", mask=x > 0)  # noqa: E731
    assert kernels_in(masked, jnp.ones((3, 13))) == []


@some
def test_moments(case):
    x = given(case)[0]
    words = {k: v for k, v in case.arguments.items() if k not in ("affine", "eps", "remove")}
    both = lambda x: jax.vjp(lambda x: anynorm.moments(x, **words), x)  # noqa: E731
    only_mean = lambda x: anynorm.moments(x, **words)[0]  # noqa: E731
    got, pull = both(x)
    assert kernels_in(only_mean, x) == ["AnynormMoments"]
    gradient = pull(got)
    several = jax.vmap(only_mean)(jnp.stack([x, x + 1.0]))
    with composed():
        want, pull = both(x)
        assert_close((got, gradient), (want, pull(want)))
        assert_close(several, jax.vmap(only_mean)(jnp.stack([x, x + 1.0])))


def test_other_platforms_get_composed():
    """A program traced here and compiled for another platform has nothing of the CPU's in it."""
    x, scale, offset, dy = given(LAYER)
    step = lambda x, s, o: jax.vjp(function(LAYER), x, s, o)[1](dy)  # noqa: E731
    for platform in ("cuda", "tpu"):
        text = jax.jit(step).trace(x, scale, offset).lower(lowering_platforms=(platform,)).as_text()
        assert "Anynorm" not in text
        assert "f64" not in text


def test_export_asks_before_it_keeps_a_kernel():
    x, scale, offset, _ = given(LAYER)
    jitted = jax.jit(function(LAYER, kernel="cpu"))
    with pytest.raises(ValueError, match="AnynormForward"):
        jax.export.export(jitted)(x, scale, offset).serialize()
    allowed = [jax.export.DisabledSafetyCheck.custom_call("AnynormForward")]
    kept = jax.export.deserialize(jax.export.export(jitted, disabled_checks=allowed)(x, scale, offset).serialize())
    np.testing.assert_array_equal(kept.call(x, scale, offset), jitted(x, scale, offset))


@some
def test_export_writes_composed_whatever_ran_before(case):
    """Also where JAX has the function's program already, with the kernels that serve it here."""
    x, scale, offset, dy = given(case)
    arrays = [a for a in (x, scale, offset) if a is not None]
    jitted = jax.jit(function(case))
    want = jitted(*arrays)
    assert kernels_in(function(case), *arrays) == ["AnynormForward"]
    for platforms in (None, ("cpu", "cuda")):
        exported = jax.export.export(jitted, platforms=platforms)(*arrays)
        assert "Anynorm" not in exported.mlir_module()
        kept = jax.export.deserialize(exported.serialize(vjp_order=1))
        assert_close(kept.call(*arrays), want)
        for one, other in zip(jax.vjp(kept.call, *arrays)[1](dy), jax.vjp(jitted, *arrays)[1](dy), strict=True):
            assert_close(one, other)
    assert kernels_in(function(case), *arrays) == ["AnynormForward"]


def test_symbolic_dimensions_are_composed():
    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(function(LAYER)))(jax.ShapeDtypeStruct((n, 5, 13), jnp.float32))
    x = given(LAYER)[0]
    assert_close(exported.call(x), function(LAYER)(x))


def test_select_says_why():
    plan = LAYER.plan
    assert select(plan, "jax", "cpu", "float32").kernel == "cpu"
    assert "for CPUs" in select(plan, "jax", "gpu", "float32").why


# In processes of their own, because XLA reads its flags once

SHARDED = """
import jax, jax.numpy as jnp, numpy as np, anynorm
from jax import P
from jax.sharding import AxisType, NamedSharding
mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
x, dy = (jnp.asarray(rng.normal(size=(8, 6, 5, 4)), jnp.float32) for _ in range(2))
scale, offset = jnp.arange(4.0) + 1, jnp.arange(4.0)
parted = [jax.device_put(a, NamedSharding(mesh, P("d"))) for a in (x, dy)]
def f(x, scale, offset):
    return anynorm.normalize(x, PATTERN, scale=scale, offset=offset, **SIZES)
def pull(x, scale, offset, dy):
    return jax.vjp(f, x, scale, offset)[1](dy)
want = jax.jit(pull)(x, scale, offset, dy)
def compare(got):
    for one, other in zip(got, want):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6 * float(abs(other).max()))
"""

JIT = """
compiled = jax.jit(pull).lower(parted[0], scale, offset, parted[1]).compile()
assert "all-gather" not in compiled.as_text()
got = compiled(parted[0], scale, offset, parted[1])
assert got[0].sharding.spec == P("d"), got[0].sharding
compare(got)
"""

ASKED = """
asked = lambda x: anynorm.normalize(x, PATTERN, kernel="cpu", **SIZES)
try:
    jax.jit(asked)(parted[0])
except ValueError as error:
    assert "the cpu kernel was asked for and cannot run here: the arrays lie on several devices" in str(error), error
else:
    raise AssertionError("something else computed")
"""

SHARD_MAP = """
each = jax.shard_map(pull, mesh=mesh, in_specs=(P("d"), P(), P(), P("d")), out_specs=(P("d"), P(), P()))
text = jax.jit(each).lower(parted[0], scale, offset, parted[1]).compile().as_text()
assert "AnynormForward" in text and "AnynormBackward" in text and "all-gather" not in text
compare(jax.jit(each)(parted[0], scale, offset, parted[1]))
y = jax.shard_map(f, mesh=mesh, in_specs=(P("d"), P(), P()), out_specs=P("d"))
whole = lambda *a: (y(*a) * dy).sum()
compare(jax.jit(jax.grad(whole, argnums=(0, 1, 2)))(parted[0], scale, offset))
jax.jit(lambda x: jax.jvp(lambda x: jax.grad(whole)(x, scale, offset), (x,), (x,)))(parted[0])
"""

THREADS = """
import hashlib, threading, time
import jax, jax.numpy as jnp, numpy as np, anynorm
x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3136, 32)), jnp.float32)
f = jax.jit(lambda x: jax.vjp(lambda x: anynorm.normalize(x, "n [s] c"), x)[1](x)[0])
assert "AnynormForward" in f.lower(x).as_text()
y = np.asarray(f(x))
wall, cpu = time.perf_counter(), time.process_time()
for _ in range(20): f(x).block_until_ready()
print((time.process_time() - cpu) / (time.perf_counter() - wall), hashlib.sha256(y.tobytes()).hexdigest())
calls = [threading.Thread(target=lambda: [f(x).block_until_ready() for _ in range(5)]) for _ in range(4)]
for call in calls: call.start()
for call in calls: call.join()
"""


def run(code: str, flags: str) -> str:
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(("pattern", "sizes"), [("n [...] (g [c])", {"g": 2}), ("... [c]", {}), ("[...] c", {})])
def test_sharded_arrays_are_not_gathered(pattern, sizes):
    code = f"PATTERN, SIZES = {pattern!r}, {sizes!r}" + SHARDED + JIT + ASKED + (SHARD_MAP if pattern[0] != "[" else "")
    run(code, "--xla_force_host_platform_device_count=4")


@pytest.mark.parametrize("pattern", ["a b [c]", "[a b] c", "a [b] c"])
def test_axes_of_a_mesh_of_one_device(pattern):
    """They are part of an array's type, and a call on another shape has to leave them out."""
    mesh = jax.make_mesh((1,), ("d",))
    with jax.set_mesh(mesh):
        sharding = jax.sharding.NamedSharding(mesh, jax.P(None, None, "d"))
        x = jax.device_put(jnp.asarray(seed("mesh").normal(size=(4, 3, 6)), jnp.float32), sharding)
        f = partial(anynorm.normalize, pattern=pattern)
        y = jax.jit(f)(x)
        assert jax.typeof(y).sharding.spec == sharding.spec
        assert kernels_in(f, x) == ["AnynormForward"]
        assert_close(y, jax.jit(partial(f, kernel="composed"))(x))


def test_threads_are_xla_s():
    """As many as XLA has, one where that is wanted, the same bits, and calls that do not wait for one another."""
    busy, one = run(THREADS, "--xla_cpu_multi_thread_eigen=false").split()
    assert float(busy) < 1.3, "more than one processor was busy"
    assert run(THREADS, "").split()[1] == run(THREADS, "--xla_force_host_platform_device_count=8").split()[1] == one


def test_debugging_nans_finds_none():
    """What the gradient needs travels as two doubles in four parts, any of which may look like a NaN."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2048, 16)).astype(np.float32))
    with jax.debug_nans(True):
        _, pull = jax.vjp(lambda x: anynorm.normalize(x, "... [c]"), x)
        pull(x)
