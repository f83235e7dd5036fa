"""The CPU kernels by themselves: every case of the table, every instruction set, every type, against the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from arrays import relative, ulps
from cases import BY_NAME, CASES, Case

from anynorm.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=cpu.why_not())

# Larger shapes beside each case's own: several blocks, tiles and vectors, and lengths that fill none of them.
LARGE = {
    "group, channels last": ((2, 37, 29, 44), {"g": 4}),
    "group, channels first": ((3, 12, 51, 67), {"g": 4}),
    "group, the tutorial's": ((3, 26, 26, 10), {"g": 5}),
    "group, one": ((2, 19, 23, 12), {"g": 1}),
    "instance, channels last": ((2, 11, 13, 96), {}),
    "instance, channels first": ((3, 5, 97, 101), {}),
    "layer, last axis": ((3, 67, 1031), {}),
    "layer, short rows": ((1003, 19), {}),
    "layer, the tutorial's": ((3, 26, 26, 10), {}),
    "layer, channels first": ((2, 67, 31, 37), {}),
    "layer, a whole sample": ((2, 101, 97), {}),
    "batch, channels last": ((3, 23, 29, 37), {}),
    "batch, channels first": ((7, 37, 9, 13), {}),
    "RMS, last axis": ((131, 517), {}),
    "RMS, first axis": ((131, 31, 7), {}),
    "filter response": ((2, 41, 43, 5), {}),
    "weight standardization": ((3, 3, 67, 131), {}),
    "one dimension": ((10007,), {}),
    "layer, two axes": ((3, 25, 27, 2), {}),
    "many dimensions": ((2, 3, 2, 35, 3, 41), {}),
}
TYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(
    params=[(isa, past) for isa in cpu.isas() for past in (False, True)], ids=lambda p: p[0] + " past" * p[1]
)
def isa(request: pytest.FixtureRequest) -> Any:
    """Each instruction set, with results written into the caches and past them."""
    before, (name, past) = cpu.isa(), request.param
    cpu.use_isa(name)
    cpu.use_cache(int(past))
    yield name
    cpu.use_cache(-1)
    cpu.use_isa(before)


def address(a: np.ndarray | None) -> int | None:
    return None if a is None else a.ctypes.data


def call(name: str, *arguments: Any) -> None:
    given = [address(a) if isinstance(a, np.ndarray) or a is None else a for a in arguments]
    assert getattr(cpu.library(), "anynorm_" + name)(*given) == cpu.OK


def on_lines(like: np.ndarray, value: float) -> np.ndarray:
    """`full_like`, beginning with a line of the cache, as frameworks' arrays do: from there results can go past it."""
    room = np.empty(like.nbytes + 64, np.uint8)
    begin = -room.ctypes.data % 64
    out = room[begin : begin + like.nbytes].view(like.dtype).reshape(like.shape)
    out[...] = value
    return out


class Run:
    """Both passes of one case through the C interface; arrays that are written begin as NaN."""

    def __init__(
        self, case: Case, x: np.ndarray, dy: np.ndarray, scale: Any, offset: Any, eps: float = 1e-5, **how: Any
    ):
        plan = case.plan
        self.x, self.dy, self.scale = x, dy, scale
        names = [None if a is None else a.dtype.name for a in (scale, offset)]
        self.problem = cpu.problem(plan, x.dtype.name, *names, eps, how.get("threads", 1))
        work = np.float64 if x.dtype == np.float64 else np.float32
        room = on_lines if how.get("on_lines") else np.full_like
        self.y, self.dx = room(x, np.nan), room(x, np.nan)
        self.mean, self.variance = np.full((2, plan.groups), np.nan, work)
        self.saved = np.full((plan.groups, 2), np.nan)
        self.dscale, self.doffset = (None if a is None else np.full_like(a, np.nan) for a in (scale, offset))
        call("forward", self.problem, x, scale, offset, self.y, self.mean, self.variance, self.saved)
        call("backward", self.problem, x, dy, scale, self.saved, self.dx, self.dscale, self.doffset)


def sized(case: Case, large: bool) -> Case:
    if not large:
        return case
    if case.name not in LARGE:
        pytest.skip("no larger shape")
    shape, sizes = LARGE[case.name]
    return replace(case, shape=shape, sizes=sizes)


def arrays(case: Case, dtype: str = "float32", mean: float = 1.0, std: float = 1.0) -> Any:
    rng = np.random.default_rng(3)
    x = (rng.normal(size=case.shape) * std + mean).astype(TYPES[dtype])
    return x, rng.normal(size=case.shape).astype(TYPES[dtype]), *case.parameters(rng)


