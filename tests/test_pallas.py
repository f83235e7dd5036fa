"""The kernels in Pallas: interpreted here against float64, lowered for CUDA, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BY_NAME, CASES, Case
from test_normalize import seed

import anynorm
from anynorm.kernels import pallas, select
from anynorm.kernels.pallas import jax_backward, jax_forward, jax_join, jax_statistics, jax_tiles, view
from anynorm.ops import jax as ops

GPU = jax.default_backend() == "gpu"
LAYER, GROUP, LAST = BY_NAME["layer, last axis"], BY_NAME["group, channels last"], BY_NAME["instance, channels last"]
CHANNELS, RMS = BY_NAME["layer, channels first"], BY_NAME["RMS, last axis"]
# More than one tile and one part where these are small, a last one that is not full, and every order of the runs.
CUT = (
    Case("rows", "... [c]", (3, 300)),
    Case("columns", "n [...] (g [c])", (2, 5, 27, 12), sizes={"g": 4}),
    Case("rows of segments", "n (g [c]) [...]", (2, 12, 5, 27), sizes={"g": 4}),
    Case("channels", "n [c] ...", (2, 131, 5)),
    Case("apart", "[a] n [c]", (33, 3, 70), affine="a c"),
    Case("batch", "[n] c [...]", (3, 2, 131)),
)


def _forget() -> None:
    pallas.interpreted.cache_clear()
    select._select.cache_clear()
    jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def _interpreted() -> Iterator[None]:
    """Each program is compiled once and runs a few times on little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(pallas.VARIABLE, "1")
        _forget()
        jax.config.update("jax_disable_most_optimizations", not GPU)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    _forget()


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """The names of what is launched, in order."""
    names: list[str] = []
    call = jax_tiles.pl.pallas_call
    monkeypatch.setattr(
        jax_tiles.pl, "pallas_call", lambda *args, **words: names.append(words["name"][8:]) or call(*args, **words)
    )
    return names


@pytest.fixture
def small_tiles(monkeypatch) -> None:
    """Nothing is whole, and a few hundred elements make many parts."""
    for module, name, value in (
        (jax_forward, "WHOLE_FORWARD", 0), (jax_backward, "WHOLE_BACKWARD", 0), (jax_backward, "ROW_PROGRAMS", 4),
        (view, "TILE", 32), (view, "COLUMNS", 8), (view, "FEW_TILES", 3), (view, "MOST_PARTS", 16),
        (jax_join, "PARTS", 4), (jax_join, "HELD", 8),
    ):  # fmt: skip
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)


def function(case: Case, kernel: str = "pallas", eps: float = 1e-5) -> Callable[..., Any]:
    return lambda x, scale=None, offset=None: anynorm.normalize(
        x, scale=scale, offset=offset, kernel=kernel, eps=eps, **case.arguments
    )


def compiled(case: Case, eps: float = 1e-5) -> Callable[..., Any]:
    """y, and a list of the gradients of what is given."""

    def both(dy: Any, *given: Any) -> Any:
        y, pull = jax.vjp(function(case, eps=eps), *given)
        return y, pull(dy.astype(y.dtype))

    return jax.jit(both)


def given(case: Case) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """x, scale and offset where there are any, and a cotangent."""
    rng = seed("pallas", case.name)
    x, dy = rng.normal(size=(2, *case.shape)).astype(np.float32)
    return x, [a for a in case.parameters(rng) if a is not None], dy


def check(case: Case, run: Callable[..., Any], x: np.ndarray, eps: float = 1e-5, y_to: float = 1e-6) -> Any:
    """y to `y_to` of its largest entry or of 1, and the gradients to 1e-5 of theirs."""
    _, parameters, dy = given(case)
    dy = dy.astype(x.dtype)
    y, grads = run(dy, x, *parameters)
    oracle = case.reference(x, *parameters, eps=eps)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    size = max(1.0, float(np.abs(oracle.y).max()))
    np.testing.assert_allclose(np.asarray(y, np.float64), oracle.y, rtol=0, atol=y_to * size)
    for name, got, want in zip(("dx", "dscale", "doffset"), grads, oracle.backward(dy), strict=False):
        size = np.abs(want).max(initial=1e-30)
        tolerance = 1e-5 if got.dtype == np.float32 else y_to
        np.testing.assert_allclose(np.ravel(got), np.ravel(want), rtol=0, atol=tolerance * size, err_msg=name)
    return y, grads


