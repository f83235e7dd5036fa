"""The Triton kernels in Triton's interpreter: TRITON_INTERPRET=1 pytest tests/gpu/interpreted (make test does)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from cases import BY_NAME, CASES, Case
from triton_runs import (
    BACKWARD,
    FORWARD,
    SERVED,
    TYPES,
    UNITS,
    arrays,
    check,
    differentiate,
    doubles,
    launches,
    small_tiles,
)  # fmt: skip

import anynorm
from anynorm.kernels.select import select
from anynorm.kernels.triton import geometry, interpreted, table
from anynorm.kernels.triton.tiles import places

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1 before Triton is imported"),
    # The interpreter computes in NumPy, also what is masked.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

GROUP, FIRST, ROWS = "group, channels last", "group, channels first", "layer, last axis"
# What is cut into chunks: rows and columns; groups of many segments, parts of one, or one; scale along each of them.
CUT = (
    GROUP, FIRST, "group, channels in the middle", "group, affine per group", "instance, channels first", ROWS,
    "layer, channels first", "batch, channels first", "batch, channels last", "RMS, first axis", "mean only",
)  # fmt: skip
SOME = (GROUP, FIRST, ROWS)
OF_FORWARD = ("forward", "statistics", "apply")
# Groups in registers, groups in chunks.
WAYS = [(FIRST, "held"), (ROWS, "held"), (GROUP, "cut"), (ROWS, "cut")]


@pytest.fixture(autouse=True)
def nan_in_new_memory():
    """So that nothing is read that nobody wrote."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)


def test_all_of_the_catalogue_is_served():
    without = {case.name for case in CASES} - {case.name for case in SERVED}
    assert without == {"layer, apart axes", "many dimensions"}


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_values_and_launches(case):
    with launches() as names:
        check(case, *arrays(case))
    forward, backward = ([name for name in names if (name in OF_FORWARD) == first] for first in (True, False))
    assert forward in FORWARD
    assert backward in (*BACKWARD, *([*kernels, "gather"] for kernels in BACKWARD))
    assert ("gather" in backward) == (case.spec.affine is not None)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("name", CUT)
def test_values_of_groups_that_are_cut(name):
    case = BY_NAME[name]
    with launches() as names:
        check(case, *arrays(case))
    assert names[:3] == ["statistics", "apply", "sums"]
    assert len(names) <= 2 + 3


@pytest.mark.parametrize(("name", "tiles"), WAYS)
@pytest.mark.parametrize(("mean", "std", "eps"), [(1e6, 1.0, 1e-5), (0.0, 1e30, 1e-5), (0.0, 1e-30, 0.0)])
def test_offset_and_scale(name, tiles, mean, std, eps, request):
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    x, dy = arrays(case, mean, std)
    check(case, x, dy, eps=eps)
    y, *_ = differentiate(case, x, dy, eps=eps, plain=True)
    assert np.abs(doubles(y) - case.reference(doubles(x), eps=eps).y).max() <= 1e-6


def test_the_ends_of_the_range():
    """Squares, sums and differences of these overflow or vanish in float32; no true result does."""
    case = BY_NAME[ROWS]
    x, dy = arrays(case, 0.0)
    x = x / x.abs().max()
    for factor, eps in ((3.3e38, 1e-5), (1e-41, 0.0)):
        y, *_ = differentiate(case, x * factor, dy, eps=eps, plain=True)
        assert np.abs(doubles(y) - case.reference(doubles(x * factor), eps=eps).y).max() <= 1e-6


