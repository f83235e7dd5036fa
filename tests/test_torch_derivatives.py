"""Derivatives of derivatives in torch, eager, traced and compiled, beside those of the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import anynorm
import anynorm.torch as A  # noqa: N812

F = torch.func
SHAPE = (2, 4, 3)


def formula(x, dims, remove_mean=True):
    """One statistic over `dims` of x, viewed as (n, g, c, length)."""
    split = x.reshape(x.shape[0], 2, 2, x.shape[-1])
    d = split - split.mean(dims, keepdim=True) if remove_mean else split
    return (d / ((d * d).mean(dims, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)


# Each with the same in torch's own operators.
NORMS = {
    "group": (A.GroupNorm(2, 4), lambda x: formula(x, (2, 3))),
    "layer": (A.LayerNorm(3), lambda x: formula(x, 3)),
    "RMS": (A.RMSNorm(3, eps=1e-5), lambda x: formula(x, 3, False)),
    "instance": (A.InstanceNorm1d(4), lambda x: formula(x, 3)),
    "batch": (A.BatchNorm1d(4, track_running_stats=False), lambda x: formula(x, (0, 3))),
    "masked": (
        lambda x: anynorm.normalize(x, "n (g [c]) [...]", g=2, mask=x.isfinite()),
        lambda x: formula(x, (2, 3)),
    ),
    "the moments": (
        lambda x: torch.stack(anynorm.moments(x, "n c [...]")),
        lambda x: torch.stack((x.mean(-1), x.var(-1, correction=0))),
    ),
}
norms = pytest.mark.parametrize("name", NORMS)


def close(got, wanted):
    torch.testing.assert_close(got.detach(), wanted.detach(), rtol=1e-9, atol=1e-9)


def given(name):
    own, other = NORMS[name]
    if isinstance(own, torch.nn.Module):
        own.double()
    return own, other, *(torch.randn(SHAPE, dtype=torch.float64) for _ in range(3))


def along(f, t):
    return lambda x: F.jvp(f, (x,), (t,))[1]


def slope(f):
    return F.grad(lambda x: f(x).sin().sum())


@norms
def test_of_every_order(name):
    own, other, x, t, u = given(name)
    close(along(along(own, t), u)(x), along(along(other, t), u)(x))
    close(along(slope(own), t)(x), along(slope(other), t)(x))
    close(slope(along(own, t))(x), slope(along(other, t))(x))
    for one in (F.jacfwd, F.jacrev):
        for two in (F.jacfwd, F.jacrev):
            close(one(two(own))(x), one(two(other))(x))
            close(*(one(two(lambda x, f=f: f(x).sin().sum()))(x) for f in (own, other)))
    close(F.linearize(own, x)[1](t), along(other, t)(x))


@norms
def test_inside_what_is_traced(name):
    own, other, x, t, _ = given(name)
    for wrap in (lambda f: along(f, t), slope, F.jacfwd, F.jacrev):
        close(make_fx(wrap(own))(x)(x), wrap(other)(x))


@pytest.mark.parametrize("name", ["group", "batch", "masked", "the moments"])
def test_inside_what_is_compiled(name):
    own, other, x, t, _ = given(name)

    def all_of(f):
        return lambda x: (along(f, t)(x), slope(f)(x), F.jacrev(f)(x), F.vmap(lambda x: f(x[None])[0])(x))

    torch._dynamo.reset()
    got = torch.compile(all_of(own), fullgraph=True, backend="aot_eager")(x)
    for one, wanted in zip(got, all_of(other)(x), strict=True):
        close(one, wanted)


@pytest.mark.parametrize("name", ["group", "batch"])
def test_second_derivatives_inside_what_is_compiled(name):
    """With scale and offset. torch compiles no jacfwd of jacfwd: not even of `lambda x: (x * 1).reshape(2, 2, 6)`."""
    module, other, x, t, _ = given(name)
    own = type(module)(*((2, 4) if name == "group" else (4, 1e-5, 0.1, True, False)), dtype=torch.float64)
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter)
    for wrap in (lambda f: F.hessian(lambda x: f(x).sin().sum()), lambda f: slope(along(f, t))):
        torch._dynamo.reset()
        got = torch.compile(wrap(own), fullgraph=True, backend="aot_eager")(x)
        close(got, wrap(lambda x: other(x) * own.weight[:, None] + own.bias[:, None])(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_mode_inside_what_is_compiled(dtype):
    norms = [
        A.LayerNorm2d(4),
        A.Norm("n (g [c]) [...]", g=2, c=2),
        A.FilterResponseNorm(4),
        A.FilterResponseNorm(4, learned_eps=True),
    ]
    x, t = torch.randn(2, 2, 4, 3, 5).to(dtype)
    eager = [along(norm.to(dtype), t) for norm in norms]
    torch._dynamo.reset()
    got = torch.compile(lambda x: [f(x) for f in eager], fullgraph=True, backend="aot_eager")(x)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for one, f in zip(got, eager, strict=True):
        torch.testing.assert_close(one, f(x), rtol=tolerance, atol=tolerance)
    exact = [along(norm.double(), t.double())(x.double()).to(dtype) for norm in norms]
    for one, wanted in zip(got, exact, strict=True):
        torch.testing.assert_close(one, wanted, rtol=tolerance, atol=tolerance)
