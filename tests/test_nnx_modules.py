"""The NNX modules: Flax's answers on ordinary input, float64's on any, and Flax's states both ways."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import relative
from test_normalize import seed

nnx = pytest.importorskip("flax.nnx")

import anynorm.nnx as A  # noqa: E402, N812
from anynorm.reference import Reference  # noqa: E402

NAMES = ("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm")


@dataclass(frozen=True)
class Module:
    """A module's class, features and arguments, and the sentence that it means for inputs of `shape`."""

    name: str
    features: int
    shape: tuple[int, ...]
    pattern: str
    affine: str = "c"
    sizes: dict[str, int] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    def make(self, source: Any, **more: Any) -> Any:
        arguments = {"use_fast_variance": False, **self.arguments, **more}
        return getattr(source, self.name)(self.features, rngs=nnx.Rngs(0), **arguments)

    def reference(self, module: Any, x: np.ndarray, mask: Any = None) -> Reference:
        remove = ("scale",) if self.name == "RMSNorm" else ("mean", "scale")
        scale, bias = module.scale[...], None if self.name == "RMSNorm" else module.bias[...]
        words = {"affine": self.affine, "eps": module.epsilon, "remove": remove, "mask": mask}
        return Reference(x, self.pattern, scale, bias, **words, **self.sizes)

    def __str__(self) -> str:
        return " ".join((self.name, *(f"{k}={v}" for k, v in self.arguments.items())))


BOTH = {"reduction_axes": (1, 3), "feature_axes": (1, 3)}
MODULES = (
    Module("BatchNorm", 6, (3, 5, 7, 6), "[...] c"),
    Module("BatchNorm", 5, (3, 5, 7, 2), "[n] c [...]", arguments={"axis": 1}),
    Module("GroupNorm", 6, (3, 5, 7, 6), "n [...] (g [c])", "g c", {"g": 3}, {"num_groups": 3}),
    Module("GroupNorm", 6, (3, 6), "n (g [c])", "g c", {"g": 2}, {"num_groups": None, "group_size": 3}),
    Module("InstanceNorm", 6, (3, 5, 7, 6), "n [...] c"),
    Module("InstanceNorm", 35, (3, 5, 7, 6), "n a c [d]", "a c", arguments={"feature_axes": (1, 2)}),
    Module("LayerNorm", 6, (3, 5, 6), "... [c]"),
    Module("LayerNorm", 6, (3, 5, 7, 6), "n [...] c", arguments={"reduction_axes": (1, 2), "feature_axes": -1}),
    Module(
        "LayerNorm",
        30,
        (3, 5, 7, 6),
        "n [a] b [c]",
        "a c",
        arguments=BOTH,
    ),
    Module("RMSNorm", 6, (3, 5, 6), "... [c]"),
    Module("RMSNorm", 5, (3, 5, 7), "n [c] m", arguments={"reduction_axes": 1, "feature_axes": 1}),
)
modules = pytest.mark.parametrize("case", MODULES, ids=str)


def shake(module: Any) -> Any:
    """The module, its parameters and running statistics moved away from their neutral values."""
    rng = seed(type(module).__name__)
    move = lambda v: v + jnp.asarray(rng.uniform(0.1, 0.5, v.shape), v.dtype)  # noqa: E731
    nnx.update(module, jax.tree.map(move, nnx.state(module)))
    return module


def plain(source: Any, name: str, **arguments: Any) -> Any:
    """With 32 features; in 8 groups."""
    groups = {"num_groups": 8} if name == "GroupNorm" else {}
    return getattr(source, name)(32, rngs=nnx.Rngs(0), use_fast_variance=False, **groups, **arguments)


def ordinary(case: Module) -> np.ndarray:
    return seed(str(case)).normal(size=case.shape).astype(np.float32)


@modules
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_answers_are_flax_s(case, dtype):
    theirs = shake(case.make(nnx, dtype=dtype))
    ours = case.make(A, dtype=dtype)
    nnx.update(ours, nnx.state(theirs))
    x = jnp.asarray(ordinary(case), dtype)
    for _ in range(2):
        y, want = ours(x), theirs(x)
        assert y.dtype == want.dtype
        # One unit of bfloat16 at the largest output, where rounding happens at other places.
        tolerance = 1e-6 if dtype is None else 2e-2
        np.testing.assert_allclose(y.astype("float32"), want.astype("float32"), rtol=0, atol=tolerance)
    for (path, mine), (their_path, its) in zip(*(nnx.to_flat_state(nnx.state(m)) for m in (ours, theirs)), strict=True):
        assert (path, mine.dtype, type(mine)) == (their_path, its.dtype, type(its))
        np.testing.assert_allclose(mine[...], its[...], rtol=0, atol=1e-6)


