"""One call that puts anynorm's modules into a model written for torch.nn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .peers import BY_PEER
from .turn import class_of, turn


def replace_norms(model: torch.nn.Module) -> int:
    """Turn every norm of torch.nn in a model, itself included, into anynorm's of the same name, in place.

    A module stays the same object, with its parameters, buffers, hooks and place in the model; only its class changes.
    So optimizers, tied modules and `state_dict` need nothing done. A lazy norm becomes anynorm's with its first input,
    a parametrized one stays parametrized. Subclasses of torch.nn's norms, which may have a forward of their own, are
    left alone. torch's transformer layers leave their fused inference, which computes from
    the norms' weights and does not call them.

    Returns:
        How many modules were turned.

    >>> from anynorm.torch import replace_norms
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.LayerNorm(6))
    >>> replace_norms(model), type(model[1]).__module__
    (1, 'anynorm.torch.layer')
    """
    found = [module for module in model.modules() if class_of(module) in BY_PEER]
    for module in found:
        turn(module, BY_PEER[class_of(module)])
    call_norms(model, found)
    return len(found)


def call_norms(model: torch.nn.Module, norms: Iterable[torch.nn.Module]) -> dict[str, dict[str, Any]]:
    """Let torch's transformer layers call those of their norms that are among `norms`, at inference too.

    Without gradients a layer fuses itself into one operation that takes the norms for torch's layer norms. It does not
    where its activation is not one of two that it knows, nor its encoder pack the input where it was told not to.

    Returns:
        What the modules had set before, by their names in the model.
    """
    changed = {id(norm) for norm in norms}
    before: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        off: dict[str, Any] = {}
        if isinstance(module, torch.nn.TransformerEncoderLayer):
            off = {"activation_relu_or_gelu": 0}
        elif isinstance(module, torch.nn.TransformerEncoder):
            off = {"use_nested_tensor": False}
        if off and any(id(part) in changed for part in module.modules()):
            before[name] = {key: getattr(module, key) for key in off}
            vars(module).update(off)
    return before