def within(actual: np.ndarray, wanted: np.ndarray, bound: float) -> None:
    assert np.abs(actual - wanted).max() <= bound


def test_all_cases_have_loops() -> None:
    assert [case.name for case in CASES if not cpu.supports(case.plan)] == []


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.0), (1e6, 1.0), (0.0, 1e30), (0.0, 1e-30)])
def test_float32(case: Case, large: bool, mean: float, std: float, isa: str) -> None:
    case = sized(case, large)
    x, dy, scale, offset = arrays(case, "float32", mean, std)
    if not case.plan.removes_mean and mean:
        x -= np.float32(mean)
    eps = 0.0 if std < 1 else 1e-5
    run, wanted = Run(case, x, dy, scale, offset, eps), case.reference(x, scale, offset, eps=eps)
    # The contract's millionth is for the normalized array; behind scale and offset it is 4 units at y's scale.
    plain = Run(case, x, dy, None, None, eps)
    within(plain.y, case.reference(x, eps=eps).y, 1e-6 * (1.0 if "scale" in case.remove else std))
    ulps(run.y, wanted.y)
    for name, ours, theirs in zip(
        ["x", "scale", "offset"], (run.dx, run.dscale, run.doffset), wanted.backward(dy), strict=False
    ):
        if ours is not None:
            relative(ours, theirs, 2e-6, f"d{name}")
    with np.errstate(over="ignore"):
        relative(run.mean, wanted.centre, 1e-6, "mean")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_types(case: Case, dtype: str, isa: str) -> None:
    case = sized(case, case.name in LARGE)
    x, dy, scale, offset = arrays(case, dtype)
    run, wanted = Run(case, x, dy, scale, offset), case.reference(x, scale, offset)
    unit = {"float64": 1e-14, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    # Rounded once: half a unit, and a little where the single-precision number lay near the middle.
    bound = np.abs(wanted.y) * unit * 1.01 + 4e-6 * (dtype != "float64") + 1e-14
    error = np.abs(run.y.astype(np.float64) - wanted.y)
    assert (error / bound).max() <= 1, (error.max(), wanted.y.flat[np.argmax(error / bound)])
    dx, dscale, doffset = wanted.backward(dy)
    relative(run.dx.astype(np.float64), dx, max(unit, 1e-14), "dx")
    if scale is not None:
        relative(run.dscale, dscale, 2e-6, "dscale")
        relative(run.doffset, doffset, 2e-6, "doffset")


def same_bits(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """What `assert_array_equal` does not see: -0 is not 0."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def known(a: np.ndarray) -> np.ndarray:
    """With one number for any NaN: its sign is that of whichever operand the compiler wrote first."""
    return np.where(a == a, a, np.array(7).astype(a.dtype))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_any_number_of_threads_gives_the_same_bits(case: Case, isa: str) -> None:
    case = sized(case, case.name in LARGE)
    x, dy, scale, offset = arrays(case, mean=3.0)
    one = Run(case, x, dy, scale, offset, threads=1)
    for threads in (2, 3, 8):
        other = Run(case, x, dy, scale, offset, threads=threads)
        for name in ("y", "mean", "variance", "saved", "dx", "dscale", "doffset"):
            assert same_bits(getattr(one, name), getattr(other, name)), name


# A sample is the first axis; where statistics go over it, there are no samples.
ALONE = [
    case for case in CASES if not case.spec.pattern.expand(len(case.shape)).dims[0][0].shared and len(case.shape) > 1
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", ALONE, ids=lambda c: c.name)
def test_a_sample_alone_gives_the_same_bits_as_in_a_batch(case: Case, dtype: str, isa: str) -> None:
    case = sized(case, case.name in LARGE)
    x, dy, scale, offset = arrays(case, dtype, mean=3.0)
    whole = Run(case, x, dy, scale, offset)
    for i in range(min(3, len(x))):
        part = slice(i, None, len(x))  # keeps the axis
        one = replace(case, shape=(1, *case.shape[1:]))
        if scale is not None and case.plan.affine.shape != one.plan.affine.shape:
            continue
        alone = Run(one, x[part].copy(), dy[part].copy(), scale, offset)
        assert same_bits(alone.y, whole.y[part])
        assert same_bits(alone.dx, whole.dx[part])


@pytest.mark.parametrize("dtype", TYPES)
def test_pages_of_columns_have_the_bits_of_their_parts(dtype: str, isa: str) -> None:
    """Rows four pages apart, too many for the sets of a cache: a page at once, but parts of it where threads lack work.

    Also beside a column that needs doubles, and one whose gradient does.
    """
    page = 4096 // np.dtype(TYPES[dtype]).itemsize
    case = replace(BY_NAME["layer, channels first"], shape=(2, 280, page // 8, 32))
    x, dy, scale, offset = arrays(case, dtype, mean=3.0)
    x[0, :, 0, 5] *= np.array({"float64": 1e200, "float16": 1e3}.get(dtype, 1e30)).astype(x.dtype)
    dy[1, :, 40, 7] *= np.array({"float64": 1e-200, "float16": 1e-6}.get(dtype, 1e-36)).astype(x.dtype)
    whole = Run(case, x, dy, scale, offset)
    if dtype == "float32":
        wanted = case.reference(x, scale, offset)
        ulps(whole.y, wanted.y)
        for name, theirs in zip(("dx", "dscale", "doffset"), wanted.backward(dy), strict=True):
            relative(getattr(whole, name), theirs, 2e-6, name)
    for threads in (2, 5, 9):
        other = Run(case, x, dy, scale, offset, threads=threads)
        for name in ("y", "mean", "variance", "saved", "dx", "dscale", "doffset"):
            assert same_bits(getattr(whole, name), getattr(other, name)), (name, threads)
    for i in range(2):
        alone = Run(replace(case, shape=(1, *case.shape[1:])), x[i : i + 1].copy(), dy[i : i + 1].copy(), scale, offset)
        assert same_bits(alone.y, whole.y[i : i + 1])
        assert same_bits(alone.dx, whole.dx[i : i + 1])


@pytest.mark.parametrize("length", [8, 20, 64, 300])
@pytest.mark.parametrize("dtype", TYPES)
def test_rows_have_the_signs_of_zero_that_they_have_alone(dtype: str, length: int, isa: str) -> None:
    """Also a zero times a negative scale without an offset, however many rows there are and wherever they go."""
    rng = np.random.default_rng(5)
    half = rng.integers(-1, 2, (5, length // 2))
    x = np.concatenate([half, -half], axis=1).astype(TYPES[dtype])
    scale = -np.ones(length, np.float64 if dtype == "float64" else np.float32)
    whole = Run(replace(BY_NAME["layer, short rows"], shape=x.shape), x, x, scale, None)
    assert (whole.y == 0).any()
    for past in (0, 1):
        cpu.use_cache(past)
        for i in range(len(x)):
            alone = Run(
                replace(BY_NAME["layer, short rows"], shape=(1, length)),
                x[i : i + 1].copy(),
                x[i : i + 1].copy(),
                scale,
                None,
            )
            assert alone.y.tobytes() == whole.y[i : i + 1].tobytes()


@pytest.mark.parametrize(
    "name", ["RMS, first axis", "layer, channels first", "batch, channels last", "instance, channels last"]
)
def test_columns_do_not_see_their_neighbours(name: str, isa: str) -> None:
    """One column whose first rows lie far from the rest has another kind of sums; only that one."""
    case = sized(BY_NAME[name], True)
    x, dy, scale, offset = arrays(case)
    good = Run(case, x, dy, scale, offset)
    plan = case.plan
    other = x.reshape([run.extent for run in plan.runs]).copy()
    reduced = next(i for i, run in enumerate(plan.runs) if run.reduced)
    column = tuple(slice(None) if i == reduced else 0 for i in range(other.ndim))
    other[column] = 1e-3 * other[column] + 100.0 * (np.arange(other.shape[reduced]) % 16 == 0)
    run = Run(case, other.reshape(case.shape), dy, scale, offset)
    keep = np.ones(other.shape, bool)
    keep[column] = False
    np.testing.assert_array_equal(run.y.reshape(other.shape)[keep], good.y.reshape(other.shape)[keep])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(7, 37, 9, 13), (3, 21, 23, 29), (40, 150, 8, 8)])
def test_channels_taken_together_have_the_bits_that_they_have_alone(
    shape: tuple[int, ...], dtype: str, isa: str
) -> None:
    """For any number of threads; also beside one that needs doubles, one of which a sample lies far from the rest, one
    that is lost, and one whose scale makes sums too small for dx in single precision.
    """
    case = replace(BY_NAME["batch, channels first"], shape=shape)
    x, dy, scale, offset = arrays(case, dtype, mean=3.0)
    x[:, 5] *= np.array({"float64": 1e200, "float16": 1e3}.get(dtype, 1e30)).astype(x.dtype)
    x[shape[0] // 2, 9] += np.array(100).astype(x.dtype)
    x[0, 14, 0, 0] = np.nan
    scale[17] = np.array({"float64": 1e-300}.get(dtype, 1e-38)).astype(scale.dtype)
    whole = Run(case, x, dy, scale, offset)
    for threads in (2, 9, 2**30):
        other = Run(case, x, dy, scale, offset, threads=threads)
        for name in ("y", "mean", "variance", "saved", "dx", "dscale", "doffset"):
            assert same_bits(getattr(other, name), getattr(whole, name)), (name, threads)
    for c in range(shape[1]):
        two = [c, c]  # each of so few is taken by itself
        alone = Run(
            replace(case, shape=(shape[0], 2, *shape[2:])), x.take(two, 1), dy.take(two, 1), scale[two], offset[two]
        )
        for name in ("y", "dx"):
            assert same_bits(getattr(alone, name)[:, :1], getattr(whole, name)[:, c : c + 1]), (name, c)
        assert same_bits(alone.saved[:1], whole.saved[c : c + 1])
        for name in ("mean", "variance", "dscale", "doffset"):
            assert same_bits(getattr(alone, name).reshape(2)[:1], getattr(whole, name).reshape(-1)[c : c + 1]), name


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", [2, 7, 16, 31, 64, 100, 260, 392, 517, 1000])
@pytest.mark.parametrize("name", ["layer, last axis", "RMS, last axis"])
def test_short_rows_have_the_bits_that_they_have_alone(name: str, n: int, dtype: str, isa: str) -> None:
    """Also by halves, on lines of the cache, in place and by several threads; beside one that needs doubles, one whose
    gradient does, one far from its first, and one lost.
    """
    case = replace(BY_NAME[name], shape=(38, n))
    x, dy, scale, offset = arrays(case, dtype, mean=3.0)
    dy[[12, 37]] *= np.array({"float64": 1e-200, "float16": 1e-6}.get(dtype, 1e-36)).astype(x.dtype)
    x[5] *= np.array({"float64": 1e200, "float16": 1e3}.get(dtype, 1e30)).astype(x.dtype)
    x[18, n // 2] += np.array(100).astype(x.dtype)
    x[30, 0] = np.nan
    whole = Run(case, x, dy, scale, offset)
    saved, sums = np.full_like(whole.saved, np.nan), np.full_like(whole.saved, np.nan)
    mean, variance = np.full_like(whole.mean, np.nan), np.full_like(whole.mean, np.nan)
    y, dx = x.copy(), np.full_like(x, np.nan)
    call("moments", whole.problem, x, mean, variance, saved)
    call("forward", whole.problem, y, scale, offset, y, None, None, None)
    call("backward_sums", whole.problem, x, dy, scale, whole.saved, sums, None, None)
    call("backward_apply", whole.problem, x, dy, scale, whole.saved, sums, 0.0, dx)
    for half, name in ((mean, "mean"), (variance, "variance"), (saved, "saved"), (y, "y"), (dx, "dx")):
        assert same_bits(known(half), known(getattr(whole, name))), name
    for how in ({"on_lines": True}, {"threads": 2}, {"threads": 2**30}):
        other = Run(case, x, dy, scale, offset, **how)
        for name in ("y", "dx", "mean", "variance", "saved", "dscale", "doffset")[: 6 if offset is None else 7]:
            assert same_bits(known(getattr(other, name)), known(getattr(whole, name))), (name, how)
    for i in range(len(x)):
        alone = Run(replace(case, shape=(1, n)), x[i : i + 1], dy[i : i + 1], scale, offset)
        for name in ("y", "dx", "mean", "variance", "saved"):
            one, other = getattr(alone, name).reshape(-1), getattr(whole, name).reshape(38, -1)[i]
            assert same_bits(known(one), known(other)), (name, i)


@pytest.mark.parametrize("dtype", TYPES)
def test_few_columns_have_the_bits_that_they_have_among_many(dtype: str, isa: str) -> None:
    """Of layer normalization over channels; also in place, and beside a column that is lost: with whatever NaN."""
    case = replace(BY_NAME["layer, channels first"], shape=(3, 37, 1, 150))
    x, dy, scale, offset = arrays(case, dtype, mean=3.0)

    for lost in (False, True):
        if lost:
            x[2, 4, 0, 0] = np.nan
        many = Run(case, x, dy, scale, offset)
        for n in (1, 3, 4, 7, 8, 15, 16, 17, 33, 49, 64, 65, 100, 128, 129):
            part = replace(case, shape=(3, 37, 1, n))
            few = Run(part, *(np.ascontiguousarray(a[..., :n]) for a in (x, dy)), scale, offset)
            for name in ("y", "dx"):
                assert same_bits(known(getattr(few, name)), known(getattr(many, name)[..., :n])), (name, n)
            y, dx = few.x.copy(), few.dy.copy()
            call("forward", few.problem, y, scale, offset, y, None, None, None)
            call("backward", few.problem, few.x, dx, scale, few.saved, dx, None, None)
            assert same_bits(known(y), known(few.y)), n
            assert same_bits(known(dx), known(few.dx)), n


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_constant_groups_come_out_as_offset(case: Case, isa: str) -> None:
    x, dy, scale, offset = arrays(case)
    if not case.plan.removes_mean:
        pytest.skip("the mean stays")
    for value in (3.3, -1e6, 1e30, 1e-30):
        run = Run(case, np.full_like(x, value), dy, scale, offset)
        np.testing.assert_array_equal(run.y, case.reference(np.zeros_like(x), scale, offset).y)
        assert np.isfinite(run.dx).all()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_halves_make_the_whole(case: Case, isa: str) -> None:
    case = sized(case, case.name in LARGE)
    x, dy, scale, offset = arrays(case)
    run = Run(case, x, dy, scale, offset)
    mean, variance = np.full_like(run.mean, np.nan), np.full_like(run.mean, np.nan)
    saved, sums = np.full_like(run.saved, np.nan), np.full_like(run.saved, np.nan)
    y, dx = np.full_like(x, np.nan), np.full_like(x, np.nan)
    dscale, doffset = (None if a is None else np.full_like(a, np.nan) for a in (scale, offset))
    call("moments", run.problem, x, mean, variance, saved)
    np.testing.assert_array_equal(saved, run.saved)
    if case.plan.removes_scale:
        again = np.full_like(run.saved, np.nan)
        call("apply", run.problem, x, mean, variance, scale, offset, y, again)
        np.testing.assert_allclose(again, run.saved, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(y, run.y, rtol=0, atol=2e-6)
    call("backward_sums", run.problem, x, dy, scale, saved, sums, dscale, doffset)
    call("backward_apply", run.problem, x, dy, scale, saved, sums, float(case.plan.count), dx)
    np.testing.assert_array_equal(dx, run.dx)
    for ours, theirs in ((dscale, run.dscale), (doffset, run.doffset)):
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_in_place(case: Case, isa: str) -> None:
    case = sized(case, case.name in LARGE)
    x, dy, scale, offset = arrays(case)
    run = Run(case, x, dy, scale, offset)
    y, dx = x.copy(), dy.copy()
    call("forward", run.problem, y, scale, offset, y, None, None, None)
    call("backward", run.problem, x, dx, scale, run.saved, dx, None, None)
    np.testing.assert_array_equal(y, run.y)
    np.testing.assert_array_equal(dx, run.dx)


def test_large_rows_under_tight_types(isa: str) -> None:
    """Inputs up to the type's largest number, and the smallest without eps."""
    case = BY_NAME["layer, last axis"]
    for dtype, std in (("float16", 6e4), ("bfloat16", 1e38), ("float32", 1e38), ("float32", 1e-41)):
        x = (np.sign(np.random.default_rng(0).normal(size=case.shape)) * std).astype(TYPES[dtype])
        x[..., 0] /= TYPES[dtype](2)
        run = Run(case, x, np.ones_like(x), None, None, 0.0)
        bound = 1e-5 if dtype == "float32" else 2.0**-8
        wanted = case.reference(x, eps=0.0).y
        np.testing.assert_allclose(run.y.astype(np.float64), wanted, rtol=bound, atol=bound, err_msg=f"{dtype} {std}")


def test_nan_and_infinity_stay_in_their_group(isa: str) -> None:
    for case in CASES:
        if case.plan.groups < 2:
            continue
        x, dy, scale, offset = arrays(case)
        good = Run(case, x, dy, scale, offset)
        for bad in (np.nan, np.inf):
            broken = x.copy()
            broken.flat[0] = bad
            run = Run(case, broken, dy, scale, offset)
            with np.errstate(invalid="ignore"):
                wanted = case.reference(broken, scale, offset).y
            touched = np.isnan(case.reference(np.where(np.isinf(broken), np.nan, broken)).y)
            np.testing.assert_array_equal(np.isfinite(run.y[touched]), np.isfinite(wanted[touched]), case.name)
            np.testing.assert_array_equal(run.y[~touched], good.y[~touched], case.name)