@modules
@pytest.mark.parametrize(("offset", "factor"), [(0, 1), (1e6, 1), (0, 1e30)])
def test_answers_and_gradients_are_float64_s(case, offset, factor):
    module = shake(case.make(A))
    x = (ordinary(case) + np.float32(offset)) * np.float32(factor)
    dy = seed("dy").normal(size=case.shape).astype(np.float32)
    graph, state = nnx.split(module)
    y, pull = jax.vjp(lambda x, state: nnx.merge(graph, state)(x), jnp.asarray(x), state)
    dx, dstate = pull(jnp.asarray(dy))
    want = case.reference(module, x)
    dx_want, dscale, dbias = want.backward(dy)
    relative(y, want.y, 1e-6)
    relative(dx, dx_want, 1e-5)
    relative(dstate["scale"][...], dscale, 1e-5)
    if "bias" in dstate:
        relative(dstate["bias"][...], dbias, 1e-5)


@pytest.mark.parametrize("case", MODULES[::2], ids=str)
def test_masked_elements_do_not_count_and_may_be_nan(case):
    module, rng = shake(case.make(A)), seed("mask")
    mask = rng.random((*case.shape[:-1], 1)) > 0.3
    x = np.where(mask, ordinary(case) + 50, np.nan).astype(np.float32)
    y = np.asarray(module(x, mask=mask))
    want = case.reference(module, np.where(mask, x, 0), mask).y
    valid = np.broadcast_to(mask, case.shape)
    np.testing.assert_allclose(y[valid], want[valid], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_flax_s_but_for_what_it_computes(name):
    ours, theirs = getattr(A, name), getattr(nnx, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert list(inspect.signature(ours.__call__).parameters) == list(inspect.signature(theirs.__call__).parameters)
    one, other = shake(plain(A, name)), shake(plain(nnx, name))
    x = seed(name).normal(size=(4, 3, 32)).astype(np.float32)
    for a, b in ((one, other), (other, one)):
        taken = nnx.merge(nnx.graphdef(a), nnx.state(b))
        assert type(taken) is type(a)
        np.testing.assert_allclose(taken(x), nnx.clone(b)(x), rtol=0, atol=4e-6)


@pytest.mark.parametrize("left_out", [("use_scale",), ("use_bias",), ("use_scale", "use_bias")])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "RMSNorm"])
def test_parameters_can_be_left_out(name, left_out):
    ours, theirs = (shake(plain(m, name, **dict.fromkeys(left_out, False))) for m in (A, nnx))
    assert jax.tree.structure(nnx.state(ours)) == jax.tree.structure(nnx.state(theirs))
    x = seed(name).normal(size=(4, 3, 32)).astype(np.float32)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=0, atol=4e-6)


def test_batch_norm_step_by_step():
    ours, theirs = (case.make(m, momentum=0.7) for case in MODULES[:1] for m in (A, nnx))
    for step in range(4):
        x = seed(str(step)).normal(2, 3, size=(3, 5, 7, 6)).astype(np.float32)
        mask = None if step < 2 else seed(str(-step)).random((3, 5, 7, 1)) > 0.5
        for m in (ours, theirs):
            m.train() if step < 3 else m.eval()
        np.testing.assert_allclose(ours(x, mask=mask), theirs(x, mask=mask), rtol=0, atol=2e-6)
        np.testing.assert_allclose(ours.mean[...], theirs.mean[...], rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.var[...], theirs.var[...], rtol=1e-6)
    before = nnx.clone(nnx.state(ours))
    ours(x, use_running_average=True)
    assert all((a[...] == b[...]).all() for a, b in zip(*map(jax.tree.leaves, (before, nnx.state(ours))), strict=True))
    view = nnx.view(ours, use_running_average=False)
    view(x)
    assert (ours.mean[...] != before["mean"][...]).all()


def test_an_empty_batch_moves_nothing():
    module = A.BatchNorm(3, rngs=nnx.Rngs(0))
    assert module(jnp.ones((0, 5, 3))).shape == (0, 5, 3)
    np.testing.assert_array_equal(module.var[...], np.ones(3))


def test_channels_wholly_under_a_mask_move_nothing():
    module, x = A.BatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0)), seed("masked").normal(2, 3, size=(4, 5, 3))
    mask = np.array([True, False, True])
    module(x, mask=mask)
    assert module.mean[1] == 0
    assert module.var[1] == 1
    np.testing.assert_allclose(module.mean[::2], 0.5 * x.mean((0, 1))[::2], rtol=1e-5)
    module(x, mask=np.zeros(3, bool))
    np.testing.assert_allclose(module.mean[::2], 0.5 * x.mean((0, 1))[::2], rtol=1e-5)


