"""Activation, residual and modulation as arguments of anynorm.torch, against the same written out."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from arrays import relative
from test_torch_modules import IMAGE, MODULES, made
from torch import func
from torch.nn import functional as F  # noqa: N812

import anynorm.torch as A  # noqa: N812
from anynorm import surgery
from anynorm.convert import convert
from anynorm.ops import torch_fused
from anynorm.reference import Reference

ACTIVATIONS = {
    None: lambda m: m,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda m: F.gelu(m, approximate="tanh"),
}
SENTENCE = ("Norm", ("n (g [c]) [...]",), IMAGE, "n (g [c]) [h w]", {"g": 3, "affine": "g c"})
WITH_SENTENCE = [*MODULES, SENTENCE]
each = pytest.mark.parametrize(
    ("name", "args", "shape", "sentence", "rest"), WITH_SENTENCE, ids=[name for name, *_ in WITH_SENTENCE]
)
activations = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)


def module_of(name: str, args: tuple[Any, ...], **rest: Any) -> Any:
    return made(name, args, **rest, **({"g": 3, "c": 2} if name == "Norm" else {}))


def axis_of(sentence: str) -> int:
    """That of the channels."""
    return 3 if sentence == "n a h [c]" else 1


def over_image(vectors: Any, axis: int) -> Any:
    shape = [1] * len(IMAGE)
    shape[0], shape[axis] = vectors.shape
    return vectors.reshape(shape)


def leaves(sentence: str, seed: int = 0, dtype: torch.dtype = torch.float32, offset: float = 0.0) -> list[torch.Tensor]:
    """x, residual, shift, scale."""
    rng = torch.Generator().manual_seed(seed)
    vectors = (IMAGE[0], IMAGE[axis_of(sentence)])
    arrays = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in (IMAGE, IMAGE, vectors, vectors)]
    arrays[0] += offset
    return [a.to(dtype).requires_grad_() for a in arrays]


def cotangents(seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(IMAGE, generator=rng).to(dtype) for _ in range(2))


@pytest.mark.parametrize("offset", [0.0, 1e6])
@activations
@each
def test_values_and_gradients(name, args, shape, sentence, rest, activation, offset):
    """All at once, against the float64 reference between float64 operations."""
    module, axis = module_of(name, args, activation=activation), axis_of(sentence)
    x, residual, shift, scale = given = leaves(sentence, offset=offset)
    y, total = module(x, residual=residual, modulation=(shift, scale))
    assert (total == x + residual).all(), "rounded as the operation by itself"
    dy, dtotal = cotangents()
    got = torch.autograd.grad([y, total], [*given, *module.parameters()], [dy, dtotal])

    weight, bias = module.weight.detach(), getattr(module, "bias", None)
    bias = None if bias is None else bias.detach()
    oracle = Reference(total.detach().numpy(), sentence, weight, bias, **{"affine": "c", **rest}, eps=1e-5)
    n = torch.tensor(oracle.y, requires_grad=True)
    wide = [a.detach().double().requires_grad_() for a in (shift, scale)]
    out = ACTIVATIONS[activation](n * (1 + over_image(wide[1], axis)) + over_image(wide[0], axis))
    relative(y.detach().numpy(), out.detach().numpy(), 2e-6, "y")
    dn, *dmodulation = torch.autograd.grad(out, [n, *wide], dy.double())
    dx, *small = oracle.backward(dn.numpy())
    dx = dx + dtotal.double().numpy()
    wanted = [dx, dx, *(d.numpy() for d in dmodulation), *small]
    words = ("dx", "dresidual", "dshift", "dscale", "dweight", "dbias")
    for one, other, word in zip(got, wanted, words, strict=False):
        relative(one.numpy(), other, 1e-5, word)


@each
def test_each_argument_by_itself(name, args, shape, sentence, rest):
    """Against the same module without them, to the bit where nothing is rounded in between."""
    plain, axis = module_of(name, args), axis_of(sentence)
    x, residual, shift, scale = leaves(sentence, 2)
    n = plain(x)
    for activation, function in ACTIVATIONS.items():
        torch.testing.assert_close(module_of(name, args, activation=activation)(x), function(n), rtol=0, atol=0)
    y, total = plain(x, residual=residual)
    torch.testing.assert_close(y, plain(x + residual), rtol=0, atol=0)
    assert (total == x + residual).all()
    for modulation in ((shift, scale), (over_image(shift, axis), over_image(scale, axis))):
        wanted = n * (1 + over_image(scale, axis)) + over_image(shift, axis)
        torch.testing.assert_close(plain(x, modulation=modulation), wanted, rtol=1e-6, atol=1e-6)
    at_each = torch.randn(IMAGE), torch.randn(IMAGE)
    torch.testing.assert_close(plain(x, modulation=at_each), n * (1 + at_each[1]) + at_each[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        plain(x, modulation=(shift[:1], scale)), plain(x, modulation=(shift[:1] + 0 * shift, scale))
    )


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_those_of_the_sum(training):
    one, other = (made("BatchNorm2d", (6,), activation=a).train(training) for a in ("relu", None))
    x, residual, *_ = leaves("[n] c [h w]")
    y, total = one(x, residual=residual)
    torch.testing.assert_close(y, F.relu(other(total)), rtol=0, atol=0)
    for mine, theirs in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    instance = A.InstanceNorm2d(6, track_running_stats=True, activation="relu").train(training)
    y, total = instance(x, residual=residual)
    wanted = F.instance_norm(total, torch.zeros(6), torch.ones(6), use_input_stats=training)
    torch.testing.assert_close(y, F.relu(wanted), rtol=0, atol=1e-5)


def small_cases() -> list[Any]:
    mean, variance = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 1
    f = A.functional
    cases = {
        "layer": (lambda x, w, **more: f.layer_norm(x, (4,), w, **more), (2, 3, 4)),
        "rms2d": (lambda x, w, **more: f.rms_norm2d(x, w, **more), (2, 4, 3)),
        "group": (lambda x, w, **more: f.group_norm(x, 2, w, **more), (2, 4, 3)),
        "batch, inference": (lambda x, w, **more: f.batch_norm(x, mean, variance, w, **more), (2, 4, 3)),
    }
    pairs = zip(cases.items(), ("silu", "gelu", "relu", "gelu_tanh"), strict=True)
    return [pytest.param(*case, activation, id=name) for (name, case), activation in pairs]


def doubles(shape: tuple[int, ...], *more: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, shape, *more)]


@pytest.mark.parametrize(("norm", "shape", "activation"), small_cases())
def test_derivatives_of_every_kind(norm, shape, activation):
    given = doubles(shape, (2, 4), (2, 4), (4,))

    def call(x, residual, shift, scale, weight):
        return norm(x, weight, residual=residual, modulation=(shift, scale), activation=activation)

    assert torch.autograd.gradcheck(call, given, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, given, check_fwd_over_rev=True, fast_mode=True)
    # And those of functions, which take another way.
    given = [a.detach() for a in given]
    dy = torch.randn(shape, dtype=torch.float64)

    def loss(*given):
        y, total = call(*given)
        return (y * dy + y * total).sum()

    leaf = [a.clone().requires_grad_() for a in given]
    wanted = torch.autograd.grad(loss(*leaf), leaf)
    for one, other in zip(func.grad(loss, argnums=tuple(range(5)))(*given), wanted, strict=True):
        torch.testing.assert_close(one, other)
    tangents = tuple(torch.randn_like(a) for a in given)
    pushed = func.jvp(loss, tuple(given), tangents)[1]
    torch.testing.assert_close(pushed, sum((t * d).sum() for t, d in zip(tangents, wanted, strict=True)))
    many = [torch.stack([a, a + 1]) for a in given]
    each_of = [func.grad(loss)(*(a[i] for a in many)) for i in range(2)]
    torch.testing.assert_close(func.vmap(func.grad(loss))(*many), torch.stack(each_of))


@activations
def test_activations_by_themselves_have_both_derivatives(activation):
    x, _ = doubles((3, 4))
    layer = A.LayerNorm(4, activation=activation, dtype=torch.float64)
    assert torch.autograd.gradcheck(layer, x, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, x, fast_mode=True)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize(
    ("mutant", "word"),
    [
        (lambda y, shift, scale, *rest: torch_fused._modulate(y, shift, scale.detach(), *rest), "scale"),
        (lambda y, shift, scale, *rest: torch_fused._modulate(y, shift, scale - 1, *rest), "1 + scale"),
        (lambda y, shift, scale, *rest: torch_fused._modulate(y, scale, shift, *rest), "order"),
        (lambda y, shift, scale, a, d: torch_fused._modulate(y, shift, scale, None, d), "activation"),
    ],
    ids=["no gradient of scale", "scale for 1 + scale", "pair turned around", "no activation"],
)
def test_mutants_are_found(mutant, word, activation, monkeypatch):
    case = next(case for case in MODULES if case[0] == "GroupNorm")
    test_values_and_gradients(*case, activation, 0.0)
    monkeypatch.setattr(torch_fused, "_modulated", mutant)
    with pytest.raises((AssertionError, RuntimeError)):
        test_values_and_gradients(*case, activation, 0.0)


def test_wrong_derivatives_are_found(monkeypatch):
    case = next(case for case in MODULES if case[0] == "LayerNorm2d")
    table = torch_fused._ACTIVATIONS
    monkeypatch.setattr(torch_fused, "_ACTIVATIONS", {**table, "gelu": (table["gelu"][0], table["gelu_tanh"][1])})
    with pytest.raises(AssertionError):
        test_values_and_gradients(*case, "gelu", 0.0)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@activations
@each
def test_half_precision(name, args, shape, sentence, rest, activation, half):
    """Within 2 units in the last place of float64 on the same sum, at the scale of y."""
    module, axis = module_of(name, args, activation=activation), axis_of(sentence)
    x, residual, shift, scale = leaves(sentence, 4, half)
    y, total = module(x, residual=residual, modulation=(shift.float(), scale))
    assert y.dtype == total.dtype == half
    assert (total == x + residual).all()
    weight, bias = module.weight.detach(), getattr(module, "bias", None)
    bias = None if bias is None else bias.detach()
    n = Reference(total.detach().float().numpy(), sentence, weight, bias, **{"affine": "c", **rest}, eps=1e-5).y
    m = torch.tensor(n) * (1 + over_image(scale.double(), axis)) + over_image(shift.double(), axis)
    wanted = ACTIVATIONS[activation](m).detach()
    unit = torch.finfo(half).eps * 2 ** np.floor(np.log2(float(wanted.abs().max())))
    assert (y.double() - wanted).abs().max() <= 2 * unit
    # Gradients have the types of what they are of.
    for one, leaf in zip(torch.autograd.grad(y.sum(), [x, shift, scale]), (x, shift, scale), strict=True):
        assert (one.dtype, one.shape) == (leaf.dtype, leaf.shape)


def test_types_that_differ():
    """A float32 residual beside bfloat16: the sum stays float32, y has the input's type; so under autocast."""
    layer = A.LayerNorm(7, activation="silu")
    x, residual, *_ = leaves("n a h [c]")
    for cast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            y, total = layer(x.bfloat16(), residual=residual)
        assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
        wanted = F.silu(A.LayerNorm(7)(x.bfloat16() + residual)).bfloat16()
        torch.testing.assert_close(y, wanted, rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            halves = torch.zeros(3, 7, dtype=torch.bfloat16), torch.zeros(3, 7)
            assert layer(x, modulation=halves).dtype == torch.float32
    with pytest.raises(TypeError, match="cast it first"):
        layer(torch.ones(IMAGE, dtype=torch.int64), residual=residual)


class Chain(torch.nn.Module):
    """Norms with all of their arguments, one behind the other."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        cases = [case for case in WITH_SENTENCE if case[0] in names]
        words = [activation for activation in ACTIVATIONS if activation] * 2
        self.norms = torch.nn.ModuleList(
            module_of(name, args, activation=activation)
            for (name, args, *_), activation in zip(cases, words, strict=False)
        )

    def forward(self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """x (n, 6, 5, 7); shift and scale (n, 7)."""
        total = x
        for norm in self.norms:
            # Over the last axis there are 7 channels, elsewhere 6.
            c = 7 if type(norm) in (A.LayerNorm, A.RMSNorm) else 6
            x, total = norm(x, residual=total, modulation=(shift[:, :c], scale[:, :c]))
        return x + total


def inputs(n: int) -> list[torch.Tensor]:
    torch.manual_seed(n)
    return [torch.randn(n, *IMAGE[1:], requires_grad=True), *(torch.randn(n, 7, requires_grad=True) for _ in "ab")]


@pytest.mark.parametrize(
    ("names", "training"),
    [(("LayerNorm", "RMSNorm2d", "GroupNorm", "BatchNorm2d", "Norm"), True), (("BatchNorm2d",), False)],
    ids=["training", "inference"],
)
def test_compiles_once_for_every_batch_size(names, training):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, module = Chain(*names).train(training), Chain(*names).train(training)
    compiled, counted = torch.compile(module, fullgraph=True, backend="aot_eager"), []
    for n in (3, 4, 5, 9):
        dy = torch.randn(n, *IMAGE[1:])
        got, wanted = (
            [y := f(*given), *torch.autograd.grad(y, [*given, *m.parameters()], dy), *m.buffers()]
            for f, m, given in ((compiled, module, inputs(n)), (eager, eager, inputs(n)))
        )
        for one, two in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
        counted.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counted == [1, 2, 2, 2], "one graph for the first size, one for all others"


def test_compiled_programs_refuse_too():
    torch._dynamo.reset()
    layer = torch.compile(A.LayerNorm(6), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="the residual must have the input's shape"):
        layer(torch.randn(4, 6), residual=torch.randn(6))


def test_export_for_any_batch_size():
    module = Chain("LayerNorm2d", "RMSNorm", "InstanceNorm2d", "SyncBatchNorm", "Norm").eval()
    size = torch.export.Dim("n")
    program = torch.export.export(module, tuple(inputs(3)), dynamic_shapes=({0: size},) * 3)
    for n in (3, 5):
        torch.testing.assert_close(program.module()(*inputs(n)), module(*inputs(n)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 23])
def test_onnx(opset, tmp_path):
    """The norm stays the one node that it is, between others."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    # torch's old exporter knows no RMS normalization.
    rms = ("RMSNorm", "RMSNorm2d") if opset == 23 else ()
    module = Chain("LayerNorm", "LayerNorm2d", "GroupNorm", "InstanceNorm2d", "BatchNorm2d", *rms).eval()
    given, file = inputs(3), str(tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, tuple(given), file, opset_version=opset, dynamo=opset > 17, verbose=False)
    model = onnx.load(file)
    assert sum(node.op_type == "LayerNormalization" for node in model.graph.node) == 2
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    (y,) = session.run(None, {name: a.detach().numpy() for name, a in zip(names, given, strict=True)})
    torch.testing.assert_close(torch.tensor(y), module(*given).detach(), rtol=1e-4, atol=1e-4)


@each
def test_copies_words_and_states(name, args, shape, sentence, rest):
    module, plain = module_of(name, args, activation="silu"), module_of(name, args)
    assert repr(module).endswith(", activation='silu')")
    assert "activation" not in repr(plain)
    assert list(module.state_dict()) == list(plain.state_dict())
    x = torch.randn(IMAGE)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
    # Modules that were saved whole before there was an activation.
    saved = io.BytesIO()
    del plain.__dict__["activation"]
    torch.save(plain, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    torch.testing.assert_close(loaded(x), module_of(name, args)(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"None or one of relu, silu, gelu, gelu_tanh, and it is 'swish'"):
        module_of(name, args, activation="swish")


def test_unbatched_instances():
    layer, (x, residual, *_) = A.InstanceNorm1d(6, activation="gelu"), leaves("n c [h w]")
    x, residual = x[0, :, 0], residual[0, :, 0]
    y, total = layer(x, residual=residual, modulation=(torch.zeros(1, 6), torch.ones(1, 6, 1)))
    assert y.shape == total.shape == x.shape
    torch.testing.assert_close(y, F.gelu(2 * A.InstanceNorm1d(6)(x + residual)))


def test_layouts_stay():
    x, residual, *modulation = (a.detach() for a in leaves("n c [h w]"))
    last = [a.to(memory_format=torch.channels_last) for a in (x, residual)]
    for name, args, *_ in MODULES:
        if name in ("LayerNorm", "RMSNorm"):
            continue
        y, total = made(name, args, activation="silu")(last[0], residual=last[1], modulation=modulation)
        for one in (y, total):
            assert one.is_contiguous(memory_format=torch.channels_last), name
        wanted = made(name, args, activation="silu")(x, residual=residual, modulation=modulation)[0]
        torch.testing.assert_close(y, wanted, rtol=0, atol=1e-5)


def test_masks():
    mask, (x, residual, *modulation) = torch.rand(3, 1, 5, 7) < 0.8, leaves("n c [h w]")
    layer = made("GroupNorm", (3, 6), activation="relu")
    y, total = layer(x, mask, residual=residual, modulation=modulation)
    n = made("GroupNorm", (3, 6))(total, mask=mask)
    shift, scale = (over_image(a, 1) for a in modulation)
    torch.testing.assert_close(y, F.relu(n * (1 + scale) + shift))


def kept(call: Any) -> list[torch.Tensor]:
    """What autograd keeps of a call, each piece of memory once."""
    found: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda a: found.setdefault(a.data_ptr(), a), lambda a: a):
        y = call()
    assert y.requires_grad
    return list(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("modulated", [False, True])
@activations
def test_one_tensor_more_is_kept(activation, modulated, dtype):
    """Of x's size and type: the norm's output besides its input."""
    x, residual, *modulation = leaves("n c [h w]", dtype=dtype)
    layer = A.GroupNorm(3, 6, activation=activation, dtype=dtype)
    more = {"modulation": modulation} if modulated else {}
    large = [a for a in kept(lambda: layer(x, residual=residual, **more)[0]) if a.numel() >= x.numel()]
    assert len(large) == 1 + (modulated or activation is not None)
    assert all(a.dtype == dtype for a in large)


def test_a_module_is_a_leaf_of_a_symbolic_trace():
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = A.LayerNorm(6, activation="silu")

        def forward(self, x: torch.Tensor, stream: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            y, stream = self.norm(x, residual=stream, modulation=(shift, shift))
            return y + stream

    block, given = Block(), [torch.randn(4, 6) for _ in range(3)]
    graph = torch.fx.symbolic_trace(block)
    assert [node.op for node in graph.graph.nodes].count("call_module") == 1
    torch.testing.assert_close(graph(*given), block(*given), rtol=0, atol=0)


def test_subclasses_and_modes_see_one_call():
    seen = []

    class Named(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append((function, sorted(kwargs or {})))
            return super().__torch_function__(function, types, args, kwargs or {})

    x = torch.randn(4, 6)
    for given in ((x.as_subclass(Named), x), (x, x.as_subclass(Named))):
        seen.clear()
        y, total = A.functional.layer_norm(given[0], (6,), residual=given[1], activation="relu")
        assert seen[0] == (A.functional.layer_norm, ["activation", "mask", "modulation", "residual"])
        assert type(y) is type(total) is Named
        torch.testing.assert_close(y.as_subclass(torch.Tensor), F.relu(A.LayerNorm(6)(2 * x)))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"residual": torch.ones(5, 6)}, ValueError, r"the input's shape \(4, 5, 6\), and it has \(5, 6\)"),
        (
            {"modulation": (torch.ones(4, 6), torch.ones(6))},
            ValueError,
            r"^scale must have the shape \(4, 6\) or \(4, 5, 6\)",
        ),
        (
            {"modulation": (torch.ones(5, 6), torch.ones(4, 6))},
            ValueError,
            r"^shift must .* may be 1, and it has \(5, 6\)",
        ),
        ({"modulation": (torch.ones(4, 6, 5), torch.ones(4, 6))}, ValueError, "shift must"),
        ({"modulation": torch.ones(2, 4, 6)}, TypeError, r"a pair of tensors \(shift, scale\); .*chunk"),
        ({"modulation": (torch.ones(4, 6),)}, TypeError, "a pair of tensors"),
        ({"activation": "swish"}, ValueError, "one of relu, silu, gelu, gelu_tanh, and it is 'swish'"),
    ],
    ids=["residual", "one axis", "positions", "order", "one tensor", "no pair", "activation"],
)
def test_what_does_not_fit_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        A.functional.layer_norm(torch.randn(4, 5, 6), (6,), **given)


def test_vectors_need_an_axis_of_channels():
    """Over two axes, say, none is the channels': then a modulation has as many dimensions as the input."""
    layer, x = A.LayerNorm((5, 6)), torch.randn(4, 5, 6)
    with pytest.raises(ValueError, match=r"shape \(4, 5, 6\), where any length may be 1, and it has \(4, 6\)"):
        layer(x, modulation=(torch.ones(4, 6), torch.ones(4, 6)))
    y = layer(x, modulation=(torch.ones(4, 1, 6), torch.ones(1, 1, 1)))
    torch.testing.assert_close(y, 2 * layer(x) + 1)


def test_as_many_samples_as_positions_are_no_puzzle():
    """(n, c) are vectors of the samples, whatever it would broadcast to."""
    x, shift = torch.randn(4, 4, 4), torch.randn(4, 4)
    wanted = A.LayerNorm(4)(x) + shift[:, None]
    torch.testing.assert_close(A.LayerNorm(4)(x, modulation=(shift, torch.zeros(4, 4))), wanted)
    wanted = A.GroupNorm(2, 4)(x) + shift[:, :, None]
    torch.testing.assert_close(A.GroupNorm(2, 4)(x, modulation=(shift, torch.zeros(4, 4))), wanted)


def test_conversions_lose_no_activation():
    with pytest.raises(ValueError, match=r"GroupNorm\(activation='silu'\) has no counterpart"):
        convert(A.GroupNorm(3, 6, activation="silu"), to="nnx")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), A.BatchNorm2d(6, activation="relu")).eval()
    _, receipt = surgery.fold(model)
    assert "activation='relu' follows it" in str(receipt)
    swapped, _ = surgery.swap(model, "batch", "group", groups=3)
    assert swapped[1].activation == "relu"
    swapped, _ = surgery.swap(torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6)), "batch", "group")
    assert swapped[1].activation is None
    turned = A.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert turned[1].activation == "relu"
    assert A.replace_norms(turned) == 0


def test_reestimates_statistics_of_the_sum():
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = A.BatchNorm1d(6, activation="relu")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x, residual=x.square())[0]

    x = torch.randn(32, 6)
    block, _ = surgery.reestimate(Block(), x, batch_size=8)
    torch.testing.assert_close(block.norm.running_mean, (x + x.square()).mean(0))
