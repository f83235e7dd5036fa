"""The Triton kernels on this machine's GPU: make gpu. Without one everything here is skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import BY_NAME
from triton_runs import SERVED, TYPES, around, arrays, asked_for, check, check_fused, differentiate

import anynorm
from anynorm.kernels import triton
from anynorm.kernels.select import select
from anynorm.ops.torch_fused import Fused

pytestmark = pytest.mark.skipif(
    bool(triton.why_not()) or triton.interpreted() or not torch.cuda.is_available(),
    reason=triton.why_not() or "torch sees no CUDA device",
)

SOME = ("group, channels last", "group, channels first", "layer, last axis")
# Tiles of every kind: held, split, and rows that are too long for a program.
LARGE = [
    ("n [...] (g [c])", (2, 64, 64, 320), {"g": 32}),
    ("n (g [c]) [...]", (2, 320, 64, 64), {"g": 32}),
    ("n (g [c]) [...]", (1, 128, 5, 128, 128), {"g": 32}),
    ("... [c]", (64, 1152), {}),
    ("... [c]", (16, 65536), {}),
    ("n [c] ...", (2, 4096, 14, 14), {}),
    ("[n] c [...]", (64, 33, 7, 7), {}),
]


def on_device(*tensors):
    return [t.cuda() for t in tensors]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_values(case, dtype):
    assert select(case.plan, "torch", "cuda", dtype, "triton").kernel == "triton"
    check(case, *on_device(*arrays(case, dtype=dtype)))


@pytest.mark.parametrize(("pattern", "shape", "sizes"), LARGE, ids=str)
def test_values_of_large_arrays(pattern, shape, sizes):
    case = type(SERVED[0])("large", pattern, shape, sizes=sizes)
    check(case, *on_device(*arrays(case)))


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", [*SOME, "layer, channels first", "instance, channels first"])
def test_values_with_something_around(name, dtype, activation):
    case = BY_NAME[name]
    residual, modulation = around(case, dtype)
    check_fused(case, *on_device(*arrays(case, dtype=dtype), residual), tuple(on_device(*modulation)), activation)


@pytest.mark.parametrize(("pattern", "shape", "sizes"), LARGE, ids=str)
def test_values_of_large_arrays_with_something_around(pattern, shape, sizes):
    case = type(SERVED[0])("large", pattern, shape, sizes=sizes)
    residual, modulation = around(case, modulation=not pattern.startswith("["))
    modulation = None if modulation is None else tuple(on_device(*modulation))
    check_fused(case, *on_device(*arrays(case), residual), modulation, "gelu")


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(("mean", "std", "eps"), [(1e6, 1.0, 1e-5), (0.0, 1e30, 1e-5), (0.0, 1e-30, 0.0)])
def test_offset_and_scale(name, mean, std, eps):
    case = BY_NAME[name]
    check(case, *on_device(*arrays(case, mean, std)), eps=eps)


@pytest.mark.parametrize(("pattern", "shape", "sizes"), LARGE, ids=str)
def test_the_same_bits_run_after_run_and_alone(pattern, shape, sizes):
    case = type(SERVED[0])("large", pattern, shape, sizes=sizes)
    x, dy = on_device(*arrays(case))
    y, grads, _ = differentiate(case, x, dy)
    for _ in range(3):
        again, grads_again, _ = differentiate(case, x, dy)
        assert torch.equal(again, y)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(grads_again, grads, strict=True))
    if not pattern.startswith("["):
        alone, (alone_dx, *_), _ = differentiate(case, x[:1].clone(), dy[:1].clone())
        assert torch.equal(alone, y[:1])
        assert torch.equal(alone_dx, grads[0][:1])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("pattern", "shape", "sizes"), LARGE, ids=str)
def test_a_cuda_graph_replays_both_passes_with_other_inputs(pattern, shape, sizes, fused):
    case = type(SERVED[0])("large", pattern, shape, sizes=sizes)
    x, dy = on_device(*arrays(case))
    scale, offset = on_device(*(torch.tensor(a) for a in case.parameters(np.random.default_rng(5))))
    residual, modulation = around(case, residual=fused, modulation=fused and not pattern.startswith("["))
    residual = None if residual is None else residual.cuda()
    vectors = on_device(*(modulation or ()))
    leaves = [a.requires_grad_() for a in (x, scale, offset, *vectors)]
    call = Fused(residual, tuple(vectors) or None, "silu" if fused else None)

    def both():
        with asked_for():
            out = call.normalize_checked(x, scale, offset, None, case.spec.encode(), 1e-5)[0]
        outs = list(out) if fused else [out]
        return *outs, *torch.autograd.grad(outs, leaves, [dy] * len(outs))

    # Compiled before the capture, which nothing may interrupt.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        first = [a.clone() for a in both()]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))
    with torch.no_grad():
        x.mul_(-3.0).add_(2.0)
        dy.copy_(dy.flip(0))
        scale.add_(1.0)
        offset.neg_()
    graph.replay()
    torch.cuda.synchronize()
    second = both()
    assert all(torch.equal(a, b) for a, b in zip(found, second, strict=True))
    assert not torch.equal(second[0], first[0])


def test_more_than_two_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GB")
    x = torch.randn(2**20 + 1, 2048, device="cuda", dtype=torch.bfloat16)
    y = anynorm.normalize(x, "... [c]", kernel="triton")
    last = anynorm.normalize(x[-1:].clone(), "... [c]", kernel="triton")
    assert torch.equal(y[-1:], last)
    y = anynorm.normalize(x.view(1, -1, 2048), "n [...] c", kernel="triton")
    assert y.float().std().sub(1).abs() < 1e-2
