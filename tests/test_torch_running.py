"""Running statistics: how they move beside torch's, and with what torch has not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import anynorm.torch as A  # noqa: N812
from anynorm.kernels import cpu


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_five_batches(momentum, dtype):
    ours, theirs = (kind(6, momentum=momentum, dtype=dtype) for kind in (A.BatchNorm2d, torch.nn.BatchNorm2d))
    for step in range(5):
        x = torch.randn(3 + step, 6, 5, 4, dtype=dtype) * 2 + step
        close(ours(x), theirs(x))
        for got, wanted in zip(ours.buffers(), theirs.buffers(), strict=True):
            close(got, wanted)
    close(ours.eval()(x), theirs.eval()(x))


def test_half_precision_keeps_its_type():
    ours = A.BatchNorm1d(6, dtype=torch.bfloat16)
    ours(torch.randn(8, 6, dtype=torch.bfloat16) + 3)
    assert ours.running_mean.dtype == ours.running_var.dtype == torch.bfloat16
    assert (ours.running_mean > 0.1).all()


def test_biased_variance():
    x = torch.randn(4, 6)
    layer = A.BatchNorm1d(6, momentum=1.0, correction=0)
    layer(x)
    close(layer.running_var, x.var(0, correction=0))
    assert "correction=0" in repr(layer)


def test_a_mask_counts_what_it_lets_in():
    x, mask = torch.randn(5, 6, 7), torch.rand(5, 1, 7) < 0.5
    layer = A.BatchNorm1d(6, momentum=1.0)
    layer(x, mask=mask)
    inside = x.movedim(1, -1)[mask[:, 0]]
    close(layer.running_mean, inside.mean(0))
    close(layer.running_var, inside.var(0))
    before = layer.running_mean.clone(), layer.running_var.clone()
    layer(x, mask=torch.zeros(5, 1, 7, dtype=torch.bool))
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])


def test_instance_statistics_with_a_mask_are_averaged_over_samples():
    x, mask = torch.randn(3, 6, 7), torch.ones(3, 1, 7, dtype=torch.bool)
    mask[2] = False
    mask[1, :, 4:] = False
    layer = A.InstanceNorm1d(6, momentum=1.0, track_running_stats=True)
    layer(x, mask=mask)
    close(layer.running_mean, (x[0].mean(-1) + x[1, :, :4].mean(-1)) / 2)
    close(layer.running_var, (x[0].var(-1) + x[1, :, :4].var(-1)) / 2)


@pytest.mark.parametrize("shape", [(1, 6), (0, 6)], ids=["one", "none"])
def test_any_batch_size_trains(shape):
    layer = A.BatchNorm1d(6)
    x = (torch.randn(shape) + 2).requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = layer(x)
    assert [str(w.message)[:7] for w in caught] == (["a batch"] if shape[0] else [])
    assert torch.equal(y, torch.zeros(shape))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros(shape))
    assert torch.equal(layer.running_var, torch.ones(6))
    close(layer.running_mean, 0.1 * x[0].detach() if shape[0] else torch.zeros(6))


def test_offset_of_a_million():
    x = torch.randn(64, 6, dtype=torch.float64).float() + 1e6
    layer = A.BatchNorm1d(6, momentum=1.0)
    layer(x)
    close(layer.running_var, x.double().var(0).float())


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("kind", [A.BatchNorm1d, A.SyncBatchNorm])
def test_checkpointing_moves_them_once(kind, reentrant):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), kind(8))
    x = torch.randn(5, 6, requires_grad=True)
    y = checkpoint(model, x, use_reentrant=reentrant)
    after = [buffer.clone() for buffer in model[1].buffers()]
    y.sin().sum().backward()
    assert all(torch.equal(one, other) for one, other in zip(after, model[1].buffers(), strict=True))
    assert model[1].num_batches_tracked == 1
    got, x.grad = x.grad, None
    model(x).sin().sum().backward()
    close(got, x.grad)


def test_gradients_accumulate():
    layer = A.BatchNorm1d(6)
    x, dy = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    for batch, cotangent in zip(x, dy, strict=True):
        layer(batch).backward(cotangent)
    normal = [A.functional.batch_norm(batch, None, None, training=True) for batch in x]
    close(layer.weight.grad, sum((h * cotangent).sum(0) for h, cotangent in zip(normal, dy, strict=True)))
    close(layer.bias.grad, dy.sum((0, 1)))
    assert layer.num_batches_tracked == 2


def test_functional_call_moves_the_buffers_that_it_is_given():
    layer, x = A.BatchNorm1d(6), torch.randn(5, 6)
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    torch.func.functional_call(layer, {**dict(layer.named_parameters()), **buffers}, (x,))
    assert torch.equal(layer.running_mean, torch.zeros(6))
    close(buffers["running_mean"], 0.1 * x.mean(0))


def test_vmap_over_batches_needs_statistics_of_their_own():
    x = torch.randn(3, 5, 6)
    with pytest.raises(ValueError, match="track_running_stats=False"):
        torch.func.vmap(A.BatchNorm1d(6))(x)
    alone = A.BatchNorm1d(6, track_running_stats=False)
    close(torch.func.vmap(alone)(x), torch.stack([alone(batch) for batch in x]))
    layers = [A.BatchNorm1d(6, momentum=None) for _ in x]
    parameters, buffers = torch.func.stack_module_state(layers)
    call = lambda p, b, x: torch.func.functional_call(layers[0], (p, b), (x,))  # noqa: E731
    close(torch.func.vmap(call)(parameters, buffers, x), torch.stack([alone(batch) for batch in x]))
    close(buffers["running_mean"], x.mean(1))


@pytest.mark.skipif(bool(cpu.why_not()), reason="the CPU kernels were not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_in_evaluation_is_the_kernel_s(kind, dtype):
    layer, peer = A.BatchNorm2d(6).eval(), torch.nn.BatchNorm2d(6).eval().double()
    for tensor in (*layer.parameters(), layer.running_mean, layer.running_var):
        tensor.data.uniform_(0.5, 1.5)
    layer.running_mean += 100
    peer.load_state_dict(layer.state_dict())
    x = (100 + torch.randn(4, 6, 5, 7)).to(dtype).to(memory_format=kind).requires_grad_()
    wide, dy = x.detach().double().requires_grad_(), torch.randn(4, 6, 5, 7)
    y = layer(x)
    assert "Given" in y.grad_fn.name()
    # The statistics of the forward pass count, wherever the running ones have gone since.
    layer.train()(x)
    got = torch.autograd.grad(y, [x, *layer.parameters()], dy.to(dtype))
    wanted = torch.autograd.grad(peer(wide), [wide, *peer.parameters()], dy.to(dtype).double())
    for one, other in zip(got, wanted, strict=True):
        tolerance = 2e-6 if one.dtype == torch.float32 else 4e-3
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def test_every_derivative_in_evaluation():
    layer = A.BatchNorm1d(3).double().eval()
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 1.5)
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3, 5), (3,), (3,))]

    def call(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(call, given, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, given)


WRAPS = {
    "grad": torch.func.grad,
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
    "hessian": lambda f: lambda x: torch.func.hessian(lambda s: f(x * s))(torch.ones(())),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("kind", [A.BatchNorm2d, A.InstanceNorm2d])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_they_move_once_inside_a_derivative(kind, momentum, wrap):
    """As those of torch.nn's InstanceNorm do; its BatchNorm raises."""
    module, plain = (kind(6, momentum=momentum, track_running_stats=True) for _ in range(2))
    for mask in (None, torch.rand(3, 1, 5, 7) < 0.7):
        x = torch.randn(3, 6, 5, 7)
        WRAPS[wrap](lambda x, mask=mask: module(x, mask).sin().sum())(x)
        plain(x, mask)
    for one, other in zip(module.buffers(), plain.buffers(), strict=True):
        assert type(one) is torch.Tensor
        assert not one.requires_grad
        torch.testing.assert_close(one, other)
