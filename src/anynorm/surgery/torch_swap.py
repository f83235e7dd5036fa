"""Swapping the norms of a torch model."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..convert import torch as dialect
from ..convert.norm import FIRST, Norm
from ..torch.replace import call_norms, replace_norms
from .folding import Refused
from .receipt import Receipt, Row
from .swapping import Wish, swapped
from .torch_holders import held_elsewhere
from .torch_norms import (
    check_same,
    describe,
    norms,
    numbers,
    place_of,
    put,
    shapes_of,
    tensor_like,
    tensors_of,
    why_not,
)
from .torch_probe import Probe
from .torch_samples import mixing
from .torch_state import Ties, tie, ties_of


def swap(model: nn.Module, wish: Wish, probe: Probe, receipt: Receipt) -> nn.Module:
    """Swap in the model itself; it is returned, or what took its place."""
    kept: dict[str, Any] = {}
    swapped: list[nn.Module] = []
    held = held_elsewhere(model)
    # A linear layer takes any rank, so that the one guessed from it says nothing.
    shapes = {} if probe.guessed_rank else probe.shapes
    over_samples = wish.target in ("group", "instance")
    mixed = mixing(model, probe) if over_samples else None
    for name, module, kind in list(norms(model, wish.source)):
        was = numbers(module)
        try:
            if id(module) in held:
                raise Refused(f"{held[id(module)]} holds it too, and would keep it")
            if over_samples and kind in ("batch", "layer", "rms"):
                _check_samples(model, name, kind, shapes.get(name, []), mixed)
            new, note = _made(module, kind, wish, shapes.get(name, []))
        except Refused as refused:
            receipt.refuse(name, module, str(refused))
            continue
        left = [key for key, t in tensors_of(module).items() if id(t) in held and getattr(new, key, None) is not t]
        note = "; ".join([note, *(f"{held[id(getattr(module, key))]} holds the old {key}" for key in left)])
        receipt.rows.append(Row(name, describe(module), describe(new), was, numbers(new), note))
        kept[name] = (module, describe(new), shapes_of(new), place_of(new, model))
        swapped.append(new)
        if module is model:
            model = new
        put(model, module, new)
    if mixed is None and over_samples and any("those behind axis 0" in row.note for row in receipt.rows):
        receipt.notes.append("that axis 0 of the norms' inputs has the samples was not seen, and is taken to be so")
    fused = call_norms(model, swapped)
    if fused:
        where = ", ".join(name or "the model itself" for name in fused)
        receipt.notes.append(f"torch's fused inference, which does not call norms, is off in {where}")
    # Copies, since the new norms have the old ones' parameters and train them; all at once, so that what norms share
    # they share there too.
    ties = ties_of(model, {name: module for name, (module, *_) in kept.items()})
    receipt.undo = partial(_undo, copy.deepcopy(kept), ties, fused)
    return model


def _check_samples(
    model: nn.Module, name: str, kind: str, shapes: list[tuple[int, ...]], mixed: dict[str, bool] | None
) -> None:
    """Raise for a norm whose samples are not on axis 0, as far as that is seen, or likely for one of sequences."""
    if mixed is not None and name in mixed:
        if mixed[name]:
            raise Refused("axis 0 of its input does not have the samples: statistics over all others would mix samples")
        return
    # Of batch normalization everybody knows where the samples are.
    sequences = kind != "batch" and (not shapes or any(len(shape) == 3 for shape in shapes))
    if sequences and any(getattr(module, "batch_first", True) is False for module in model.modules()):
        raise Refused(
            "the model has layers with batch_first=False: over the positions of an input (length, batch, channels) "
            "statistics would mix samples; give a probe= of two samples or more, on which is seen where they are"
        )


def _made(module: Any, kind: str, wish: Wish, shapes: list[tuple[int, ...]]) -> tuple[nn.Module, str]:
    if reason := why_not(module):
        raise Refused(reason)
    if kind == wish.target and wish.groups is None:
        twin = _twin(module)
        replace_norms(twin)
        return twin, "the same, anynorm's"
    if len(ranks := {len(shape) for shape in shapes}) > 1:
        raise Refused(f"its inputs have different numbers of dimensions: {sorted(ranks)}")
    try:
        norm = dialect.read(module, whole=False)
        norm = _with_rank(norm, wish.target, next(iter(ranks), None), describe(module))
        norm, notes = swapped(norm, wish, _positions(norm, shapes), alone=True, keep=0.9, correction=1)
        new = dialect.write(norm)
    except (TypeError, ValueError) as wrong:
        raise Refused(str(wrong)) from wrong
    return _fitted(new, module), "; ".join(notes)


def _twin(module: nn.Module) -> nn.Module:
    """Another module with the very same tensors, hooks and settings."""
    twin = copy.copy(module)
    for part in ("_parameters", "_buffers", "_modules", "_forward_pre_hooks"):
        setattr(twin, part, copy.copy(getattr(module, part)))
    return twin


def _with_rank(norm: Norm, target: str, rank: int | None, was: str) -> Norm:
    if rank is not None:
        return replace(norm, rank=rank)
    needs = norm.axes != (FIRST,) or target in ("batch", "instance")
    if needs and target not in ("layer", "rms") and (norm.rank is None or was.endswith("1d")):
        raise Refused("how many dimensions its input has is unknown here; give probe=")
    return replace(norm, rank=None) if was.endswith("1d") else norm


def _positions(norm: Norm, shapes: list[tuple[int, ...]]) -> int | None:
    """The least number of elements that a channel has in one sample."""
    if not shapes or not norm.axes:
        return None
    # A norm over the last axes, or over (n, c), has its channels there.
    return min(math.prod(shape[1:]) // shape[min(norm.position, len(shape) - 1)] for shape in shapes)


def _fitted(new: nn.Module, old: Any) -> nn.Module:
    """With the old one's own parameters where they fit and its activation, and all else of their type and place."""
    like = next((t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()), torch.empty(0))
    new.to(like.device, like.dtype)
    for name in ("weight", "bias"):
        theirs, ours = getattr(old, name, None), getattr(new, name, None)
        if theirs is not None and ours is not None:
            ours.requires_grad_(theirs.requires_grad)
            if theirs.shape == ours.shape:
                setattr(new, name, theirs)
    new.activation = getattr(old, "activation", None)
    return new.train(old.training)


def _undo(
    kept: dict[str, Any], ties: dict[str, Ties], fused: dict[str, dict[str, Any]], model: nn.Module, inplace: bool
) -> tuple[nn.Module, Receipt]:
    """The old norms in their places, with the values that they had when they were swapped."""
    receipt = Receipt("revert: swap")
    found: dict[str, Any] = dict(model.named_modules())
    for name, (_, became, shapes, _) in kept.items():
        check_same(name, found[name], became, shapes)
    for name, settings in fused.items():
        vars(found[name]).update(settings)
    for name, (old, _, _, then) in copy.deepcopy(kept).items():
        new = found[name]
        settled(old, then, new, model)
        old.train(new.training)
        note = tie(old, ties[name], found, name)
        receipt.rows.append(Row(name, describe(new), describe(old), numbers(new), numbers(old), note))
        if new is model:
            model = old
        put(model, new, old)
    return model, receipt


def settled(old: nn.Module, then: Any, *now: nn.Module) -> None:
    """Move a kept norm to the device and the type to which its place, `then`, went in the meantime."""
    place = place_of(*now)
    if place is not None and place != then:
        old.to(*place)


def restored(module: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Parameters and buffers back to kept values, in place."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(tensor_like(value, getattr(module, name)))
