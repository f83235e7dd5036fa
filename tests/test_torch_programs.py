"""What torch makes of anynorm.torch's modules: derivatives of functions, compiled and exported programs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from test_torch_modules import made, modules
from torch import func

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


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@modules
def test_compiles_once_for_every_batch_size(name, args, shape, sentence, rest, training):
    if not training and "Batch" not in name:
        pytest.skip("the same program as in training")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, module = made(name, args).train(training), made(name, args).train(training)
    compiled, counted = torch.compile(module, fullgraph=True, backend="aot_eager"), []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lru_cache.*")
        for n in (3, 4, 5):
            leaves = [torch.randn(n, *shape[1:], requires_grad=True)]
            leaves.append(leaves[0].detach().clone().requires_grad_())
            dy = torch.randn(n, *shape[1:])
            got, wanted = (
                [y := f(leaf), *torch.autograd.grad(y, [leaf, *m.parameters()], dy), *m.buffers()]
                for f, m, leaf in zip((compiled, eager), (module, eager), leaves, strict=True)
            )
            for one, other in zip(got, wanted, strict=True):
                close(one, other)
            counted.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counted == [1, 2, 2], "one graph for the first size, one for all others"


def test_compiles_with_a_mask_and_without_momentum():
    torch._dynamo.reset()
    eager, module = A.BatchNorm1d(6, momentum=None), A.BatchNorm1d(6, momentum=None)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x, mask = torch.randn(5, 6, 7), torch.rand(5, 1, 7) < 0.7
        close(compiled(x, mask=mask), eager(x, mask=mask))
    for one, other in zip(module.buffers(), eager.buffers(), strict=True):
        close(one, other)


def test_inductor():
    torch._dynamo.reset()
    module, x = A.BatchNorm2d(6).eval(), torch.randn(2, 6, 5, 7)
    close(torch.compile(module, fullgraph=True)(x), module(x))


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@modules
def test_export_for_any_batch_size(name, args, shape, sentence, rest, strict, tmp_path):
    module, x = made(name, args).eval(), torch.randn(shape)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=strict)
    if not strict:
        torch.export.save(program, tmp_path / "program.pt2")
        program = torch.export.load(tmp_path / "program.pt2")
    for n in (3, 5):
        x = torch.randn(n, *shape[1:])
        close(program.module()(x), module(x))


# What the newest opset that matters has as one node, since which opset, and the same before.
NODES = {
    "LayerNorm": ("LayerNormalization", 17),
    "LayerNorm2d": ("LayerNormalization", 17),
    "InstanceNorm2d": ("InstanceNormalization", 17),
    "BatchNorm2d": ("BatchNormalization", 17),
    "SyncBatchNorm": ("BatchNormalization", 17),
    # Before opset 21 its affine parameters were a group's, which is another function.
    "GroupNorm": ("GroupNormalization", 21),
    "RMSNorm": ("RMSNormalization", 23),
    "RMSNorm2d": ("RMSNormalization", 23),
}


@pytest.mark.parametrize("opset", [17, 18, 21, 23])
@modules
def test_onnx_has_single_nodes(name, args, shape, sentence, rest, opset, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, x, file = made(name, args).eval(), torch.randn(shape), str(tmp_path / "model.onnx")
    # The new exporter starts at 18, where nothing of this changed; the old one knows no RMS normalization.
    if opset == 17 and name.startswith("RMS"):
        pytest.skip("torch's exporter for opset 17 has no rms_norm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, opset_version=opset, dynamo=opset > 17, verbose=False)
    model = onnx.load(file)
    assert [o.version for o in model.opset_import if o.domain == ""] == [opset]
    node, since = NODES[name]
    kinds = [n.op_type for n in model.graph.node]
    assert kinds.count(node) == (opset >= since)
    if opset >= since:
        assert set(kinds) <= {node, "Transpose", "Identity", "Constant"}
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    close(torch.tensor(y), module(x))


def test_onnx_takes_no_mask(tmp_path):
    pytest.importorskip("onnxscript")

    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = A.LayerNorm(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x, mask=x > 0)

    with pytest.raises(Exception, match="take no mask"):
        torch.onnx.export(Masked(), (torch.randn(4, 6),), tmp_path / "m.onnx", dynamo=False, opset_version=17)
