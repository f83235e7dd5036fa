"""torch's own sample inputs and module inputs for its normalizations, through anynorm's functions and modules.

Where anynorm differs on purpose:

- refused is a negative eps, of which the root may be that of a negative number;
- refused are statistics over one element, of which nothing but the bias is left;
- refused is an input without a channel axis, which torch's batch normalization takes if it is empty;
- an eps of 0 in training, which torch refuses, is taken;
- an empty batch moves no running statistics, and torch's become NaN.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch

pytest.importorskip("expecttest", reason="torch's test suite imports it")

import anynorm.torch as A  # noqa: N812

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
# Of torch's sample inputs in each type, how many are compared, and how many are refused on purpose.
FUNCTIONS = {
    "batch_norm": (20, 4),
    "group_norm": (17, 4),
    "instance_norm": (9, 0),
    "layer_norm": (3, 3),
    "rms_norm": (5, 1),
}
# Of torch's module inputs in each type and mode.
MODULES = {
    "BatchNorm1d": 8,
    "BatchNorm2d": 7,
    "BatchNorm3d": 7,
    "GroupNorm": 10,
    "InstanceNorm1d": 6,
    "InstanceNorm2d": 6,
    "InstanceNorm3d": 6,
    "LayerNorm": 7,
    "RMSNorm": 6,
}
# bfloat16 has 8 bits. torch rounds more than once, so that the bound is a few units at the scale of the result.
BOUNDS = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 3e-2}


def close(got: Any, wanted: Any, dtype: torch.dtype) -> None:
    assert (got is None) == (wanted is None)
    if wanted is None:
        return
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    scale = max(1.0, wanted.double().abs().max().item()) if wanted.numel() else 1.0
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=BOUNDS[dtype] * scale)


def copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return value


def run(function: Any, sample: Any) -> list[Any]:
    """y, what was moved in place, and the gradients for a random cotangent."""
    args = [copied(a) for a in (sample.input, *sample.args)]
    rest = {name: copied(a) for name, a in sample.kwargs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        y = function(*args, **rest)
    tensors = [a for a in (*args, *rest.values()) if isinstance(a, torch.Tensor)]
    leaves = [a for a in tensors if a.requires_grad]
    torch.manual_seed(1)
    dy = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    return [y.detach(), *tensors, *torch.autograd.grad(y, leaves, dy, allow_unused=True)]


def reason(name: str, sample: Any) -> str:
    """Why anynorm refuses a sample, empty where it does not."""
    x, given = sample.input, dict(sample.kwargs)
    if given.get("eps", 1.0) is not None and given.get("eps", 1.0) < 0:
        return "eps must be finite and not negative"
    if name == "batch_norm" and x.ndim < 2:
        return "dimension"
    count = {
        "layer_norm": lambda: math.prod(sample.args[0]),
        "group_norm": lambda: math.prod(x.shape[1:]) // sample.args[0],
        "instance_norm": lambda: math.prod(x.shape[2:]),
    }.get(name, lambda: 0)()
    return "over one element" if count == 1 else ""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_sample_inputs(name: str, dtype: torch.dtype) -> None:
    from torch.testing._internal.common_methods_invocations import op_db

    counts: Counter[bool] = Counter()
    for info in (op for op in op_db if op.name == f"nn.functional.{name}"):
        torch.manual_seed(0)
        for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
            function, refused = getattr(A.functional, name), reason(name, sample)
            counts[bool(refused)] += 1
            if refused:
                with pytest.raises(ValueError, match=refused):
                    run(function, sample)
                continue
            for got, wanted in zip(run(function, sample), run(info.op, sample), strict=True):
                close(got, wanted, dtype)
    assert (counts[False], counts[True]) == FUNCTIONS[name]


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_module_inputs(name: str, dtype: torch.dtype, training: bool) -> None:
    from torch.testing._internal.common_modules import module_db

    (info,) = (m for m in module_db if m.module_cls is getattr(torch.nn, name))
    torch.manual_seed(0)
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
    assert len(inputs) == MODULES[name]
    for made in inputs:
        words, given = made.constructor_input, made.forward_input
        ours, theirs = (kind(*words.args, **words.kwargs, dtype=dtype) for kind in (getattr(A, name), info.module_cls))
        assert repr(ours) == repr(theirs)
        ours.load_state_dict(theirs.state_dict())
        results = []
        for module in (ours.train(training), theirs.train(training)):
            leaf = copied(given.args[0])
            module(leaf.detach() * 2)
            y = module(leaf)
            torch.manual_seed(1)
            dy = torch.randn(y.shape, dtype=torch.float64).to(dtype)
            results.append([y, *torch.autograd.grad(y, [leaf, *module.parameters()], dy)])
            if leaf.numel():
                results[-1] += module.buffers()
        for got, wanted in zip(*results, strict=True):
            close(got, wanted, dtype if wanted.is_floating_point() else torch.float64)
        assert all(buffer.isfinite().all() for buffer in ours.buffers())


@pytest.mark.parametrize("name", MODULES)
def test_module_errors(name: str) -> None:
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

    (info,) = (m for m in module_db if m.module_cls is getattr(torch.nn, name))
    if info.module_error_inputs_func is None:
        pytest.skip("torch has none for this module")
    for error in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    ):
        words, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        # An eps of 0 divides by nothing but the standard deviation, and is taken.
        is_taken = words.kwargs.get("eps") == 0.0
        with nullcontext() if is_taken else pytest.raises(error.error_type):
            module = getattr(A, name)(*words.args, **words.kwargs)
            assert error.error_on is not ModuleErrorEnum.CONSTRUCTION_ERROR
            y = module(*given.args, **given.kwargs)
            assert y.isfinite().all()
