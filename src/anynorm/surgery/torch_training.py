"""How a torch model's norms train: frozen or not, which statistics they have, which parameters decay."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from ..catalogue import CATALOGUE
from ..ops import moments
from .data import Advance
from .moments import Moments, check_range
from .receipt import Receipt, Row
from .torch_norms import Stay, describe, is_frozen, kind_of, norms, numbers
from .torch_probe import arguments, evaluating
from .torch_swap import check_shapes, restored

_BATCH = CATALOGUE["batch"].spec(channels_first=True).text
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def freeze(model: nn.Module, kind: str, frozen: bool, receipt: Receipt) -> None:
    """Freeze or unfreeze in the model itself."""
    kept = {}
    for name, module, _ in norms(model, kind):
        state = _state(module)
        _freeze(module, [frozen] * len(state[1]), frozen, _above(model, name).training)
        if _state(module) == state:
            receipt.refuse(name, module, "it is so already")
            continue
        kept[name] = state
        became = "frozen" if frozen else "learning"
        receipt.rows.append(Row(name, describe(module), became, numbers(module), numbers(module)))
    receipt.undo = partial(_undo_freeze, kept)


def _state(module: nn.Module) -> tuple[bool, list[bool]]:
    return is_frozen(module), [not p.requires_grad for p in module.parameters()]


def _above(model: nn.Module, name: str) -> nn.Module:
    """The module that has the one of this name, or the model itself."""
    return model.get_submodule(name.rpartition(".")[0])


def _freeze(module: Any, parameters: list[bool], statistics: bool, training: bool) -> None:
    """`training`: whether what has the module is in training."""
    for parameter, frozen in zip(module.parameters(), parameters, strict=True):
        parameter.requires_grad_(not frozen)
    if statistics == is_frozen(module) or getattr(module, "running_mean", None) is None:
        return
    if statistics:
        module.register_forward_pre_hook(Stay())
        return
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, Stay):
            del module._forward_pre_hooks[key]
            # Only what the hook did: a norm may have been in evaluation by itself.
            module.training = module.training or (hook.changed and training)


def _undo_freeze(kept: dict[str, Any], model: nn.Module, inplace: bool) -> tuple[nn.Module, Receipt]:
    receipt = Receipt("revert: freeze or unfreeze")
    found = dict(model.named_modules())
    for name, (statistics, parameters) in kept.items():
        module = found[name]
        _freeze(module, parameters, statistics, _above(model, name).training)
        words = "frozen" if statistics or any(parameters) else "learning"
        receipt.rows.append(Row(name, describe(module), words, numbers(module), numbers(module)))
    return model, receipt


def reestimate(model: nn.Module, batches: Any, advance: Advance, receipt: Receipt) -> int | None:
    """Population statistics into the model itself, once all batches went through.

    Returns:
        How many batches those were; None where no norm needs them.
    """
    found: dict[str, Any] = {}
    for name, module, _ in norms(model, "batch"):
        if module.running_mean is None:
            receipt.refuse(name, module, "it has no running statistics")
        elif is_frozen(module):
            receipt.refuse(name, module, "it is frozen; unfreeze it first")
        else:
            found[name] = module
    if not found:
        return None
    kept = {
        name: {key: value.clone() for key in _STATISTICS if (value := getattr(module, key)) is not None}
        for name, module in found.items()
    }
    seen = {name: Moments() for name in found}
    with evaluating(model):
        handles = [_watch(module, name, seen[name]) for name, module in found.items()]
        done = 0
        try:
            for batch in batches:
                positional, named = arguments(batch, model)
                with torch.no_grad():
                    model(*positional, **named)
                done += 1
                advance(done)
        finally:
            for handle in handles:
                handle.remove()
            # Each batch put its own there.
            for name, module in found.items():
                restored(module, kept[name])
    if done:
        _settle(found, seen, done, receipt)
        receipt.undo = partial(_undo_reestimate, {row.name: kept[row.name] for row in receipt.rows})
    return done


def _watch(module: Any, name: str, seen: Moments) -> Any:
    """Normalize by the batch's own statistics, as in training, and add the moments of its input up.

    The norm stays outside training and finds the batch's statistics for running ones: so a batch of one sample is one,
    which torch's own layers refuse in training.
    """

    def look(module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        x, mask = (*positional, *[named.get(word) for word in ("input", "mask")[len(positional) :]])[:2]
        x = x if named.get("residual") is None else x + named["residual"]
        if not torch.isfinite(x if mask is None else torch.where(mask, x, 0)).all():
            raise ValueError(f"the input of {name} is not finite; the statistics stay as they were")
        mean, variance = moments(x, _BATCH, mask=mask)
        others = [d for d in range(x.ndim) if d != 1]
        number = torch.tensor(x.numel() / max(x.shape[1], 1)) if mask is None else mask.expand(x.shape).sum(others)
        seen.add(*(part.double().cpu().numpy() for part in (number, mean, variance)))
        restored(module, {"running_mean": mean, "running_var": variance})

    return module.register_forward_pre_hook(look, with_kwargs=True)


def _settle(found: dict[str, Any], seen: dict[str, Moments], done: int, receipt: Receipt) -> None:
    made = {name: one.variance(getattr(found[name], "correction", 1)) for name, one in seen.items() if one.count.any()}
    for name, variance in made.items():
        for buffer, values in ((found[name].running_mean, seen[name].mean), (found[name].running_var, variance)):
            check_range(name, values, str(buffer.dtype).removeprefix("torch."), torch.finfo(buffer.dtype).max)
    for name, module in found.items():
        one = seen[name]
        if name not in made:
            receipt.refuse(name, module, "no batch reached it")
            continue
        variance = made[name]
        moved = max(float(abs(module.running_mean.double().cpu().numpy() - one.mean).max(initial=0)), 0.0)
        restored(module, {"running_mean": torch.tensor(one.mean), "running_var": torch.tensor(variance)})
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.fill_(done)
        note = f"over {int(one.count.max()):,} elements a channel; the mean moved by up to {moved:.2g}"
        receipt.rows.append(Row(name, describe(module), describe(module), numbers(module), numbers(module), note))


def _undo_reestimate(kept: dict[str, Any], model: nn.Module, inplace: bool) -> tuple[nn.Module, Receipt]:
    receipt = Receipt("revert: reestimate")
    found = dict(model.named_modules())
    for name, values in kept.items():
        check_shapes(found[name], values)
    for name, values in kept.items():
        module = found[name]
        restored(module, values)
        receipt.rows.append(Row(name, describe(module), describe(module), numbers(module), numbers(module)))
    return model, receipt


def weight_decay(model: nn.Module, decay: float, receipt: Receipt) -> list[dict[str, Any]]:
    """Two groups of an optimizer: what decays, and what does not."""
    groups: tuple[list[Any], list[Any]] = ([], [])
    placed: set[int] = set()
    # Norms first: what one shares with another module does not decay either.
    modules = sorted(model.named_modules(), key=lambda named: kind_of(named[1]) is None)
    for name, module in modules:
        mine = [
            (key, p) for key, p in module.named_parameters(recurse=False) if p.requires_grad and id(p) not in placed
        ]
        if kind_of(module) is not None:
            mine = [(key, p) for key, p in module.named_parameters() if p.requires_grad and id(p) not in placed]
        excluded = [p for key, p in mine if kind_of(module) is not None or p.ndim < 2 or key.endswith("bias")]
        placed |= {id(p) for _, p in mine}
        groups[0].extend(p for _, p in mine if not any(p is q for q in excluded))
        groups[1].extend(excluded)
        if excluded:
            number = sum(p.numel() for p in excluded)
            receipt.rows.append(Row(name, describe(module), "no weight decay", number, number))
    return [{"params": groups[0], "weight_decay": decay}, {"params": groups[1], "weight_decay": 0.0}]
