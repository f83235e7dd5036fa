"""The Triton kernels on this machine's GPU: make gpu. Without one everything here is skipped."""

from __future__ import annotations

import pytest
import torch
from cases import BY_NAME
from triton_runs import SERVED, TYPES, around, arrays, check, check_fused, differentiate

import anynorm
from anynorm.kernels import triton
from anynorm.kernels.select import select

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


@pytest.mark.parametrize("name", SOME)
def test_a_cuda_graph_holds_both_passes(name):
    case = BY_NAME[name]
    x, dy = on_device(*arrays(case))
    x.requires_grad_()

    def both():
        y = anynorm.normalize(x, kernel="triton", **case.arguments)
        return y, torch.autograd.grad(y, x, dy)[0]

    # Compiled before the capture, which nothing may interrupt.
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        wanted = both()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_more_than_two_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GB")
    x = torch.randn(2**20 + 1, 2048, device="cuda", dtype=torch.bfloat16)
    y = anynorm.normalize(x, "... [c]", kernel="triton")
    last = anynorm.normalize(x[-1:].clone(), "... [c]", kernel="triton")
    assert torch.equal(y[-1:], last)
    y = anynorm.normalize(x.view(1, -1, 2048), "n [...] c", kernel="triton")
    assert y.float().std().sub(1).abs() < 1e-2
