"""What torch makes of anynorm.torch's modules: derivatives of functions, compiled and exported programs."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from test_torch_modules import IMAGE, MODULES, made, modules
from torch import func
from torch.utils.checkpoint import checkpoint

import anynorm
import anynorm.torch as A  # noqa: N812


def close(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def double(name: str, args: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, torch.Tensor]:
    """A module whose running statistics do not move under transforms, which forbid that, and an input."""
    module = made(name, args, dtype=torch.float64)
    if hasattr(module, "track_running_stats"):
        module.running_mean = module.running_var = module.num_batches_tracked = None
    torch.manual_seed(3)
    return module, torch.randn(2, *shape[1:-2], 2, 7, dtype=torch.float64)


@modules
def test_derivatives_of_every_kind(name, args, shape, sentence, rest):
    module, x = double(name, args, shape)
    parameters = dict(module.named_parameters())
    torch.manual_seed(4)
    dy, t = torch.randn_like(x), torch.randn_like(x)

    def loss(parameters: Any, x: torch.Tensor) -> torch.Tensor:
        return (func.functional_call(module, parameters, (x,)) * dy).sum()

    leaf = x.clone().requires_grad_()
    wanted = torch.autograd.grad(loss(parameters, leaf), [leaf, *parameters.values()], create_graph=True)
    close(func.grad(loss, argnums=1)(parameters, x), wanted[0])
    for got, want in zip(func.grad(loss)(parameters, x).values(), wanted[1:], strict=True):
        close(got, want)
    close(func.jvp(lambda x: loss(parameters, x), (x,), (t,))[1], (wanted[0] * t).sum())
    # A second derivative along t: by double backward, forward over reverse, and differences.
    (twice,) = torch.autograd.grad((wanted[0] * t).sum(), leaf)
    gradient = lambda x: func.grad(loss, argnums=1)(parameters, x)  # noqa: E731
    close(func.jvp(gradient, (x,), (t,))[1], twice)
    step = 1e-5
    close((gradient(x + step * t) - gradient(x - step * t)) / (2 * step), twice)
    many = torch.stack([x, 2 * x + 1])
    close(func.vmap(gradient)(many), torch.stack([gradient(a) for a in many]))


def test_hessian():
    module, x = A.GroupNorm(2, 4, dtype=torch.float64), torch.randn(1, 4, 2, dtype=torch.float64)
    loss = lambda x: module(x).sin().sum()  # noqa: E731
    close(func.hessian(loss)(x), torch.autograd.functional.hessian(loss, x))


def all_of_them() -> torch.nn.Sequential:
    """One model of all modules, since what torch does for a program takes seconds whatever is in it."""
    return torch.nn.Sequential(*(made(name, args) for name, args, *_ in MODULES))


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_compiles_once_for_every_batch_size(training):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, module = all_of_them().train(training), all_of_them().train(training)
    compiled, counted = torch.compile(module, fullgraph=True, backend="aot_eager"), []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lru_cache.*")
        for n in (3, 4, 5, 7):
            leaf = torch.randn(n, *IMAGE[1:], requires_grad=True)
            other = leaf.detach().clone().requires_grad_()
            dy = torch.randn(n, *IMAGE[1:])
            got, wanted = (
                [y := f(x), *torch.autograd.grad(y, [x, *m.parameters()], dy), *m.buffers()]
                for f, m, x in ((compiled, module, leaf), (eager, eager, other))
            )
            for one, two in zip(got, wanted, strict=True):
                close(one, two)
            counted.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counted == [1, 2, 2, 2], "one graph for the first size, one for all others"


def test_compiles_with_a_mask_and_without_momentum():
    torch._dynamo.reset()
    eager, module = A.BatchNorm1d(6, momentum=None), A.BatchNorm1d(6, momentum=None)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x, mask = torch.randn(5, 6, 7), torch.rand(5, 1, 7) < 0.7
        close(compiled(x, mask=mask), eager(x, mask=mask))
    for one, other in zip(module.buffers(), eager.buffers(), strict=True):
        close(one, other)


def test_compiles_with_a_checkpoint_inside():
    torch._dynamo.reset()
    eager, module = A.BatchNorm1d(6), A.BatchNorm1d(6)
    compiled = torch.compile(lambda x: checkpoint(module, x, use_reentrant=False), fullgraph=True, backend="aot_eager")
    one = torch.randn(5, 6, requires_grad=True)
    other, dy = one.detach().clone().requires_grad_(), torch.randn(5, 6)
    got, wanted = (
        [y := f(x), *torch.autograd.grad(y, [x, *m.parameters()], dy), *m.buffers()]
        for f, m, x in ((compiled, module, one), (eager, eager, other))
    )
    for a, b in zip(got, wanted, strict=True):
        close(a, b)


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_a_compiled_module_inside_a_checkpoint_moves_statistics_once(momentum, reentrant):
    torch._dynamo.reset()
    module, plain = A.BatchNorm1d(6, momentum=momentum), A.BatchNorm1d(6, momentum=momentum)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(5, 6, requires_grad=True)
        checkpoint(compiled, x, use_reentrant=reentrant).sin().sum().backward()
        plain(x.detach())
    assert module.num_batches_tracked == 2
    for one, other in zip(module.buffers(), plain.buffers(), strict=True):
        close(one, other)


def test_inductor():
    torch._dynamo.reset()
    module, x = A.BatchNorm2d(6).eval(), torch.randn(2, 6, 5, 7)
    close(torch.compile(module, fullgraph=True)(x), module(x))


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_export_for_any_batch_size(strict, tmp_path):
    module = all_of_them().eval()
    program = torch.export.export(
        module, (torch.randn(IMAGE),), dynamic_shapes=({0: torch.export.Dim("n")},), strict=strict
    )
    torch.export.save(program, tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2")
    for n in (3, 5):
        x = torch.randn(n, *IMAGE[1:])
        close(program.module()(x), module(x))


# Node by node: since which opset it is the module's function, and for how many modules it stands. Before opset 21 the
# affine parameters of GroupNormalization were a group's, which is another function.
NODES = {
    "LayerNormalization": (17, 2),
    "InstanceNormalization": (17, 1),
    "BatchNormalization": (17, 2),
    "GroupNormalization": (21, 1),
    "RMSNormalization": (23, 2),
}


@pytest.mark.parametrize("opset", [17, 18, 21, 23])
def test_onnx_has_single_nodes(opset, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    # torch's new exporter starts at opset 18.
    is_old = opset == 17
    module = torch.nn.Sequential(*(made(name, args) for name, args, *_ in MODULES)).eval()
    x, file = torch.randn(IMAGE), str(tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, opset_version=opset, dynamo=not is_old, verbose=False)
    model = onnx.load(file)
    assert [o.version for o in model.opset_import if o.domain == ""] == [opset]
    kinds = Counter(node.op_type for node in model.graph.node)
    for node, (since, number) in NODES.items():
        # Older opsets write group normalization as an instance normalization of other shapes.
        extra = node == "InstanceNormalization" and opset < NODES["GroupNormalization"][0]
        assert kinds[node] == (number + extra if opset >= since else 0), node
    if opset == 23:
        assert set(kinds) <= {*NODES, "Transpose", "Constant", "Identity"}
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.tensor(y), module(x))


class Sentence(torch.nn.Module):
    def forward(self, x):
        return anynorm.normalize(x, "n (g [c]) [...]", g=3)


@pytest.mark.parametrize("opset", [17, 18])
def test_onnx_composes_what_it_has_no_node_for(opset, tmp_path):
    """Sentences and filter response normalization, and what the old exporter knows no length of, in one model."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = torch.nn.Sequential(
        A.FilterResponseNorm(6, learned_eps=True),
        A.TLU(6),
        A.FilterResponseNorm(6, affine=False),
        A.Norm("n (g [c]) h [w]", affine="(g c) h", g=3, c=2, h=5),
        A.Norm("[n] c ...", c=6, remove="mean"),
        A.Norm("n [c] ...", c=6, remove="scale", bias=False),
        A.LayerNorm2d(6),
        A.RMSNorm2d(6),
        Sentence(),
    ).eval()
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x, file, is_old = torch.randn(IMAGE), str(tmp_path / "model.onnx"), opset == 17
    if is_old:
        open_ = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    else:
        open_ = {"dynamic_shapes": ({0: torch.export.Dim("n", min=2)},)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, opset_version=opset, dynamo=not is_old, verbose=False, **open_)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (x, torch.randn(7, *IMAGE[1:])):
        (y,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        close(torch.tensor(y), module(batch))


class Masked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(made(name, args) for name, args, *_ in MODULES)
        self.norms.append(A.Norm("n (g [c]) h w", g=3, c=2, remove="mean"))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for norm in self.norms:
            x = norm(x, mask)
        return norm(torch.where(mask, x, float("nan")), mask)


@pytest.mark.parametrize("opset", [17, 18])
def test_onnx_composes_what_has_a_mask(opset, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, file = Masked().eval(), str(tmp_path / "model.onnx")
    mask = torch.rand(IMAGE) < 0.7
    mask[0] = mask[:, 0] = False
    given = (torch.randn(IMAGE), mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, given, file, opset_version=opset, dynamo=opset == 18, verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    (y,) = session.run(None, {name: one.numpy() for name, one in zip(names, given, strict=True)})
    torch.testing.assert_close(torch.tensor(y), module(*given), rtol=1e-5, atol=1e-5, equal_nan=True)
    with pytest.raises(Exception, match=r"export the model in evaluation"):
        torch.onnx.export(
            A.BatchNorm2d(6), given, file, opset_version=17, dynamo=False, training=torch.onnx.TrainingMode.TRAINING
        )


@pytest.mark.parametrize("kind", [lambda: A.LayerNorm(7), lambda: A.BatchNorm2d(6).eval(), lambda: A.GroupNorm(2, 6)])
def test_onnx_of_one_norm_alone(kind, tmp_path):
    """torch's old exporter hands each argument over by its place."""
    pytest.importorskip("onnx")
    file = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(kind(), (torch.randn(IMAGE),), str(file), opset_version=17, dynamo=False)
    assert file.stat().st_size > 0