def test_the_running_statistics_of_half_precision_are_float32_s():
    module = A.BatchNorm(3, dtype=jnp.bfloat16, momentum=0.0, rngs=nnx.Rngs(0))
    x = jnp.asarray(seed("half").normal(100, 1, size=(64, 3)), jnp.bfloat16)
    module(x)
    assert module.mean.dtype == module.var.dtype == jnp.float32
    np.testing.assert_allclose(module.mean[...], np.asarray(x, np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(module.var[...], np.asarray(x, np.float64).var(0), rtol=1e-5)
    y = module(x, use_running_average=True)
    want = (np.asarray(x, np.float64) - np.asarray(module.mean[...])) / np.sqrt(np.asarray(module.var[...]) + 1e-5)
    np.testing.assert_allclose(y.astype("float32"), want, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_see_the_input_before_it_is_cast(name):
    """70000 is no float16."""
    module = plain(A, name, dtype=jnp.float16)
    x = (seed(name).normal(size=(5, 3, 32)) * 7e4).astype(np.float32)
    y = module(x)
    assert y.dtype == jnp.float16
    np.testing.assert_array_equal(y, plain(A, name)(x).astype(jnp.float16))


@pytest.mark.parametrize("constant", [255.0, 127.3, 1000.3])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "RMSNorm"])
def test_a_constant_becomes_zero(name, constant):
    assert not plain(A, name)(jnp.full((2, 9, 32), constant)).any()


@pytest.mark.parametrize(
    ("axes", "shape", "pattern"),
    [
        # With several axes kept, Flax 0.12.8 silently takes other groups' statistics; with none it raises.
        ((2, 3, -1), (2, 3, 5, 7, 6), "n t [...] (g [c])"),
        ((0, 1, 2), (5, 7, 6), "[h w] (g [c])"),
    ],
)
def test_group_norm_keeps_any_axes(axes, shape, pattern):
    module = shake(A.GroupNorm(6, 3, reduction_axes=axes, rngs=nnx.Rngs(0)))
    x = seed(pattern).normal(size=shape).astype(np.float32) + np.arange(6, dtype=np.float32)
    want = Reference(x, pattern, module.scale[...], module.bias[...], affine="g c", eps=1e-6, g=3)
    relative(module(x), want.y, 1e-6)


def test_any_sentence_is_a_module():
    module = shake(A.Norm("n [h] w c", 5, affine="h", remove="scale", rngs=nnx.Rngs(0)))
    x = seed("sentence").normal(size=(3, 5, 7, 2)).astype(np.float32)
    want = Reference(x, "n [h] w c", module.scale[...], module.bias[...], affine="h", eps=1e-6, remove=("scale",))
    relative(module(x), want.y, 1e-6)
    two = A.Norm("n [...] a c", (7, 2), affine="a c", param_dtype=jnp.float16, rngs=nnx.Rngs(0))
    assert two.scale.shape == (7, 2)
    assert two.bias.dtype == jnp.float16
    assert jax.tree.leaves(nnx.state(A.Norm("n [...]", use_bias=False, use_scale=False, rngs=nnx.Rngs(0)))) == []


X = jnp.ones((4, 3, 6))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: A.LayerNorm(5, rngs=nnx.Rngs(0))(X), "made for 5 features"),
        (lambda: A.LayerNorm(5, use_bias=False, use_scale=False, rngs=nnx.Rngs(0))(X), "made for 5 features"),
        (lambda: A.BatchNorm(1, use_running_average=True, rngs=nnx.Rngs(0))(X), "made for 1 features"),
        (lambda: A.GroupNorm(12, 3, rngs=nnx.Rngs(0))(X), "made for 12 features"),
        (lambda: A.LayerNorm(6, reduction_axes=(-1, 2), rngs=nnx.Rngs(0))(X), "twice"),
        (lambda: A.LayerNorm(6, reduction_axes=3, rngs=nnx.Rngs(0))(X), "out of range"),
        (lambda: A.GroupNorm(6, 3, reduction_axes=(1,), rngs=nnx.Rngs(0))(X), "lacks the last axis"),
        (lambda: A.InstanceNorm(4, feature_axes=0, rngs=nnx.Rngs(0))(X), "the batch"),
        (lambda: A.RMSNorm(6, epsilon=-1.0, rngs=nnx.Rngs(0))(X), "not negative"),
        (lambda: A.RMSNorm(6, rngs=nnx.Rngs(0))(X, jnp.ones((5, 1, 1), bool)), "does not broadcast"),
        (lambda: A.BatchNorm(6, use_running_average=None, rngs=nnx.Rngs(0))(X), "use_running_average=True or False"),
        (lambda: A.Norm("n [...]", 6, rngs=nnx.Rngs(0)), "which axes"),
        (lambda: A.Norm("n [c]", rngs=nnx.Rngs(0)), "num_features=32"),
        (lambda: A.Norm("n t [c]", 5, rngs=nnx.Rngs(0))(X), "scale must have the shape"),
    ],
)
def test_errors_say_what_to_do(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_statistic_over_one_element_is_a_warning():
    with pytest.warns(UserWarning, match="one element") as seen:
        assert not A.GroupNorm(6, 6, rngs=nnx.Rngs(0))(jnp.ones((4, 6))).any()
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match="one element") as seen:
        A.BatchNorm(6, rngs=nnx.Rngs(0))(jnp.ones((1, 6)))
    assert seen[0].filename == __file__


