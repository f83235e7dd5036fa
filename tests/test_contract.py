"""The precision contract: ranges, types, constants, groups that do not see one another, layouts, empty arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import torch
from arrays import BFLOAT16, FRAMEWORKS, back, differentiate, normalize, relative, to, ulps
from cases import BY_NAME, Case
from runners import RUNNERS
from test_normalize import COMPILED, check, seed

import anynorm

TYPICAL = tuple(
    BY_NAME[name]
    for name in (
        "group, channels last", "group, channels first", "layer, last axis", "layer, the tutorial's",
        "batch, channels last", "RMS, last axis", "mean only",
    )
)  # fmt: skip
CENTRED = tuple(case for case in TYPICAL if "mean" in case.remove)
PER_SAMPLE = tuple(case for case in TYPICAL if not case.pattern.startswith("["))
FLOAT16_MAX, FLOAT32_MAX = 6e4, 3e38

frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)


def cases(some: tuple[Case, ...]) -> Any:
    return pytest.mark.parametrize("case", some, ids=lambda case: case.name)


def normal(case: Case, dtype: Any = np.float32, *words: str) -> np.ndarray:
    return seed(case.name, *words).normal(size=case.shape).astype(dtype)


def compare(
    case: Case, framework: str, x: np.ndarray, dy: np.ndarray, *, eps: float = 1e-5, y_to: float, dx_to: float,
    offset: np.ndarray | None = None,
) -> None:  # fmt: skip
    """y to `y_to` of its largest entry, dx to `dx_to` of its own, dscale to 1e-5; against float64 on the same input."""
    # Where the size of x stays, a scale could lift y beyond the type's range.
    scale = case.parameters(seed(case.name))[0] if "scale" in case.remove else None
    oracle = case.reference(x, scale, offset, eps=eps)
    y, *grads = differentiate(framework, x, dy, scale, offset, eps=eps, **case.arguments)
    assert y.dtype == x.dtype
    relative(y, oracle.y, y_to, "y")
    for got, want, tolerance in zip(grads, oracle.backward(dy), (dx_to, 1e-5, 1e-5), strict=True):
        if got is not None:
            relative(got, want, tolerance)


@frameworks
@pytest.mark.parametrize(("factor", "eps"), [(1e30, 0.0), (1e-30, 0.0), (1e-30, 1e-5)])
@cases(TYPICAL)
def test_the_scale_of_x_does_not_matter(case, factor, eps, framework):
    x, dy = normal(case) * np.float32(factor), normal(case, np.float32, "dy")
    compare(case, framework, x, dy, eps=eps, y_to=1e-6, dx_to=1e-5)


@frameworks
@cases(TYPICAL)
def test_numbers_up_to_the_largest(case, framework):
    largest = FLOAT32_MAX if "scale" in case.remove else FLOAT32_MAX / 3
    x = (seed(case.name).uniform(-1, 1, case.shape) * largest).astype(np.float32)
    x.flat[0], x.flat[1] = largest, -largest
    # With 1/std below the smallest normal number, which the kernels count as they do any other.
    dy = normal(case, np.float32, "dy") * np.float32(1e6)
    for factor in (1, 1 / 16):
        compare(case, framework, x * np.float32(factor), dy, y_to=1e-6, dx_to=1e-5)


@frameworks
@pytest.mark.parametrize(
    ("dtype", "mean", "std"),
    [("float16", 0, 1000), ("float16", 5.9e4, 300), ("bfloat16", 10, 1), ("bfloat16", 50, 1), ("bfloat16", 0, 5e37)],
)
@cases(TYPICAL[::2])
def test_half_precision_is_rounded_once(case, dtype, mean, std, framework):
    kind, half_an_ulp = (np.float16, 2.0**-11) if dtype == "float16" else (BFLOAT16, 2.0**-8)
    x = seed(case.name).normal(size=case.shape) * std + mean
    x = np.clip(x, -FLOAT16_MAX, FLOAT16_MAX).astype(kind) if dtype == "float16" else x.astype(kind)
    dy = (seed(case.name, "dy").normal(size=case.shape) * (1000 if std > 100 else 1)).astype(kind)
    dx_to = 1.01 * half_an_ulp
    compare(case, framework, x, dy, y_to=1.01 * half_an_ulp, dx_to=dx_to)
    want = case.reference(x).y
    y = normalize(framework, x, **case.arguments).astype(np.float64)
    np.testing.assert_allclose(y, want, rtol=1.01 * half_an_ulp, atol=4e-6 * np.abs(want).max())


@frameworks
@cases(tuple(case for case in TYPICAL if "scale" in case.remove))
def test_float16_at_its_largest_number(case, framework):
    x = np.clip(normal(case) * FLOAT16_MAX, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
    dy = normal(case, np.float16, "dy") * np.float16(1000)
    compare(case, framework, x, dy, y_to=2.0**-11, dx_to=2.0**-9)


@frameworks
@cases(TYPICAL)
def test_float64_is_computed_in_float64(case, framework):
    with jax.enable_x64(True):
        x, dy = normal(case, np.float64) + 3, normal(case, np.float64, "dy")
        scale, offset = case.parameters(seed(case.name))
        scale, offset = scale.astype(np.float64), offset.astype(np.float64)
        oracle = case.reference(x, scale, offset)
        y, *grads = differentiate(framework, x, dy, scale, offset, **case.arguments)
        assert y.dtype == np.float64
        relative(y, oracle.y, 1e-12)
        for got, want in zip(grads, oracle.backward(dy), strict=True):
            if got is not None:
                assert got.dtype == np.float64
                relative(got, want, 1e-12)


@cases(TYPICAL[:1])
def test_float64_with_unknown_dimensions(case):
    check(case, "tensorflow unknown", normal(case, np.float64) + 3)


@frameworks
@pytest.mark.parametrize("eps", [0.0, 1e-5])
@cases(CENTRED)
def test_constants_give_exactly_the_offset(case, eps, framework):
    scale, offset = case.parameters(seed(case.name))
    want = case.reference(np.zeros(case.shape), scale, offset).y.astype(np.float32)
    for value in (0.0, 127.3, 200.1, 255.0, -1000.3, 1e30, FLOAT32_MAX, 1.1e-25, 1e-30):
        x = np.full(case.shape, value, np.float32)
        y, *grads = differentiate(framework, x, want, scale, offset, eps=eps, **case.arguments)
        assert np.array_equal(y, want), value
        assert not normalize(framework, x, eps=eps, **case.arguments).any(), value
        assert all(np.isfinite(g).all() for g in grads if g is not None and eps), value


@frameworks
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@cases(TYPICAL)
def test_nan_and_inf_stay_in_their_group(case, poison, framework):
    x, dy = normal(case) + 2, normal(case, np.float32, "dy")
    ill = x.copy()
    ill.flat[5] = poison
    with np.errstate(invalid="ignore"):
        others = np.isfinite(case.reference(np.where(np.isfinite(ill), ill, np.nan)).y)
    assert others.any()
    assert not others.flat[5]
    y, dx, *_ = differentiate(framework, ill, dy, **case.arguments)
    y_well, dx_well, *_ = differentiate(framework, x, dy, **case.arguments)
    assert not np.isfinite(y.flat[5])
    assert np.array_equal(y[others], y_well[others])
    if dx is not None:
        assert np.array_equal(dx[others], dx_well[others])


@frameworks
@pytest.mark.parametrize("neighbour", ["alike", "huge", "tiny", "constant", "far", "nan"])
@cases(PER_SAMPLE)
def test_a_sample_does_not_see_its_neighbours(case, neighbour, framework):
    """Also not through the choice between quick and careful statistics, whichever of the two this sample takes."""
    for offset in (0.0, 1e4):
        x, dy = normal(case) + np.float32(offset), normal(case, np.float32, "dy")
        change = {
            "alike": lambda a: a,
            "huge": lambda a: a * np.float32(1e30),
            "tiny": lambda a: a * np.float32(1e-30),
            "constant": lambda a: np.full_like(a, 127.3),
            "far": lambda a: a + np.float32(1e6),
            "nan": lambda a: a * np.float32("nan"),
        }[neighbour]
        x[1:] = change(x[1:])
        one = np.repeat(x[:1], len(x), axis=0)
        for many, alike in zip(*(differentiate(framework, a, dy, **case.arguments)[:2] for a in (x, one)), strict=True):
            assert (many is None and framework == "numpy") or np.array_equal(many[:1], alike[:1])


def same_for_any_batch(framework: str, many: np.ndarray, few: np.ndarray) -> None:
    """Bit-equal, but for XLA and Eigen, which choose the order of a sum by the shape of the whole array."""
    ulps(many, few, 0 if framework in ("numpy", "torch") else 2)


@frameworks
@cases(PER_SAMPLE)
def test_a_sample_alone_gives_what_it_gives_in_a_batch(case, framework):
    x, dy = normal(case), normal(case, np.float32, "dy")
    whole, alone = (differentiate(framework, x[:n], dy[:n], **case.arguments)[:2] for n in (len(x), 1))
    for many, one in zip(whole, alone, strict=True):
        if one is not None:
            same_for_any_batch(framework, many[:1], one)


@pytest.mark.parametrize(
    "runner", ["torch", "torch compile", "jax", "tensorflow", "tensorflow graph", "tensorflow xla"]
)
def test_a_large_batch_gives_what_a_small_one_gives(runner):
    """At a size at which the frameworks use several threads and other loops."""
    case = BY_NAME["group, channels last"]
    rng = seed(runner)
    x, dy = rng.normal(size=(2, 7, 40, 40, 24)).astype(np.float32)
    scale, offset = rng.normal(size=(2, 24)).astype(np.float32)
    given = {n: RUNNERS[runner]((x[:n], scale, offset), dy[:n], None, case.arguments) for n in (1, 3, 7)}
    again = RUNNERS[runner]((x, scale, offset), dy, None, case.arguments)
    for n in (1, 3):
        same_for_any_batch(runner.split()[0], given[7][0][:n], given[n][0])
        same_for_any_batch(runner.split()[0], given[7][1][0][:n], given[n][1][0])
    for one, two in zip([given[7][0], *given[7][1]], [again[0], *again[1]], strict=True):
        assert np.array_equal(one, two)


THREADS = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from arrays import differentiate
import tensorflow as tf, torch
torch.set_num_threads({threads})
tf.config.threading.set_intra_op_parallelism_threads({threads})
x, dy = np.random.default_rng(0).normal(size=(2, 3, 64, 64, 32)).astype("float32")
scale = np.linspace(0.5, 2, 32).astype("float32")
out = {{}}
for framework in ("torch", "jax", "tensorflow"):
    for pattern, sizes in (("n [...] (g [c])", dict(g=8)), ("[...] c", dict()), ("... [c]", dict())):
        results = differentiate(framework, x, dy, scale, scale, pattern=pattern, **sizes)
        for name, a in zip(("y", "dx", "dscale", "doffset"), results):
            out["|".join((framework, pattern, name))] = a
np.savez({file!r}, **out)
"""


