"""torch tensors and modes that the kernels, which go by addresses, must not take at face value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import anynorm


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def call(x: torch.Tensor) -> torch.Tensor:
    return anynorm.normalize(x, "... [c]")


def test_tracers_see_the_operation():
    given, other = torch.randn(4, 8), torch.randn(4, 8)
    close(torch.jit.trace(call, (given,), check_trace=False)(other), call(other))
    graph = make_fx(call)(given)
    close(graph(other), call(other))
    assert "anynorm" in graph.code


@pytest.mark.parametrize("context", [torch.device("meta"), torch.inference_mode()], ids=["meta", "inference"])
def test_other_defaults(context):
    x = torch.randn(4, 8)
    wanted = call(x)
    with context:
        close(call(x), wanted)
        mean, variance = anynorm.moments(x, "... [c]")
    assert mean.device.type == variance.device.type == "cpu"
    close(mean, x.mean(1))


def test_gradient_under_another_default_device():
    x = torch.randn(4, 8, requires_grad=True)
    with torch.device("meta"):
        y = call(x)
    dy = torch.randn(4, 8)
    (got,) = torch.autograd.grad(y, x, dy)
    close(got, torch.autograd.grad(call(x), x, dy)[0])


def test_lazily_negated_views_and_zeros_without_memory():
    scale = torch.complex(torch.randn(8), torch.randn(8)).conj().imag
    assert scale.is_neg()
    x = torch.randn(4, 8)
    close(
        anynorm.normalize(x, "... [c]", scale=scale),
        anynorm.normalize(x, "... [c]", scale=scale.clone().resolve_neg()),
    )
    close(call(torch._neg_view(x)), call(-x))
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(call(leaf), leaf, torch._efficientzerotensor((4, 8)))
    assert not dx.any()


def test_out_may_be_where_scale_is():
    for make in (torch.tensor, np.array):
        x = make(np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32))
        wanted = anynorm.normalize(x, "... [c]", scale=make(x[0]))
        np.testing.assert_array_equal(anynorm.normalize(x, "... [c]", scale=x[0], out=x), wanted)


def test_the_offset_may_change_before_the_gradient():
    x, offset = torch.randn(4, 8, requires_grad=True), torch.zeros(8, requires_grad=True)
    y = anynorm.normalize(x, "... [c]", offset=offset)
    with torch.no_grad():
        offset += 1
    y.sum().backward()
    close(offset.grad, torch.full((8,), 4.0))


@pytest.mark.parametrize("gradient", [False, True], ids=["", "gradient"])
def test_what_a_transform_left_behind_can_be_normalized(gradient):
    left = []
    torch.func.grad(lambda x: (left.append(x), x.sum())[1])(torch.randn(4, 6))
    weight = torch.ones(6, requires_grad=gradient)
    y = anynorm.normalize(left[0], "... [c]", scale=weight)
    assert y.std(-1, correction=0).sub(1).abs().max() < 1e-3