@pytest.mark.parametrize("module", [A.LayerNorm, A.BatchNorm], ids=lambda module: module.__name__)
@pytest.mark.parametrize("mask", [[1, 1, 0, 1], np.ones(4, np.int32), jnp.ones(4)], ids=["list", "int32", "float32"])
def test_a_mask_of_numbers_is_refused(module, mask):
    with pytest.raises(TypeError, match="the mask must be boolean"):
        module(4, rngs=nnx.Rngs(0))(jnp.ones((3, 4)), mask=mask)
    assert module(4, rngs=nnx.Rngs(0))(jnp.ones((3, 4)), mask=[True, True, False, True]).shape == (3, 4)


@pytest.mark.parametrize(
    ("module", "mask"),
    [
        (lambda: A.LayerNorm(6, rngs=nnx.Rngs(0)), np.arange(6) == 2),
        (lambda: A.GroupNorm(6, 3, rngs=nnx.Rngs(0)), (np.arange(6) % 2 == 0) & (np.arange(4) == 1)[:, None]),
        (lambda: A.BatchNorm(6, rngs=nnx.Rngs(0)), np.arange(12).reshape(3, 4, 1) == 5),
    ],
    ids=["layer", "group", "batch"],
)
def test_one_element_under_a_mask_is_said(module, mask):
    """As without a mask, where its values are known; two elements of one statistic are enough to go on."""
    x, module = jnp.asarray(seed("masks").normal(size=(3, 4, 6)), jnp.float32), module()
    apply = nnx.jit(lambda module, x, mask: module(x, mask=mask))
    for given in (mask, jnp.asarray(mask), mask.tolist()):
        with pytest.warns(UserWarning, match=r"one element of an input of shape \(3, 4, 6\) under its mask"):
            module(x, mask=given)
    with pytest.warns(UserWarning, match="under its mask"):
        nnx.jit(lambda module, x: module(x, mask=mask))(module, x)
    some = np.broadcast_to(mask, x.shape).copy()
    some[0, 1, 2:4] = some[:2, 1, 4] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x, mask=some)
        apply(module, x, mask)
        module(x, mask=np.zeros(6, bool))
        A.RMSNorm(6, rngs=nnx.Rngs(0))(x, mask=np.arange(6) == 2)


@pytest.mark.parametrize("axis", [0, -1])
def test_batch_norm_of_one_sample_is_flax_s(axis):
    """Alone, with running averages, and as one of many under a vmap that has a name."""
    x = seed("one sample").normal(size=(5, 6)).astype(np.float32)
    ours, theirs = (module(6, axis=axis, rngs=nnx.Rngs(0)) for module in (A.BatchNorm, nnx.BatchNorm))
    with pytest.warns(UserWarning, match="over one element"):
        y = ours(x[0])
    np.testing.assert_allclose(y, theirs(x[0]), rtol=0, atol=1e-6)
    for name in ("mean", "var"):
        np.testing.assert_allclose(getattr(ours, name)[...], getattr(theirs, name)[...], rtol=0, atol=1e-6)
    mode = {"use_running_average": True}
    np.testing.assert_allclose(ours(x[0], **mode), theirs(x[0], **mode), rtol=0, atol=1e-5)
    ours, theirs = (module(6, axis=axis, axis_name="n", rngs=nnx.Rngs(0)) for module in (A.BatchNorm, nnx.BatchNorm))
    every = nnx.vmap(lambda module, x: module(x), in_axes=(None, 0), axis_name="n")
    np.testing.assert_allclose(every(ours, x), every(theirs, x), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="out of range"):
        A.BatchNorm(6, axis=1, rngs=nnx.Rngs(0))(x[0])