@pytest.fixture(scope="module")
def by_threads(tmp_path_factory) -> list[Any]:
    """What a process with one thread and one with two compute."""
    out = []
    for threads in (1, 2):
        # XLA sizes its pool for the CPU by NPROC.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "NPROC": str(threads)}
        file = str(tmp_path_factory.mktemp("threads") / f"{threads}.npz")
        code = THREADS.format(tests=os.path.dirname(__file__), threads=threads, file=file)
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        out.append(np.load(file))
    return out


def test_the_number_of_threads_does_not_matter(by_threads):
    one, two = by_threads
    assert len(one.files) == 3 * 3 * 4
    for key in one.files:
        # XLA shares out a sum, and torch's own layer normalization dscale and doffset, by the number of threads.
        shared_out = key.startswith("jax|") or key in ("torch|... [c]|dscale", "torch|... [c]|doffset")
        if shared_out:
            relative(two[key], one[key], 5e-6, key)
        else:
            assert np.array_equal(one[key], two[key]), key


@pytest.mark.parametrize("pattern", ["n (g [c]) [...]", "n c [...]", "[n] c [...]", "n [c] ...", "n c [h] w"])
def test_channels_last_memory_is_kept_and_changes_nothing(pattern):
    sizes, affine = ({"g": 4} if "g" in pattern else {}), ("c" if "(" not in pattern else None)
    x, dy = seed(pattern).normal(size=(2, 3, 12, 5, 7)).astype(np.float32) + 30
    scale, offset = seed(pattern, "s").normal(size=(2, 12)).astype(np.float32)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [torch.tensor(x).to(memory_format=layout), torch.tensor(scale), torch.tensor(offset)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        y = anynorm.normalize(leaves[0], pattern, scale=leaves[1], offset=leaves[2], affine=affine, **sizes)
        grads = torch.autograd.grad(y, leaves, torch.tensor(dy))
        assert y.is_contiguous(memory_format=layout)
        assert grads[0].is_contiguous(memory_format=layout)
        results.append([a.detach().numpy() for a in (y, *grads)])
    ulps(results[1][0], results[0][0])
    for one, other in zip(*results, strict=True):
        relative(other, one, 4e-6)


@frameworks
def test_channels_first_and_last_agree(framework):
    last, first = BY_NAME["group, channels last"], BY_NAME["group, channels first"]
    x, dy = normal(last) + 30, normal(last, np.float32, "dy")
    scale, offset = last.parameters(seed("layouts"))
    results = differentiate(framework, x, dy, scale, offset, **last.arguments)
    moved = (np.ascontiguousarray(np.moveaxis(a, -1, 1)) for a in (x, dy))
    others = differentiate(framework, *moved, scale, offset, **first.arguments)
    ulps(np.moveaxis(others[0], 1, -1), results[0])
    for i, (one, other) in enumerate(zip(results, others, strict=True)):
        if one is not None:
            relative(np.moveaxis(other, 1, -1) if i < 2 else other, one, 4e-6)


VIEWS = {
    "every other": lambda x: x[:, ::2],
    "transposed": lambda x: x.transpose(0, 2),
    "permuted": lambda x: x.permute(2, 3, 0, 1),
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "overlapping": lambda x: x.unfold(1, 3, 1)[..., 0, :],
    "offset": lambda x: x[1:, 1:, 1:, 2:],
}


@pytest.mark.parametrize("view", VIEWS)
def test_torch_views(view):
    whole = torch.tensor(seed(view).normal(size=(3, 5, 7, 12)).astype(np.float32) + 30, requires_grad=True)
    x = VIEWS[view](whole)
    dy = seed(view, "dy").normal(size=tuple(x.shape)).astype(np.float32)
    (dx,) = torch.autograd.grad(anynorm.normalize(x, "n [...] c"), x, torch.tensor(dy))
    case = BY_NAME["instance, channels last"]
    oracle = case.reference(x.detach().numpy())
    relative(back(anynorm.normalize(x, "n [...] c")), oracle.y, 1e-6)
    relative(back(dx), oracle.backward(dy)[0], 1e-5)


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, ::-2], lambda x: x.T, np.asfortranarray, lambda x: np.broadcast_to(x[:1], x.shape)],
    ids=["reversed", "transposed", "Fortran order", "broadcast"],
)
def test_numpy_views(view):
    x = view(seed("views").normal(size=(3, 5, 7, 12)).astype(np.float32))
    kept = x.copy()
    np.testing.assert_array_equal(anynorm.normalize(x, "n [...] c"), anynorm.normalize(kept, "n [...] c"))
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@cases(CENTRED)
def test_frameworks_agree(case, offset):
    x, dy = normal(case) + np.float32(offset), normal(case, np.float32, "dy")
    scale, shift = case.parameters(seed(case.name))
    results = {f: differentiate(f, x, dy, scale, shift, **case.arguments) for f in FRAMEWORKS}
    for framework, (y, dx, *_) in results.items():
        ulps(y, results["numpy"][0])
        if dx is not None:
            relative(dx, results["torch"][1], 1e-6, framework)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("shape", [(0, 5, 7, 12), (3, 0, 7, 12)])
