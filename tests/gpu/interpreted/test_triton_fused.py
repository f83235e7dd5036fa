"""Residual, modulation and activation inside the Triton kernels, in Triton's interpreter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import BY_NAME, Case
from triton_runs import (
    ACTIVATIONS,
    BACKWARD,
    FORWARD,
    around,
    arrays,
    asked_for,
    channels_of,
    check_fused,
    doubles,
    launches,
    small_tiles,
)  # fmt: skip

from anynorm.kernels.triton import interpreted
from anynorm.ops.torch_fused import Fused

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1 before Triton is imported"),
    # The interpreter computes in NumPy, also what is masked.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

GROUP, FIRST, ROWS = "group, channels last", "group, channels first", "layer, last axis"
COLUMNS = "layer, channels first"
# Whose channels each have a shift and a gain for each sample. Beside those of the table: more kept axes than the
# samples', and groups of neighbouring columns with one scale, whose sums are a group's.
MODULATED = [
    *(BY_NAME[name] for name in (
        GROUP, FIRST, "group, channels in the middle", "group, every channel", "instance, channels last",
        "instance, channels first", ROWS, COLUMNS, "RMS, last axis", "filter response",
    )),
    Case("instance, frames", "n t c [...]", (2, 3, 5, 7)),
    Case("layer, frames, channels first", "n t [c] ...", (2, 3, 13, 5)),
    Case("layer, one row a sample", "n [c]", (3, 13)),
    Case("over time", "n [t] c ...", (2, 5, 3, 7)),
]  # fmt: skip
EACH = [
    (case, activation) for case, activation in zip(MODULATED, ["silu", "gelu", "relu", "gelu_tanh"] * 4, strict=False)
]
WAYS = [(FIRST, "held"), (ROWS, "held"), (COLUMNS, "held"), (GROUP, "cut"), (ROWS, "cut"), (COLUMNS, "cut")]
ways = pytest.mark.parametrize(("name", "tiles"), WAYS)
few = pytest.mark.parametrize(("name", "tiles"), [(ROWS, "held"), (GROUP, "cut")])
each = pytest.mark.parametrize(("case", "activation"), EACH, ids=[case.name for case in MODULATED])


@pytest.fixture(autouse=True)
def nan_in_new_memory():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)


def counted(names: list[str]) -> None:
    """Two launches forward and three backward, at most."""
    forward = names[: 1 if names[0] == "forward" else 2]
    assert forward in FORWARD
    backward = names[len(forward) :]
    assert backward in (*BACKWARD, *([*kernels, "gather"] for kernels in BACKWARD))


@each
def test_all_at_once(case, activation):
    with launches() as names:
        check_fused(case, *arrays(case), *around(case), activation)
    counted(names)


@pytest.mark.usefixtures("cut")
@each
def test_all_at_once_of_groups_that_are_cut(case, activation):
    with launches() as names:
        check_fused(case, *arrays(case), *around(case), activation)
    assert names[:3] == ["statistics", "apply", "sums"]
    counted(names)


@few
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name])
def test_activations_by_themselves(name, tiles, activation, request):
    if tiles == "cut":
        request.getfixturevalue("cut")
    with launches() as names:
        check_fused(BY_NAME[name], *arrays(BY_NAME[name]), None, None, activation)
    counted(names)


@ways
def test_residual_and_modulation_by_themselves(name, tiles, request):
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    residual, modulation = around(case)
    for given in ((residual, None), (None, modulation)):
        with launches() as names:
            check_fused(case, *arrays(case), *given, None)
        counted(names)


@pytest.mark.parametrize("name", ["batch, channels last", "batch, channels first", "layer, two axes", "one dimension"])
def test_residual_and_activation_without_samples(name):
    with launches() as names:
        residual, _ = around(BY_NAME[name], modulation=False)
        check_fused(BY_NAME[name], *arrays(BY_NAME[name]), residual, None, "silu")
    counted(names)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@ways
def test_half_precision(name, tiles, dtype, request):
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    check_fused(case, *arrays(case, 3.0, 2.0, dtype), *around(case, dtype), "silu")


@few
def test_a_wider_residual(name, tiles, request):
    """The sum stays float32, and so does its gradient."""
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    check_fused(case, *arrays(case, 3.0, 2.0, "float16"), *around(case, "float32"), "gelu")


@few
def test_offsets(name, tiles, request):
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    x, dy = arrays(case, 1e6)
    check_fused(case, x, dy, *around(case), "gelu")


def test_plain_affine_is_left_out():
    """Modulation of a norm without scale and offset, as adaLN has it."""
    for name in (ROWS, COLUMNS, GROUP):
        case = BY_NAME[name]
        x, dy = arrays(case)
        _, (shift, gain) = around(case)
        leaves = [a.requires_grad_() for a in (x, shift.clone(), gain.clone())]
        with asked_for(), launches() as names:
            y = Fused(None, tuple(leaves[1:]), None).normalize_checked(x, None, None, None, case.spec.encode(), 1e-5)[0]
            got = torch.autograd.grad(y, leaves, dy)
        counted(names)
        wide = [a.detach().double().requires_grad_() for a in leaves[1:]]
        over = [length if d in (0, channels_of(case)) else 1 for d, length in enumerate(case.shape)]
        n = torch.tensor(case.reference(doubles(x)).y)
        wanted = torch.autograd.grad(n * (1 + wide[1].reshape(over)) + wide[0].reshape(over), wide, dy.double())
        for one, other in zip(got[1:], wanted, strict=True):
            assert (one - other).abs().max() <= 2e-6 * other.abs().max()


@pytest.mark.parametrize("name", [GROUP, ROWS])
def test_vectors_of_length_one(name):
    """For all samples alike, or for all channels."""
    case = BY_NAME[name]
    x, dy = arrays(case)
    _, (shift, gain) = around(case)
    few = [shift[:1].clone().requires_grad_(), gain[:, :1].clone().requires_grad_()]
    full = [few[0].expand(shift.shape), few[1].expand(gain.shape)]
    with asked_for(), launches() as names:
        for pair in (few, full):
            y = Fused(None, tuple(pair), "silu").normalize_checked(x, None, None, None, case.spec.encode(), 1e-5)[0]
            grads = torch.autograd.grad(y, few, dy)
            if pair is few:
                wanted = [y, *grads]
    assert len(names) == 2 * len(names[: len(names) // 2])
    for one, other in zip([y, *grads], wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", [GROUP, ROWS])
def test_gradients_of_one_output_alone(name):
    case = BY_NAME[name]
    x, dy = arrays(case)
    residual, modulation = around(case)
    leaves = [a.requires_grad_() for a in (x, residual)]
    with asked_for():
        y, total = Fused(residual, modulation, "gelu").normalize_checked(x, None, None, None, case.spec.encode(), 1e-5)[
            0
        ]
        of_y = torch.autograd.grad(y, leaves, dy, retain_graph=True)
        of_total = torch.autograd.grad(total, leaves, dy, retain_graph=True)
        of_both = torch.autograd.grad([y, total], leaves, [dy, dy])
    for one, other, both in zip(of_y, of_total, of_both, strict=True):
        assert torch.equal(other, dy)
        torch.testing.assert_close(one + other, both)


@few
def test_what_is_not_finite_stays_in_its_group(name, tiles, request):
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    x, dy = arrays(case)
    residual, modulation = around(case)
    broken = x.clone()
    broken[1, 2, 3] = math.nan

    def both(x):
        x = x.clone().requires_grad_()
        with asked_for():
            y = Fused(residual, modulation, "relu").normalize_checked(x, None, None, None, case.spec.encode(), 1e-5)
            return [doubles(a) for a in (y[0][0], *torch.autograd.grad(y[0][0], x, dy))]

    touched = np.isnan(case.reference(doubles(broken)).y)
    assert 0 < touched.sum() < touched.size
    of_broken = both(broken)
    for clean, found in zip(both(x), of_broken, strict=True):
        assert np.isnan(found[touched]).any()
        np.testing.assert_array_equal(found[~touched], clean[~touched])
    assert np.isnan(of_broken[0][touched]).all()


@few
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name])
def test_far_from_zero(name, tiles, activation, request):
    """Where exponentials, squares and cubes overflow, the activations and their derivatives do not."""
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    x, dy = arrays(case)
    gain, shift = (torch.zeros_like(a) for a in around(case)[1])
    shift += torch.tensor([30.0, 1e4, 1e30] * shift.shape[1])[: shift.shape[1]]
    shift[::2] *= -1
    leaves = [a.requires_grad_() for a in (x, shift, gain)]
    with asked_for():
        y = Fused(None, tuple(leaves[1:]), activation).normalize_checked(x, None, None, None, case.spec.encode(), 1e-5)[
            0
        ]
        _, dshift, dgain = torch.autograd.grad(y, leaves, dy)
    d = channels_of(case)
    over = [length if e in (0, d) else 1 for e, length in enumerate(case.shape)]
    m = torch.tensor(case.reference(doubles(x)).y) + shift.detach().double().reshape(over)
    assert ((y - ACTIVATIONS[activation](m)).abs() <= 2.0**-22 * m.abs()).all()
    assert dgain.isfinite().all()
    assert (dshift[::2].abs() < 1e-6).all(), "far to the left all is flat"
    everything = dy.sum([e for e in range(dy.ndim) if e not in (0, d)])
    torch.testing.assert_close(dshift[1::2], everything[1::2], rtol=1e-5, atol=1e-5)


@ways
def test_a_sample_does_not_see_its_neighbours(name, tiles, request):
    """Bit for bit, the gradients of its own modulation too."""
    if tiles == "cut":
        request.getfixturevalue("cut")
    case = BY_NAME[name]
    x, dy = arrays(case)
    residual, modulation = around(case)

    def run(*which):
        part = slice(*which)
        leaves = [a[part].clone().requires_grad_() for a in (x, residual, *modulation)]
        with asked_for():
            y = Fused(leaves[1], tuple(leaves[2:]), "silu").normalize_checked(
                leaves[0], None, None, None, case.spec.encode(), 1e-5
            )
            return [y[0][0], *torch.autograd.grad(y[0][0], leaves, dy[part])]

    for one, of_all in zip(run(1, 2), run(None), strict=True):
        assert torch.equal(one, of_all[1:2])


@pytest.mark.parametrize("shape", [(0, 5, 8), (3, 0, 8)])
def test_all_around_an_empty_array(shape):
    x, residual = torch.zeros(shape), torch.zeros(shape)
    vectors = torch.zeros(shape[0], 16)
    leaves = [a.requires_grad_() for a in (x, residual, torch.ones(8), torch.ones(8), vectors)]
    shift, gain = vectors.chunk(2, dim=1)
    with asked_for(), launches() as names:
        case = Case("", "... [c]", shape)
        call = Fused(residual, (shift, gain), "silu")
        (y, total), *_ = call.normalize_checked(x, *leaves[2:4], None, case.spec.encode(), 1e-5)
        grads = torch.autograd.grad([y, total], leaves, [torch.zeros_like(y)] * 2)
    assert names == []
    assert y.shape == total.shape == shape
    for leaf, grad in zip(leaves, grads, strict=True):
        assert grad.shape == leaf.shape
        assert not grad.any()


def test_only_the_sum_is_kept():
    case = BY_NAME[GROUP]
    x, _ = arrays(case)
    residual, modulation = around(case)
    kept = {}
    with asked_for(), torch.autograd.graph.saved_tensors_hooks(lambda a: kept.setdefault(a.data_ptr(), a), lambda a: a):
        y, total = Fused(residual, modulation, "gelu").normalize_checked(
            x.requires_grad_(), None, None, None, case.spec.encode(), 1e-5
        )[0]
    assert y.requires_grad
    assert [a.data_ptr() for a in kept.values() if a.numel() >= x.numel()] == [total.data_ptr()]


def test_second_derivatives_are_composed():
    case = BY_NAME[ROWS]
    x, dy = arrays(case)
    residual, modulation = around(case)
    small = [torch.tensor(a) for a in case.parameters(np.random.default_rng(5))]
    found = []
    for asked in (True, False):
        leaves = [a.detach().clone().requires_grad_() for a in (x, residual, *small, *modulation)]
        call = Fused(leaves[1], tuple(leaves[4:]), "silu")
        arguments = leaves[0], *leaves[2:4], None, case.spec.encode(), 1e-5

        def loss(call=call, arguments=arguments):
            y, total = call.normalize_checked(*arguments)[0]
            return (y * dy * total).sum()

        if asked:
            with asked_for(), launches() as names:
                first = torch.autograd.grad(loss(), leaves, create_graph=True)
            assert names == ["forward"]
        else:
            first = torch.autograd.grad(loss(), leaves, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum((a * a).sum() for a in first), leaves)])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 2e-5 * other.abs().max()


@pytest.mark.parametrize(("name", "turned"), [(GROUP, False), (ROWS, False), (ROWS, True)])
def test_compiled_programs_run_the_kernel(name, turned):
    torch._dynamo.reset()
    case = BY_NAME[name]
    x, dy = arrays(case)
    if turned:
        # Samples that are not outermost are copied: a compiler has to know beforehand what is called.
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    residual, modulation = around(case)
    small = [torch.tensor(a) for a in case.parameters(np.random.default_rng(5))]
    sentence = case.spec.encode()

    def program(x, residual, scale, offset, shift, gain):
        call = Fused(residual, (shift, gain), "silu")
        y, total = call.normalize_checked(x, scale, offset, None, sentence, 1e-5)[0]
        return y * 2, total

    found = []
    for function in (program, torch.compile(program, fullgraph=True, backend="aot_eager")):
        leaves = [a.detach().clone().requires_grad_() for a in (x, residual, *small, *modulation)]
        with asked_for(), launches() as names:
            y, total = function(*leaves)
            found.append([y, total, *torch.autograd.grad([y, total], leaves, [dy, dy])])
        counted(names)
    assert found[0][0].stride() == found[1][0].stride() == x.stride()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 if turned else 0)


@pytest.mark.parametrize("with_sum", [True, False])
def test_compiled_programs_take_arrays_with_gaps(with_sum):
    """Channels outermost, every second position: both passes have to see the groups in one order."""
    torch._dynamo.reset()
    case = Case("instance, gaps", "n c [...]", (2, 3, 5))
    x, dy = arrays(case)
    x = x.transpose(0, 1).repeat_interleave(2, 2).transpose(0, 1)[..., ::2]
    residual, _ = around(case, residual=with_sum, modulation=False)
    sentence = case.spec.encode()

    def program(x, residual):
        out = Fused(residual, None, "silu").normalize_checked(x, None, None, None, sentence, 1e-5)[0]
        return out if with_sum else (out,)

    found = []
    for function in (program, torch.compile(program, fullgraph=True, backend="aot_eager")):
        given = [None if a is None else a.detach().requires_grad_() for a in (x, residual)]
        with asked_for(), launches() as names:
            outs = function(*given)
            grads = torch.autograd.grad(outs, [a for a in given if a is not None], [dy, dy.flip(0)][: len(outs)])
        counted(names)
        found.append([*outs, *grads])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_channels_last_and_samples_that_are_not_outermost():
    case = BY_NAME[FIRST]
    x, dy = arrays(case)
    residual, modulation = around(case)
    last = x.to(memory_format=torch.channels_last)
    check_fused(case, last, dy, residual, modulation, "silu")
    case = BY_NAME[ROWS]
    x, dy = arrays(case)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    residual, modulation = around(case)
    # Composed, around the kernel.
    with launches() as names:
        check_fused(case, turned, dy, residual, modulation, "silu")
    counted(names)


@pytest.mark.parametrize("name", ["batch, channels first", "group, affine within a group"])
def test_what_is_modulated_otherwise_is_composed(name):
    """Statistics over the samples, or channels that share a scale: the kernel normalizes, and torch does the rest."""
    case = BY_NAME[name]
    x, _ = arrays(case)
    d = 1 if name.startswith("batch") else 3
    modulation = around(case, channels=case.shape[d])[1]
    over = [length if e in (0, d) else 1 for e, length in enumerate(case.shape)]
    with asked_for(), launches() as names:
        y = Fused(None, modulation, "relu").normalize_checked(x, None, None, None, case.spec.encode(), 1e-5)[0]
    assert names in FORWARD
    shift, gain = (a.double().reshape(over) for a in modulation)
    wanted = torch.relu(torch.tensor(case.reference(doubles(x)).y) * (1 + gain) + shift)
    assert (y - wanted).abs().max() <= 4e-6 * wanted.abs().max()


def test_a_modulation_at_every_position_is_composed():
    case = BY_NAME[ROWS]
    x, dy = arrays(case)
    with asked_for(), launches() as names:
        y = Fused(None, (dy, dy), None).normalize_checked(x, None, None, None, case.spec.encode(), 1e-5)[0]
    assert names == ["forward"]
    n, d = torch.tensor(case.reference(doubles(x)).y), dy.double()
    assert (y - (n * (1 + d) + d)).abs().max() <= 4e-6 * y.abs().max()


def test_masks_and_doubles_are_refused_as_without_anything_around():
    case = BY_NAME[ROWS]
    x, dy = arrays(case)
    call = Fused(dy, None, "silu")
    with asked_for():
        with pytest.raises(ValueError, match="take no mask"):
            call.normalize_checked(x, None, None, x > 0, case.spec.encode(), 1e-5)
        with pytest.raises(ValueError, match="this is float64"):
            Fused(dy.double(), None, "silu").normalize_checked(x, None, None, None, case.spec.encode(), 1e-5)
        with pytest.raises(ValueError, match="input's shape"):
            Fused(dy[:1], None, "silu").normalize_checked(x, None, None, None, case.spec.encode(), 1e-5)


def test_modules_take_it():
    import anynorm.torch as A  # noqa: N812

    x, stream, vectors = torch.randn(2, 5, 16), torch.randn(2, 5, 16), torch.randn(2, 32)
    norms = [A.LayerNorm(16, activation="silu"), A.RMSNorm(16, activation="gelu")]
    for norm in norms:
        with asked_for(), launches() as names:
            y, total = norm(x, residual=stream, modulation=vectors.chunk(2, dim=-1))
        assert names == ["forward"]
        wanted = norm(x, residual=stream, modulation=vectors.chunk(2, dim=-1))
        assert torch.equal(total, wanted[1])
        torch.testing.assert_close(y, wanted[0], rtol=1e-5, atol=1e-5)
    with asked_for(), launches() as names:
        batch = A.BatchNorm1d(5, activation="relu")
        batch(x, residual=stream)
    assert names in FORWARD
    torch.testing.assert_close(batch.running_mean, 0.1 * (x + stream).mean((0, 2)))


def test_all_types_beside_one_another():
    case = BY_NAME[ROWS]
    for one, other in (("float16", "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float32")):
        x, dy = arrays(case, 1.0, 1.0, one)
        check_fused(case, x, dy, *around(case, other), "relu")
