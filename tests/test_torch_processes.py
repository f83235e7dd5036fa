"""Two processes over gloo: batch statistics of both together, and modules inside DDP and FSDP."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)

START = """
import sys, torch, torch.distributed as dist
import anynorm.torch as A
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
"""

SYNC = """
def close(got, wanted, atol=2e-6):
    torch.testing.assert_close(got, wanted, rtol=0, atol=atol)
parts = {"uneven": [slice(0, 7), slice(7, 10)], "one empty": [slice(0, 10), slice(10, 10)]}
for name, (mine, other) in parts.items():
    for offset in (0.0, 1e6):
        for masked in (False, True):
            x, dy = torch.randn(10, 5, 4) * 2 + offset, torch.randn(10, 5, 4)
            mask = torch.rand(10, 1, 4) < 0.7 if masked else None
            part = [mine, other][rank]
            shared = A.SyncBatchNorm.convert_sync_batchnorm(torch.nn.BatchNorm1d(5, momentum=0.5))
            assert type(shared) is A.SyncBatchNorm
            alone = A.BatchNorm1d(5, momentum=0.5)
            whole, leaf = x.clone().requires_grad_(), x[part].clone().requires_grad_()
            wanted, got = alone(whole, mask=mask), shared(leaf, mask=None if mask is None else mask[part])
            close(got, wanted[part])
            dwhole = torch.autograd.grad(wanted, [whole, *alone.parameters()], dy)
            dpart = list(torch.autograd.grad(got, [leaf, *shared.parameters()], dy[part]))
            close(dpart[0], dwhole[0][part], 1e-5)
            for d, d_whole in zip(dpart[1:], dwhole[1:]):
                dist.all_reduce(d)
                close(d, d_whole, 5e-5)
            for a, b in zip(shared.buffers(), alone.buffers()):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
"""

DERIVED = """
shared = A.SyncBatchNorm(5, affine=False, track_running_stats=False)
alone = A.BatchNorm1d(5, affine=False, track_running_stats=False)
x, t, dy = torch.randn(3, 10, 5, 4)
part = [slice(0, 7), slice(7, 10)][rank]
wanted = torch.func.jvp(alone, (x,), (t,))
for a, b in zip(torch.func.jvp(shared, (x[part],), (t[part],)), wanted):
    close(a, b[part])
forward_ad = torch.autograd.forward_ad
with forward_ad.dual_level():
    for options in ({}, {"affine": False}):
        shared, alone = A.SyncBatchNorm(5, **options), A.BatchNorm1d(5, **options)
        for module in (shared, alone):
            for parameter, value in zip(module.parameters(), (1.5, -0.5)):
                torch.nn.init.constant_(parameter, value)
        got, wanted = (
            forward_ad.unpack_dual(module(forward_ad.make_dual(a, b)))
            for module, a, b in ((shared, x[part], t[part]), (alone, x, t))
        )
        for a, b in zip(got, wanted):
            close(a, b[part])
        for a, b in zip(shared.buffers(), alone.buffers()):
            close(a, b)
            assert forward_ad.unpack_dual(a).tangent is None
shared = A.SyncBatchNorm(5, affine=False, track_running_stats=False)
alone = A.BatchNorm1d(5, affine=False, track_running_stats=False)
leaf = x.clone().requires_grad_()
(wanted,) = torch.autograd.grad((alone(leaf) * dy).sum(), leaf)
close(torch.func.grad(lambda x: (shared(x) * dy[part]).sum())(x[part]), wanted[part], 1e-5)
"""

PARALLEL = """
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
def model():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.BatchNorm1d(8), torch.nn.RMSNorm(8)]
    found = torch.nn.Sequential(*layers, torch.nn.Linear(8, 1))
    assert A.replace_norms(found) == 3
    return A.SyncBatchNorm.convert_sync_batchnorm(found)
torch.manual_seed(1)
x = torch.randn(8, 6)
def train(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model(x)
sharded = model()
fully_shard(sharded, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
parallel = [train(made, x[4 * rank : 4 * rank + 4]) for made in (DistributedDataParallel(model()), sharded)]
dist.destroy_process_group()
alone = train(model(), x)[4 * rank : 4 * rank + 4]
for got in parallel:
    torch.testing.assert_close(got, alone, rtol=1e-4, atol=1e-5)
"""


COMPILED = """
eager, whole = A.SyncBatchNorm(5), A.SyncBatchNorm(5)
compiled = torch.compile(whole, fullgraph=True)
for cut in (7, 4, 8):
    x, dy = torch.randn(10, 5, 4), torch.randn(10, 5, 4)
    part = [slice(0, cut), slice(cut, 10)][rank]
    one, other = x[part].clone().requires_grad_(), x[part].clone().requires_grad_()
    got, wanted = compiled(one), eager(other)
    close(got, wanted)
    got = torch.autograd.grad(got, [one, *whole.parameters()], dy[part])
    for a, b in zip(got, torch.autograd.grad(wanted, [other, *eager.parameters()], dy[part])):
        close(a, b, 1e-5)
    for a, b in zip(whole.buffers(), eager.buffers()):
        close(a, b)
"""


def test_two_processes(tmp_path):
    # One pair of processes for all: to start one takes longer than what it does.
    arguments = [sys.executable, "-c", START + SYNC + DERIVED + COMPILED + PARALLEL]
    running = [
        subprocess.Popen([*arguments, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)[-4000:]