@pytest.mark.parametrize(("name", "tiles"), WAYS)
def test_a_constant_gives_exactly_the_offset(name, tiles, request):
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    for value in (127.3, 1e30):
        x, dy = torch.full(case.shape, value), arrays(case)[1]
        y, grads, _ = differentiate(case, x, dy, plain=True)
        assert not y.any()
        wanted = case.reference(doubles(x)).backward(doubles(dy))[0]
        assert np.abs(doubles(grads[0]) - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(("name", "tiles"), WAYS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_group(name, tiles, value, request):
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    x, dy = arrays(case)
    clean, (clean_dx, *_), _ = differentiate(case, x, dy)
    broken = x.clone()
    broken[1, 2, 3] = value
    y, (dx, *_), _ = differentiate(case, broken, dy)
    touched = np.isnan(case.reference(np.where(np.isfinite(doubles(broken)), doubles(x), np.nan)).y)
    assert 0 < touched.sum() < touched.size
    assert np.isnan(doubles(y)[touched]).all()
    np.testing.assert_array_equal(doubles(y)[~touched], doubles(clean)[~touched])
    np.testing.assert_array_equal(doubles(dx)[~touched], doubles(clean_dx)[~touched])


@pytest.mark.parametrize(("name", "tiles"), WAYS)
def test_a_sample_does_not_see_its_neighbours(name, tiles, request):
    """Bit for bit; and so from run to run."""
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    x, dy = arrays(case)
    y, (dx, *_), _ = differentiate(case, x, dy)
    alone, (alone_dx, *_), _ = differentiate(case, x[1:2], dy[1:2])
    assert torch.equal(alone, y[1:2])
    assert torch.equal(alone_dx, dx[1:2])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", SOME)
def test_half_precision(name, dtype):
    case = BY_NAME[name]
    x, dy = arrays(case, 10.0, 3.0, dtype)
    check(case, x, dy)
    check(case, x, dy, parameters=TYPES[dtype])


def test_float16_up_to_its_maximum():
    case = BY_NAME[ROWS]
    x, dy = arrays(case, 0.0, dtype="float16")
    check(case, (x / x.abs().max() * 65504).half(), dy)


@pytest.mark.parametrize(
    ("length", "parts"),
    [(1152, (1024, 128)), (100, (128,)), (70, (64, 8)), (9000, (4096, 4096, 1024))],
)
def test_lengths_that_are_no_power_of_two(length, parts):
    case = type(BY_NAME[ROWS])("row", "... [c]", (5, length))
    tiles = table.held(geometry(case.plan), 4, False, table.Device(1, 0))
    assert tiles is not None
    assert tiles.parts == parts
    check(case, *arrays(case))


def test_long_groups_of_rows_are_held():
    """And so they are beside a constant and at an offset."""
    case = Case("group", "n (g [c]) [...]", (1, 6, 80, 79), sizes={"g": 2})
    assert table.held(geometry(case.plan), 4, False, table.Device(1, 0)).parts == (4096,) * 5
    x, dy = arrays(case, mean=1e6)
    x[:, :3] = 7.0
    with launches() as names:
        differentiate(case, x, dy)
    assert names[0] == "forward"
    check(case, x, dy)


@triton.jit
def _places(at, outer, first, segments, reduced, COLUMNS: tl.constexpr):  # noqa: N803
    i = tl.arange(0, 2)
    found = places(outer + tl.program_id(0), first + i, first + i, segments, reduced, COLUMNS)
    tl.store(at + i[:, None] * 2 + i[None, :], found)


def test_places_beyond_two_to_the_31():
    first, segments, reduced, outer = 2**17, 2**18, 2**19, 5
    i = first + torch.arange(2)
    for columns, wanted in (
        (True, (outer * reduced + i[None, :]) * segments + i[:, None]),
        (False, (outer * segments + i[:, None]) * reduced + i[None, :]),
    ):
        found = torch.empty(2, 2, dtype=torch.int64)
        _places[(1,)](found, outer, first, segments, reduced, columns)
        assert wanted.min() > 2**31
        assert torch.equal(found, wanted)


def test_channels_last_is_taken_as_it_lies():
    case = BY_NAME[FIRST]
    x, dy = arrays(case)
    x = x.to(memory_format=torch.channels_last)
    with launches() as names:
        y, *_ = differentiate(case, x, dy)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert names[:2] == ["statistics", "apply"]
    check(case, x, dy)


@pytest.mark.parametrize(("name", "tiles"), WAYS)
def test_moments(name, tiles, request):
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    x, _ = arrays(case, 1e4)
    with launches() as names, torch.no_grad():
        mean, variance = anynorm.moments(x, case.pattern, kernel="triton", **case.sizes)
    assert names in FORWARD
    oracle = case.reference(doubles(x))
    np.testing.assert_allclose(doubles(mean).ravel(), oracle.mean.ravel(), rtol=1e-7)
    np.testing.assert_allclose(doubles(variance).ravel(), oracle.variance.ravel(), rtol=1e-6)


@pytest.mark.parametrize("name", [GROUP, ROWS])
def test_into_x_itself(name):
    case = BY_NAME[name]
    x, dy = arrays(case)
    wanted, *_ = differentiate(case, x, dy, plain=True)
    with torch.no_grad():
        assert anynorm.normalize(x, out=x, kernel="triton", **case.arguments) is x
    assert torch.equal(x, wanted)


def test_statistics_from_outside():
    from anynorm.kernels.triton import torch as door
    from anynorm.ops.torch_given import apply_kernel

    case = BY_NAME["batch, channels last"]
    x, dy = arrays(case)
    scale, offset = (torch.tensor(a) for a in case.parameters(np.random.default_rng(5)))
    mean, variance = torch.tensor([0.5, -2.0]), torch.tensor([2.0, 0.25])
    leaves = [a.requires_grad_() for a in (x, scale, offset)]
    y = apply_kernel(*leaves, mean, variance, case.plan, 1e-3, door)
    wide = [a.detach().double().requires_grad_() for a in leaves]
    wanted = (wide[0] - mean.double()) / (variance.double() + 1e-3).sqrt() * wide[1] + wide[2]
    assert (y - wanted).abs().max() <= 8 * UNITS["float32"] * wanted.abs().max()
    got, wanted = (torch.autograd.grad(out, of, dy) for out, of in ((y, leaves), (wanted, wide)))
    for one, other in zip(got, wanted, strict=True):
        assert (one - other).abs().max() <= 2e-6 * other.abs().max()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", [GROUP, "instance, channels first", "batch, channels last", "many dimensions"])
def test_of_an_empty_array_nothing_is_launched(name, axis):
    """As of the CPU's kernel: no elements, and gradients of 0 for scale and offset."""
    case = BY_NAME[name]
    if name.endswith("first"):
        axis *= 2
    case = replace(case, shape=(*case.shape[:axis], 0, *case.shape[axis + 1 :]))
    leaves = [torch.zeros(case.shape), *(torch.tensor(a) for a in case.parameters(np.random.default_rng(5)))]
    x, scale, offset = (a.requires_grad_() for a in leaves)
    found = []
    for kernel in ("triton", "cpu"):
        with launches() as names:
            y = anynorm.normalize(x, scale=scale, offset=offset, kernel=kernel, **case.arguments)
            grads = torch.autograd.grad(y, [x, scale, offset], torch.zeros_like(y))
        assert names == []
        found.append([y.detach(), *grads])
    for one, other in zip(*found, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        assert torch.equal(one, other)


def test_statistics_of_an_empty_array():
    from anynorm.kernels.triton import torch as door

    case = Case("empty", "[n] ... c", (0, 5, 3))
    x = torch.zeros(case.shape)
    y, mean, variance, saved = door.forward(x, None, None, case.plan, 1e-5)
    more = door.moments(x, case.plan)
    out, kept = door.apply(x, mean, variance, None, None, case.plan, 1e-5, gradient=True)
    for values in (mean, variance, saved, *more, kept):
        assert len(values) == 15
        assert not values.any()
    assert y.shape == out.shape == x.shape


def test_compiled_programs_run_the_kernel():
    case = BY_NAME[GROUP]
    x, dy = arrays(case)
    x.requires_grad_()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def program(x):
        return anynorm.normalize(x, kernel="triton", **case.arguments).relu()

    with launches() as names:
        y = program(x)
        (dx,) = torch.autograd.grad(y, x, dy)
    assert names == ["statistics", "apply", "sums", "project"]
    eager = anynorm.normalize(x, kernel="triton", **case.arguments).relu()
    assert torch.equal(y, eager)
    assert torch.equal(dx, torch.autograd.grad(eager, x, dy)[0])


def test_nothing_is_substituted():
    """A kernel that was asked for and cannot run raises; the interpreter is nobody's choice who did not ask."""
    plan = BY_NAME[ROWS].plan
    assert select(plan, "torch", "cpu", "float32").kernel != "triton"
    for arguments, reason in (
        (("jax", "cpu", "float32"), "for torch"),
        (("torch", "mps", "float32"), "for CUDA devices"),
        (("torch", "cpu", "float64"), "float64"),
    ):
        with pytest.raises(ValueError, match=reason):
            select(plan, *arguments, "triton")
    with pytest.raises(ValueError, match="no loops for runs of this order"):
        select(BY_NAME["many dimensions"].plan, "torch", "cpu", "float32", "triton")
    with pytest.raises(ValueError, match="no mask"):
        select(plan, "torch", "cpu", "float32", "triton", True)