def whole_contract(case: Case) -> None:
    """Offsets, constants, and a NaN that stays in its group, by one program."""
    run = compiled(case)
    x, parameters, dy = given(case)
    for offset in (0.0, 30.0, 1e4, -1e6):
        well = check(case, run, x + np.float32(offset))
    if "mean" in case.remove:
        want = case.reference(np.zeros(case.shape), *parameters).y.astype(np.float32)
        for value in (0.0, 127.3, -1000.3, 1e30, 1e-30):
            y, grads = run(dy, np.full(case.shape, value, np.float32), *parameters)
            np.testing.assert_array_equal(y, want)
            assert all(np.isfinite(g).all() for g in grads)
    ill = x + np.float32(-1e6)
    ill.flat[5] = np.nan
    others = np.isfinite(case.reference(ill, *parameters).y)
    y, grads = run(dy, ill, *parameters)
    assert not np.isfinite(np.asarray(y)[~others]).any()
    np.testing.assert_array_equal(np.asarray(y)[others], np.asarray(well[0])[others])
    np.testing.assert_array_equal(np.asarray(grads[0])[others], np.asarray(well[1][0])[others])


@pytest.mark.skipif(GPU, reason="a GPU runs the table itself")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_interpreted(case, launched):
    whole_contract(case)
    assert launched[0] in ("forward", "parts")
    assert "dx" in launched


@pytest.mark.skipif(not GPU, reason="no GPU for JAX here")
@pytest.mark.parametrize("case", [*CASES, *CUT], ids=lambda case: case.name)
def test_every_case_on_a_gpu(case, launched):
    whole_contract(case)
    assert launched[0] in ("forward", "parts")


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CUT, ids=lambda case: case.name)
def test_groups_in_parts(case, launched):
    whole_contract(case)
    assert launched[:5] == ["parts", "join", "apply", "sums", "totals"]
    of = view.of_statistics(view.merged(case.plan.runs))
    assert of.counts(of.cut())[1] > 1
    assert of.cut().steps > 1 or case.name in ("apart", "batch")


@pytest.mark.parametrize("case", [RMS, BY_NAME["mean only"], CUT[1]], ids=lambda case: case.name)
def test_the_scale_of_x_does_not_matter(case, request):
    if case in CUT:
        request.getfixturevalue("small_tiles")
    run = compiled(case, eps=0.0)
    x = given(case)[0]
    if "scale" not in case.remove:
        # Where the size of x stays, a scale could lift y beyond the type's range.
        ones = [np.ones_like(a) for a in given(case)[1]]
        y, _ = run(given(case)[2], x * np.float32(1e30), ones[0], 0 * ones[0])
        np.testing.assert_allclose(y, case.reference(x * np.float32(1e30)).y, rtol=0, atol=1e24)
        return
    for factor in (1e30, 1e-30):
        check(case, run, x * np.float32(factor), eps=0.0)
    # Parts of one group that are of very different size.
    x.flat[0] *= np.float32(1e35)
    check(case, run, x, eps=0.0)


@pytest.mark.parametrize(("name", "dtype"), [("layer, last axis", "float16"), ("group, channels last", "bfloat16")])
def test_half_precision_is_rounded_once(name, dtype):
    case = BY_NAME[name]
    run, x = compiled(case), given(case)[0]
    for offset, factor in ((0.0, 1.0), (50.0, 1.0), (0.0, 1000.0)):
        _, grads = check(
            case, run, np.asarray(jnp.asarray(x * factor + offset, dtype)), y_to=float(jnp.finfo(dtype).eps)
        )
        assert grads[1].dtype == np.float32


@pytest.mark.parametrize("case", [GROUP, CHANNELS], ids=lambda case: case.name)
def test_a_sample_alone_gives_what_it_gives_in_a_batch(case):
    x, parameters, dy = given(case)
    y, grads = compiled(case)(dy, x, *parameters)
    alone, alone_grads = compiled(case)(dy[:1], x[:1], *parameters)
    np.testing.assert_array_equal(alone, y[:1])
    np.testing.assert_array_equal(alone_grads[0], grads[0][:1])


