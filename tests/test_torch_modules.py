"""anynorm.torch's modules as things that hold parameters and state: what they accept, refuse, keep and save."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from arrays import relative

import anynorm.torch as A  # noqa: N812
from anynorm.reference import Reference

IMAGE = (3, 6, 5, 7)
# Name, arguments, the shape of an input, and the sentence for the reference.
MODULES: tuple[tuple[str, tuple[Any, ...], tuple[int, ...], str, dict[str, Any]], ...] = (
    ("LayerNorm", (7,), IMAGE, "n a h [c]", {}),
    ("LayerNorm2d", (6,), IMAGE, "n [c] h w", {}),
    ("RMSNorm", (7, 1e-5), IMAGE, "n a h [c]", {"remove": ("scale",)}),
    ("RMSNorm2d", (6, 1e-5), IMAGE, "n [c] h w", {"remove": ("scale",)}),
    ("GroupNorm", (3, 6), IMAGE, "n (g [c]) [h w]", {"g": 3, "affine": "g c"}),
    ("InstanceNorm2d", (6, 1e-5, 0.1, True), IMAGE, "n c [h w]", {}),
    ("BatchNorm2d", (6,), IMAGE, "[n] c [h w]", {}),
    ("SyncBatchNorm", (6,), IMAGE, "[n] c [h w]", {}),
)
modules = pytest.mark.parametrize(
    ("name", "args", "shape", "sentence", "rest"), MODULES, ids=[name for name, *_ in MODULES]
)
PEERS = [name for name, *_ in MODULES if not name.endswith("Norm2d") or hasattr(torch.nn, name)]


def made(name: str, args: tuple[Any, ...], **rest: Any) -> Any:
    """A module with random parameters."""
    module = getattr(A, name)(*args, **rest)
    torch.manual_seed(2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(("offset", "size"), [(0.0, 1.0), (1e6, 1.0), (0.0, 1e30)])
@modules
def test_values_and_gradients(name, args, shape, sentence, rest, offset, size, masked):
    rng = np.random.default_rng(0)
    x = ((rng.normal(size=shape) + offset) * size).astype(np.float32)
    mask = rng.random((shape[0], 1, *shape[2:])) < 0.8 if masked and "n a h" not in sentence else None
    if masked and mask is None:
        mask = rng.random(shape[-1:]) < 0.8
    dy = rng.normal(size=shape).astype(np.float32)
    module, leaf = made(name, args), torch.tensor(x, requires_grad=True)
    y = module(leaf, mask=None if mask is None else torch.tensor(mask))
    grads = torch.autograd.grad(y, [leaf, *module.parameters()], torch.tensor(dy))
    weight, bias = module.weight.detach(), getattr(module, "bias", None)
    oracle = Reference(
        x,
        sentence,
        weight,
        None if bias is None else bias.detach(),
        **{"affine": "c", **rest},
        eps=1e-5,
        mask=mask,
    )
    relative(y.detach().numpy(), oracle.y, 2e-6, "y")
    for got, wanted, word in zip(grads, oracle.backward(dy), ("dx", "dscale", "doffset"), strict=False):
        relative(got.numpy(), wanted, 1e-5, word)


@pytest.mark.parametrize("name", PEERS)
def test_is_torch_s_module(name):
    args = next(args for other, args, *_ in MODULES if other == name)
    ours, theirs = getattr(A, name)(*args), getattr(torch.nn, name)(*args)
    # DistributedDataParallel refuses torch's own SyncBatchNorm on CPUs, so that anynorm's must not be one.
    assert isinstance(ours, torch.nn.modules.batchnorm._BatchNorm if name == "SyncBatchNorm" else type(theirs))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("name", PEERS)
def test_help_shows_torch_s_arguments(name):
    shown = dict(inspect.signature(getattr(A, name)).parameters)
    assert "activation" in shown
    assert {"args", "rest"}.isdisjoint(shown)
    for word, argument in inspect.signature(getattr(torch.nn, name)).parameters.items():
        assert (shown[word].kind, shown[word].default) == (argument.kind, argument.default)


def test_help_shows_the_arguments_of_a_subclass():
    class Wide(A.LayerNorm):
        def __init__(self, width: int) -> None:
            super().__init__(width)

    assert list(inspect.signature(Wide).parameters) == ["width"]


@modules
def test_copies(name, args, shape, sentence, rest):
    module, x = made(name, args), torch.randn(shape)
    module(x)
    module.eval()
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    loaded = getattr(A, name)(*args).eval()
    loaded.load_state_dict(torch.load(saved))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
    module.reset_parameters()
    assert (module.weight == 1).all()


@modules
def test_dtypes_devices_and_layouts(name, args, shape, sentence, rest):
    module, x = made(name, args), torch.randn(shape)
    wanted = module(x)
    for half in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", half):
            y = module(x.to(half))
        assert y.dtype == half
        torch.testing.assert_close(y.float(), wanted, rtol=0, atol=3e-2)
        assert made(name, args, dtype=half)(x.to(half)).dtype == half
    last = module(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, wanted, rtol=0, atol=1e-5)
    far = getattr(A, name)(*args, device="meta")(x.to("meta"))
    assert (far.shape, far.device.type) == (shape, "meta")
    assert module.double()(x.double()).dtype == torch.float64


@modules
def test_hooks_and_parametrizations(name, args, shape, sentence, rest):
    module, x, seen = made(name, args), torch.randn(shape), []
    wanted = module(x)
    module.register_forward_hook(lambda *given: seen.append(given[2]))
    plain = module.weight.detach().clone()

    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    torch.nn.utils.parametrize.register_parametrization(module, "weight", Doubled())
    y = module(x)
    assert seen[0] is y
    bias = module.bias.detach() if getattr(module, "bias", None) is not None else torch.zeros(())
    if bias.ndim and "[c]" not in sentence.split()[-1]:
        bias = bias.reshape(-1, 1, 1)
    torch.testing.assert_close(y - bias, 2 * (wanted - bias), rtol=0, atol=1e-5)
    assert (module.weight == 2 * plain).all()


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (A.GroupNorm(3, 6, affine=False), (2, 12, 5)),
        (A.InstanceNorm2d(6), (2, 8, 5, 5)),
        (A.InstanceNorm1d(6), (8, 5)),
        (A.BatchNorm1d(6, affine=False, track_running_stats=False), (4, 8)),
        (A.LayerNorm2d(6, elementwise_affine=False), (2, 8, 5, 5)),
        (A.RMSNorm2d(6, elementwise_affine=False), (2, 8, 5, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_another_number_of_channels_is_refused(module, shape):
    with pytest.raises(ValueError, match="was made for 6 channels, and an input of shape"):
        module(torch.randn(shape))


@pytest.mark.parametrize(
    ("module", "shape"),
    [(A.GroupNorm(6, 6), (2, 6)), (A.LayerNorm(1), (4, 1)), (A.InstanceNorm2d(6), (2, 6, 1, 1))],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_statistics_over_one_element_are_refused(module, shape):
    with pytest.raises(ValueError, match="over one element"):
        module(torch.randn(shape))


def test_parameters_that_do_not_fit_are_refused():
    x = torch.randn(4, 6)
    for call in (
        lambda: A.functional.layer_norm(x, (6,), torch.ones(5)),
        lambda: A.functional.layer_norm(x, (5,)),
        lambda: A.functional.group_norm(x, 4),
        lambda: A.functional.batch_norm(x, torch.zeros(5), torch.ones(5)),
        lambda: A.functional.batch_norm(x, torch.zeros(5), torch.ones(5), training=True),
        lambda: A.functional.batch_norm(x, None, None),
    ):
        with pytest.raises(ValueError, match=r"shape|size|channels|running"):
            call()


def test_norm_of_a_sentence():
    layer, x = A.Norm("n (g [c]) [...]", g=3, c=2, eps=1e-3), torch.randn(IMAGE)
    torch.testing.assert_close(layer(x), torch.nn.functional.group_norm(x, 3, eps=1e-3), rtol=0, atol=1e-5)
    assert A.Norm("... [c]", c=7, remove="scale", bias=False).bias is None
    assert A.Norm("n [h] w c", affine="").weight is None
    assert A.Norm("n [h] w c", affine="h", h=6)(x).shape == IMAGE
    with pytest.raises(ValueError, match="the length of c is missing: give it"):
        A.Norm("n (g [c]) [...]", g=3)
    with pytest.raises(ValueError, match=r'cannot have the axes "[.]{3}"'):
        A.Norm("n [...]", affine="...")


def test_subclasses_of_tensor_keep_their_class():
    class Named(torch.Tensor):
        pass

    x = torch.randn(4, 6)
    y = A.LayerNorm(6)(x.as_subclass(Named))
    assert type(y) is Named
    torch.testing.assert_close(y.as_subclass(torch.Tensor), A.LayerNorm(6)(x))
    with torch.device("meta"):
        assert A.functional.layer_norm(x, (6,)).device.type == "cpu"


@modules
def test_symbolic_trace_takes_a_module_for_a_leaf(name, args, shape, sentence, rest):
    model = torch.nn.Sequential(torch.nn.ReLU(), made(name, args))
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    x = torch.randn(shape)
    torch.testing.assert_close(graph(x), model(x))
    if name.endswith("BatchNorm2d"):
        assert model[1].num_batches_tracked == 2, "tracing moves nothing, and its graph does"
    root = model[1].eval()
    for alone in (torch.fx.symbolic_trace(root), torch.fx.GraphModule(root, torch.fx.Tracer().trace(root))):
        torch.testing.assert_close(alone(x), root(x))
        assert [*alone.parameters()] == [*root.parameters()]


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "make", [lambda **rest: A.FilterResponseNorm(6, learned_eps=True, **rest), lambda **rest: A.TLU(6, -0.5, **rest)]
)
def test_filter_response_norm_is_a_module_like_the_others(make):
    """Made on the meta device and filled later; a leaf of torch.fx; refused by torch.jit.script in words."""
    wanted, x = make(), torch.randn(IMAGE)
    late = make(device="meta").to_empty(device="cpu")
    for parameter in late.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    late.reset_parameters()
    for name, values in wanted.state_dict().items():
        torch.testing.assert_close(late.state_dict()[name], values)
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU(), wanted))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    torch.testing.assert_close(graph(x), wanted(x.relu()))
    with pytest.raises(TypeError, match="script cannot read"):
        torch.jit.script(wanted)


def test_functions_are_nodes_of_a_symbolic_trace():
    graph = torch.fx.symbolic_trace(lambda x: A.functional.layer_norm(x + 1, (6,)))
    assert A.functional.layer_norm in [node.target for node in graph.graph.nodes]


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_scripting_is_refused_in_words():
    with pytest.raises(TypeError, match="cannot read GroupNorm"):
        torch.jit.script(torch.nn.Sequential(A.GroupNorm(3, 6)))


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (A.GroupNorm(3, 6), (6,), "too few dimensions"),
        (A.LayerNorm2d(6), (), "too few dimensions"),
        (A.LayerNorm(6), (4, 7), r"must end in \(6,\), and its shape is \(4, 7\)"),
        (A.RMSNorm((5, 6)), (4, 7, 6), r"must end in \(5, 6\)"),
        (A.LayerNorm(6), (), r"must end in \(6,\)"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_named(module, shape, words):
    with pytest.raises(ValueError, match=words):
        module(torch.randn(shape))


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=["jagged", "strided"])
@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_nested_tensors(kind, layout):
    module, parts = getattr(A, kind)(6), [torch.randn(n, 6, requires_grad=True) for n in (3, 5)]
    y = module(torch.nested.as_nested_tensor(parts, layout=layout))
    assert y.layout == layout
    got = torch.autograd.grad([one.sin().sum() for one in y.unbind()], parts)
    wanted = torch.autograd.grad([module(part).sin().sum() for part in parts], parts)
    for one, other in zip((*y.unbind(), *got), (*map(module, parts), *wanted), strict=True):
        torch.testing.assert_close(one, other)


def test_nested_tensors_that_differ_where_it_counts():
    x = torch.nested.nested_tensor([torch.randn(3, 6), torch.randn(5, 6)], layout=torch.jagged)
    with pytest.raises(ValueError, match="differ in length along an axis that is normalized"):
        A.functional.layer_norm(x, (5, 6))


def test_a_mask_may_be_numpy_s():
    x, mask = torch.randn(4, 6), torch.rand(4, 6) < 0.7
    torch.testing.assert_close(A.LayerNorm(6)(x, mask.numpy()), A.LayerNorm(6)(x, mask))


@pytest.mark.parametrize("mask", [[True] * 6, torch.ones(6), torch.ones(6, dtype=torch.int64)], ids=str)
def test_a_mask_that_is_no_boolean_tensor_is_refused(mask):
    for module in (A.LayerNorm(6), A.BatchNorm1d(6), A.Norm("n [c]", c=6)):
        with pytest.raises(TypeError, match="the mask must be"):
            module(torch.randn(4, 6), mask=mask)


def test_a_mask_that_leaves_one_element_warns():
    """An error without a mask. Where it leaves none, nobody expects anything."""
    x, mask = torch.randn(3, 5), torch.ones(3, 5, dtype=torch.bool)
    mask[1, 1:] = False
    first = torch.tensor([[True], [False], [False]])
    for layer, few in ((A.LayerNorm(5), mask), (A.LayerNorm(5, activation="relu"), mask), (A.BatchNorm1d(5), first)):
        with pytest.warns(UserWarning, match="only one element into a statistic"):
            layer(x, few)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A.RMSNorm(5)(x, mask)
        mask[1] = False
        A.LayerNorm(5)(x, mask)
        A.LayerNorm(5)(torch.ones(3, 5), mask)
