"""One call that puts anynorm's modules into a model written for torch.nn."""

from __future__ import annotations

import torch

from .peers import BY_PEER


def replace_norms(model: torch.nn.Module) -> int:
    """Turn every norm of torch.nn in a model, itself included, into anynorm's of the same name, in place.

    A module stays the same object, with its parameters, buffers, hooks and place in the model; only its class changes.
    So optimizers, tied modules and `state_dict` need nothing done. Subclasses of torch.nn's norms, which may have a
    forward of their own, are left alone.

    Returns:
        How many modules were turned.

    >>> from anynorm.torch import replace_norms
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.LayerNorm(6))
    >>> replace_norms(model), type(model[1]).__module__
    (1, 'anynorm.torch.layer')
    """
    found = [module for module in model.modules() if type(module) in BY_PEER]
    for module in found:
        module.__class__ = BY_PEER[type(module)]
    return len(found)