# What JAX does to functions


def transformed(case: Case, kernel: str) -> Callable[..., Any]:
    """Forward mode, batches of x and of the parameters, their gradients, and forward mode over reverse mode."""
    f = function(case, kernel)

    def gradient(dy: Any, *given: Any) -> Any:
        return jax.vjp(f, *given)[1](dy)

    def all_of_them(x: Any, scale: Any, offset: Any, dy: Any) -> Any:
        primals, tangents = (x, scale, offset), (dy, 2.0 * scale, offset + 1.0)
        many, scales, offsets = (jnp.stack([a, a + 1.0, -a]) for a in primals)
        return {
            "jvp": jax.jvp(f, primals, tangents),
            "only x": jax.jvp(lambda x: f(x), (x,), (dy,))[1],
            "vmap": jax.vmap(f, in_axes=(0, None, None))(many, scale, offset),
            "vmap of parameters": jax.vmap(f, in_axes=(None, 0, 0))(x, scales, offsets),
            "gradients": jax.vmap(gradient, in_axes=(None, 0, None, None))(dy, many, scale, offset),
            "per example": jax.vmap(gradient, in_axes=(0, 0, 0, 0))(many, many, scales, offsets),
            "second": jax.jvp(lambda *a: gradient(dy, *a), primals, tangents)[1],
        }

    return all_of_them


@pytest.mark.parametrize("case", [LAYER, GROUP], ids=lambda case: case.name)
def test_transformations_agree_with_composed(case, launched):
    x, (scale, offset), dy = given(case)
    got = jax.jit(transformed(case, "pallas"))(x, scale, offset, dy)
    assert launched
    before = len(launched)
    want = jax.jit(transformed(case, "composed"))(x, scale, offset, dy)
    assert len(launched) == before
    for name, one in got.items():
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(want[name]), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            tolerance = 1e-5 * float(np.abs(b).max(initial=1.0))
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)


def test_a_batch_is_one_launch(launched):
    x, (scale, offset), _ = given(LAYER)
    f = jax.vmap(jax.vmap(function(LAYER), in_axes=(0, None, None)), in_axes=(0, None, None))
    got = jax.jit(f)(np.stack([[x, x + 1], [x - 1, 2 * x]]), scale, offset)
    assert launched == ["forward"]
    np.testing.assert_array_equal(got[0, 0], jax.jit(function(LAYER))(x, scale, offset))


@pytest.mark.parametrize("case", [LAYER, GROUP], ids=lambda case: case.name)
def test_moments(case, launched):
    x = given(case)[0] + np.float32(1e5)
    axes = (1, 2, 4) if case is GROUP else (2,)
    wide = x.astype(np.float64).reshape(*x.shape[:-1], *((4, 3) if case is GROUP else (13,)))
    got = jax.jit(lambda x: ops.moments(x, None, case.spec, "pallas"))(x)
    assert launched[0] in ("forward", "parts")
    np.testing.assert_allclose(got[0], wide.mean(axes), rtol=1e-7)
    np.testing.assert_allclose(got[1], wide.var(axes), rtol=4e-6)


def test_float64_switched_on_changes_nothing():
    with jax.enable_x64(True):
        check(GROUP, compiled(GROUP), given(GROUP)[0] + np.float32(1e4))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, anynorm
from jax import P
from jax.experimental import pallas as pl
from jax.sharding import AxisType
calls = []
call = pl.pallas_call
pl.pallas_call = lambda *a, **k: calls.append(k["name"]) or call(*a, **k)
mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
x, dy = (jnp.asarray(rng.normal(size=(4, 3, 5, 4)), jnp.float32) for _ in range(2))
scale, offset = jnp.arange(4.0) + 1, jnp.arange(4.0)
def pull(kernel):
    f = lambda x, s, o: anynorm.normalize(x, "n [...] (g [c])", g=2, scale=s, offset=o, kernel=kernel)
    return lambda x, s, o, dy: jax.vjp(f, x, s, o)[1](dy)
