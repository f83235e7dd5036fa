"""The torch side of surgery: what each operation asks of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from . import torch_fold, torch_swap, torch_training
from .data import Advance
from .receipt import Receipt
from .swapping import Wish
from .torch_facts import facts
from .torch_holders import check_apart
from .torch_norms import numbers
from .torch_probe import Probe
from .torch_state import State

__all__ = [
    "Probe",
    "coarsest",
    "facts",
    "fold",
    "freeze",
    "numbers",
    "reestimate",
    "revert",
    "swap",
    "weight_decay",
    "whole",
]

weight_decay = torch_training.weight_decay


@contextmanager
def whole(model: nn.Module, inplace: bool, numbers: bool) -> Iterator[None]:
    """Let a model that is changed in place be as it was, in the same objects, where something fails.

    Args:
        numbers: whether the change is one of parameters' numbers too, which then need memory once more.
    """
    before = State(model, parameters=numbers) if inplace else None
    try:
        yield
    except BaseException:
        if before is not None:
            before.restore()
        raise


def swap(model: nn.Module, wish: Wish, probe: Probe, receipt: Receipt, inplace: bool) -> nn.Module:
    return _in_place(model, torch_swap.swap(_own(model, inplace), wish, probe, receipt), inplace)


def fold(model: nn.Module, probe: Probe, receipt: Receipt, inplace: bool) -> nn.Module:
    return torch_fold.fold(_own(model, inplace), probe, receipt)


def freeze(model: nn.Module, kind: str, frozen: bool, receipt: Receipt, inplace: bool) -> nn.Module:
    model = _own(model, inplace)
    torch_training.freeze(model, kind, frozen, receipt)
    return model


def reestimate(
    model: nn.Module, batches: Any, advance: Advance, probe: Probe, receipt: Receipt, inplace: bool
) -> tuple[Any, int | None]:
    model = _own(model, inplace)
    return model, torch_training.reestimate(model, batches, advance, receipt)


def revert(model: nn.Module, receipt: Receipt, inplace: bool) -> tuple[nn.Module, Receipt]:
    undo = receipt.undo
    assert undo is not None
    if not getattr(undo, "func", undo).__module__.startswith(__name__):
        raise ValueError("the receipt is not of this model: this one is of torch, and the receipt of another framework")
    made, back = undo(_own(model, inplace), inplace)
    return _in_place(model, made, inplace), back


def _in_place(model: nn.Module, made: nn.Module, inplace: bool) -> nn.Module:
    if inplace and made is not model:
        raise ValueError("the model is itself the norm, and cannot become another in place; leave inplace out")
    return made


def coarsest(model: nn.Module) -> float:
    """The largest rounding unit of what the model has and computes in."""
    types = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
    return max((torch.finfo(dtype).eps for dtype in types), default=0.0)


def _own(model: nn.Module, inplace: bool) -> nn.Module:
    if inplace:
        return model
    try:
        own = copy.deepcopy(model)
    except Exception as failed:
        raise ValueError(f"the model cannot be copied ({failed}); inplace=True changes it itself") from failed
    check_apart(model, own)
    return own
