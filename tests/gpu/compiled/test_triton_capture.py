"""What a CUDA graph's capture forbids, the Triton kernels' door does not do: shown without a GPU.

Its tensors have no memory and so no values: whoever waits for one, or takes it to the host, gets an error.
"""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton_code import arrays, recorded

from anynorm.kernels.triton import interpreted
from anynorm.kernels.triton import torch as door

pytestmark = pytest.mark.skipif(interpreted(), reason="Triton was told to interpret its kernels")

FLOAT, HALF = torch.float32, torch.bfloat16
# Sentence, shape, type, whether channels are last in memory; one for each way to cut and each pair of launches.
CASES = {
    "rows, held": ("... [c]", (4096, 1024), HALF, False),
    "rows, cut": ("... [c]", (512, 65536), FLOAT, False),
    "RMS": ("... [c]", (4096, 1024), FLOAT, False, ("scale",)),
    "columns, held": ("n [c] ...", (8, 96, 56, 56), FLOAT, False),
    "columns, cut": ("n [c] ...", (16, 4096, 16, 16), HALF, False),
    "groups of rows": ("n (g [c]) [...]", (64, 64, 64, 64), FLOAT, False),
    "groups of rows, cut": ("n (g [c]) [...]", (1, 128, 20, 256, 256), HALF, False),
    "groups of columns": ("n (g [c]) [...]", (32, 320, 64, 64), HALF, True),
    "batch": ("[n] c [...]", (64, 256, 56, 56), FLOAT, True),
    "empty": ("n (g [c]) [...]", (0, 64, 8, 8), FLOAT, False),
}
# Memory from torch's pool, views of it, what the device does in its own order, and a question about types.
ALLOWED = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "clone", "copy_", "_to_copy", "zero_",
    "view", "_unsafe_view", "permute", "slice", "split", "expand", "detach", "alias", "promote_types",
}  # fmt: skip


class Watch(TorchDispatchMode):
    """Notes what torch does, and all memory that comes of it."""

    def __init__(self, *given: torch.Tensor | None) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.memory = {_memory(a) for a in given if a is not None}
        self.kept = list(given)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.names.add(function.overloadpacket.__name__)
        for a in tree_leaves((arguments, options, result)):
            assert not isinstance(a, torch.Tensor) or a.is_meta
        made = [a for a in tree_leaves(result) if isinstance(a, torch.Tensor)]
        self.memory |= {_memory(a) for a in made}
        # Freed memory would be another tensor's.
        self.kept += made
        return result


def _memory(a: torch.Tensor) -> int:
    return a.untyped_storage()._cdata


def _given(name: str, activation: str | None, with_all: bool):
    plan, x, scale, offset = arrays(*CASES[name], **({"g": 32} if "(g" in CASES[name][0] else {}))
    if not with_all:
        return plan, x, scale, offset, door.Around(None, None, None, activation)
    vectors = torch.empty(x.shape[0], 2 * math.prod(plan.affine.shape), dtype=x.dtype, device="meta")
    shift, gain = vectors.chunk(2, dim=1) if not name.startswith("batch") else (None, None)
    return plan, x, scale, offset, door.Around(torch.empty_like(x), shift, gain, activation)


@pytest.mark.parametrize("with_all", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_and_all_memory_is_of_the_pool(name, with_all):
    plan, x, scale, offset, around = _given(name, "gelu" if with_all else None, with_all)
    # As autograd gives it where y is summed: without memory for each element.
    dy = torch.empty((), dtype=x.dtype, device="meta").expand(x.shape)
    given = [x, scale, offset, dy, *around[:3]]
    with recorded() as launches, Watch(*given) as watch:
        y, total, mean, variance, saved = door.fused_forward(x, scale, offset, plan, 1e-5, around)
        door.forward(x, scale, offset, plan, 1e-5, torch.empty_like(x), statistics=False, gradient=False)
        door.moments(x, plan)
        door.apply(x, mean, variance, scale, offset, plan, 1e-5, gradient=True)
        door.backward(x, dy, scale, offset, saved, plan, 1e-5)
        behind = around._replace(residual=None)
        door.fused_backward(x if total is None else total, y, total, scale, offset, saved, plan, 1e-5, behind)
    assert watch.names <= ALLOWED, watch.names - ALLOWED
    assert bool(launches) == (name != "empty")
    for launch in launches:
        assert all(type(n) is int for n in launch.grid)
        for a in launch.arguments.values():
            assert not isinstance(a, torch.Tensor) or _memory(a) in watch.memory


def test_who_waits_is_seen():
    a = torch.empty(3, device="meta")
    for waits in (a.sum().item, lambda: bool(a.sum()), a.cpu, a.tolist, a.numpy):
        with Watch(a), pytest.raises((RuntimeError, NotImplementedError, TypeError, AssertionError)):
            waits()