each = jax.shard_map(pull("pallas"), mesh=mesh, in_specs=(P("d"), P(), P(), P("d")), out_specs=(P("d"), P(), P()))
got = jax.jit(each)(x, scale, offset, dy)
assert "anynorm_parts" in calls and "anynorm_dx" in calls, calls
for one, other in zip(got, jax.jit(pull("composed"))(x, scale, offset, dy)):
    np.testing.assert_allclose(one, other, rtol=0, atol=5e-6 * float(abs(other).max()))
"""


def test_shard_map():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr


# Lowered for CUDA

ROWS, SEGMENTS = ["forward", "dx", "totals"], ["forward", "dx", "sums", "totals"]
LONG = ["forward", "sums", "totals", "dx", "totals"]
CUTS = ["parts", "join", "apply", "sums", "totals", "dx", "totals"]
LOWERED = (
    ("... [c]", (8192, 1024), {}, "float32", ROWS),
    ("... [c]", (8192, 1152), {}, "bfloat16", ROWS),
    ("... [c]", (4096, 16384), {}, "float32", LONG),
    ("... [c]", (512, 65536), {}, "float16", CUTS),
    ("n [...] (g [c])", (16, 56, 56, 64), {"g": 32}, "float32", CUTS),
    ("n [...] (g [c])", (16, 56, 56, 64), {"g": 32}, "bfloat16", CUTS),
    ("n (g [c]) [...]", (16, 64, 56, 56), {"g": 32}, "float16", SEGMENTS),
    ("n (g [c]) [...]", (1, 128, 20, 256, 256), {"g": 32}, "bfloat16", CUTS),
    ("n [...] c", (4, 7, 7, 32), {}, "float32", ROWS),
    ("n c [...]", (4, 32, 56, 56), {}, "bfloat16", ROWS),
    ("[...] c", (16, 56, 56, 64), {}, "float32", CUTS),
    ("n [c] ...", (16, 128, 56, 56), {}, "float32", SEGMENTS),
    # More than 2^32 elements.
    ("... [c]", (2**22, 1280), {}, "bfloat16", ROWS),
)


@pytest.mark.parametrize(("pattern", "shape", "sizes", "dtype", "names"), LOWERED)
def test_lowered_for_cuda(pattern, shape, sizes, dtype, names, launched):
    """At most three launches forward and four backward, each of them a call of Triton's."""
    x = jax.ShapeDtypeStruct(shape, dtype)
    scale = jax.ShapeDtypeStruct((shape[1] if pattern[-1] in ".]" and "..." in pattern[5:] else shape[-1],), "float32")

    def both(x: Any, s: Any, o: Any, dy: Any) -> Any:
        y, pull = jax.vjp(
            lambda *a: anynorm.normalize(a[0], pattern, scale=a[1], offset=a[2], kernel="pallas", **sizes), x, s, o
        )
        return y, pull(dy)

    text = jax.jit(both).trace(x, scale, scale, x).lower(lowering_platforms=("cuda",)).as_text()
    assert launched == names
    assert text.count("@__gpu$xla.gpu.triton") == len(names)


def test_other_platforms_get_composed(launched):
    x, parameters, dy = given(LAYER)
    text = compiled(LAYER).trace(dy, x, *parameters).lower(lowering_platforms=("tpu",)).as_text()
    assert launched == []
    assert "custom_call" not in text


# Geometry