@pytest.mark.parametrize("name", ["group, channels last", "batch, channels last", "layer, the tutorial's"])
def test_empty_arrays(name, shape, runner):
    case = BY_NAME[name]
    size = shape[1] if case.affine == "h" else 12
    scale = np.ones(size, np.float32)
    x = np.zeros(shape, np.float32)
    y, grads = RUNNERS[runner]((x, scale, scale), x, None, case.arguments)
    assert y.shape == shape
    if grads:
        assert grads[0].shape == shape
        assert [g.tolist() for g in grads[1:]] == [[0.0] * size] * 2


@frameworks
@pytest.mark.parametrize("shape", [(0, 5, 7, 12), (3, 0, 7, 12)])
def test_moments_and_masks_of_empty_arrays(shape, framework):
    x = to(framework, np.zeros(shape, np.float32))
    mean, variance = anynorm.moments(x, "n [...] (g [c])", g=4)
    assert tuple(mean.shape) == tuple(variance.shape) == (shape[0], 4)
    assert not back(mean).any()
    assert not back(variance).any()
    assert (
        normalize(framework, np.zeros(shape, np.float32), "n [...] c", mask=np.ones(shape, bool), eps=0.0).shape
        == shape
    )


@frameworks
def test_a_statistic_over_one_element_is_refused(framework):
    x = np.ones((3, 1, 1, 4), np.float32)
    with pytest.raises(ValueError, match=r"over one element .* fewer groups"):
        normalize(framework, x, "n [...] (g [c])", g=4)
    with pytest.raises(ValueError, match="over one element"):
        normalize(framework, x, "n [...] c", remove="mean")
    assert normalize(framework, x, "n [...] c", remove="scale").shape == x.shape
    assert normalize(framework, x, "n [...] (g [c])", g=2).shape == x.shape


@pytest.mark.parametrize("runner", COMPILED)
@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_compilers_keep_the_range(factor, runner):
    """Compilers may reorder sums and fuse products: the largest and smallest numbers must survive that."""
    case = BY_NAME["group, channels last"]
    x = normal(case) * np.float32(factor)
    check(case, runner, x, eps=0.0)
    check(case, runner, np.full(case.shape, 127.3, np.float32))