@pytest.mark.parametrize("length", [*range(1, 70), 127, 129, 1000, 1152, 3136, 8193])
def test_tiles_cover_with_little_padding(length):
    some = view.pieces(length)
    assert all(size & (size - 1) == 0 for size in some)
    assert length <= sum(some) <= length / 0.75
    for most in (32, 64, 4096):
        size = view.block(length, most)
        padded = -(-length // size) * size
        assert size <= most
        assert length / padded >= (0.75 if length >= 24 else 0.5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_offsets_are_those_of_numpy(case):
    """A small array's elements by the positions of the large one, along each part of each view."""
    runs = view.merged(case.plan.runs)
    for of in (view.of_statistics(runs), view.of_sums(runs), view.of_parameters(runs)):
        for there in (jax_tiles.kept, jax_tiles.affine):
            shape = [run.known if there(run) else 1 for run in runs]
            small = np.arange(np.prod(shape)).reshape(shape)
            want = np.broadcast_to(small, [run.known for run in runs]).reshape(of.shape)
            got = sum(
                position // below % (length or n) * stride
                for n, position, terms in zip(of.shape, np.indices(of.shape), of.places(there), strict=True)
                for below, length, stride in terms
            )
            np.testing.assert_array_equal(np.broadcast_to(got, of.shape), want)


# Who gets them


def test_select_says_why(monkeypatch):
    plan = LAYER.plan
    chosen = select.select(plan, "jax", "gpu", "float32", "pallas")
    assert chosen.kernel == "pallas"
    best = select.select(plan, "jax", "gpu", "float32")
    assert best.kernel == "composed"
    assert "not measured against XLA's own fusion yet; ANYNORM_KERNEL=pallas takes them" in best.why
    for words, reason in (
        (("torch", "cuda", "float32"), "for jax"),
        (("jax", "tpu", "float32"), "CUDA GPUs"),
        (("jax", "gpu", "float64"), "float64 has them in float64"),
    ):
        with pytest.raises(ValueError, match=reason):
            select.select(plan, *words, "pallas")
    with pytest.raises(ValueError, match="take no mask"):
        anynorm.normalize(jnp.ones((3, 13)), "... [c]", mask=jnp.ones((3, 13), bool), kernel="pallas")
    monkeypatch.delenv(pallas.VARIABLE)
    pallas.interpreted.cache_clear()
    select._select.cache_clear()
    with pytest.raises(ValueError, match=rf"for CUDA GPUs; {pallas.VARIABLE}=1 makes a CPU interpret them"):
        select.select(plan, "jax", "cpu", "float32", "pallas")
    monkeypatch.undo()
    pallas.interpreted.cache_clear()


# Kernels known to be wrong


def _of_elements(change: Callable[..., Any]) -> Callable[..., Any]:
    right = jax_statistics.of_elements

    def wrong(*args: Any) -> Any:
        part, d = right(*args)
        return change(part), d

    return wrong


def _without_spread(parts: list[Any]) -> Any:
    """The variance within parts alone."""
    return jax_statistics.joined(parts)._replace(squares=jax_tiles.total([part.squares for part in parts]))


MUTANTS: dict[str, tuple[Any, str, Any, Case]] = {
    "no mean term": (jax_backward, "_projected", lambda g, h, level, along, words: g - h * along, LAYER),
    "no scale term": (jax_backward, "_projected", lambda g, h, level, along, words: g - level, LAYER),
    "no scale in the gradient": (jax_backward, "_scaled", lambda dy, *_: dy, LAYER),
    "offset left out": (
        jax_forward, "_with_parameters",
        lambda h, given, spots, of: h * spots.small(given["scale"], of.places(jax_tiles.affine)), LAYER,
    ),
    "residual ignored": (
        jax_forward, "normalized",
        lambda x, saved, spots, places: (lambda p, s, r: ((x * p - s) * r, p * r))(
            *(spots.small(saved, places, 5, lane) for lane in (0, 1, 4))
        ), GROUP,
    ),
    "parts joined without their distance": (jax_forward, "joined", _without_spread, GROUP),
    "shift in half precision": (
        jax_forward, "of_elements", _of_elements(lambda part: part._replace(shift=part.shift * (1 + 2.0**-11))), GROUP,
    ),
    "sums of parts once too often": (
        jax_backward, "total", lambda values: 1.001 * jax_tiles.total(values), LAST,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name, monkeypatch):
    """The cases themselves passed above."""
    module, function, wrong, case = MUTANTS[name]
    assert hasattr(module, function)
    monkeypatch.setattr(module, function, wrong)
    with pytest.raises(AssertionError):
        check(case, compiled(case), given(case)[0] + np.float32(-1e6))


def test_an_empty_array_is_taken_and_composed():
    case = Case("empty", "n [...] (g [c])", (0, 5, 12), sizes={"g": 4})
    assert select.select(case.plan, "jax", "cuda", "float32", "pallas").kernel == "pallas"
    x = jnp.zeros(case.shape)
    y, back = jax.vjp(lambda x: anynorm.normalize(x, kernel="pallas", **case.arguments), x)
    assert y.shape == back(y)[0].shape == x.shape
