"""The norms of a torch model: which there are, what they are called, and how another takes a norm's place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..torch import Norm
from ..torch.peers import KNOWN

# The first that fits; subclasses, SyncBatchNorm among them, are found by what all of a kind are.
_BY_KIND = {
    "batch": nn.modules.batchnorm._BatchNorm,
    "instance": nn.modules.instancenorm._InstanceNorm,
    "group": nn.GroupNorm,
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "sentence": Norm,
}


def kind_of(module: Any) -> str | None:
    return next((kind for kind, known in _BY_KIND.items() if isinstance(module, known)), None)


def norms(model: nn.Module, kind: str = "any") -> Iterator[tuple[str, nn.Module, str]]:
    """Name, module and kind of each norm, once, under the first of its names."""
    for name, module in model.named_modules():
        found = kind_of(module)
        if found is not None and kind in (found, "any"):
            yield name, module, found


def why_not(module: nn.Module) -> str | None:
    """Why no other module may take the place of a norm, or None."""
    if type(module) not in KNOWN:
        return "its class is a subclass of a norm's, and may do something else"
    if is_unusual(module):
        return "its parameters are parametrized, or no parameters"
    if hooks(module):
        return "it has hooks, which would be lost; remove them first"
    if has_own_forward(module):
        return "its forward was replaced by another function"
    return None


def is_unusual(module: nn.Module) -> bool:
    """Whether weight or bias are computed from other parameters, by `parametrize` or a hook before the forward."""
    names = [name for name in ("weight", "bias") if getattr(module, name, None) is not None]
    return parametrize.is_parametrized(module) or any(name not in module._parameters for name in names)


def stay(self: nn.Module, input: tuple[torch.Tensor]) -> None:
    """Before a frozen norm's forward: whatever `train` said, the running statistics are used and stay.

    A function, and one that torch.jit.script can read; what it has to remember, the norm has.
    """
    self.was_training = self.was_training or self.training
    self.training = False


def hooks(module: nn.Module) -> list[Any]:
    """Those of a module, but for what freezing puts there."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return [hook for kind in kinds for hook in kind.values() if hook is not stay]


def has_own_forward(module: nn.Module) -> bool:
    """Whether something put another forward into the module itself, in place of its class's."""
    return "forward" in vars(module)


def is_frozen(module: nn.Module) -> bool:
    return any(hook is stay for hook in module._forward_pre_hooks.values())


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Let `new` take the place of `old` wherever that is in the model."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def numbers(module: nn.Module) -> int:
    """Parameters and running statistics, each once; not the count of batches."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
    return sum(t.numel() for t in tensors.values())


def describe(module: nn.Module) -> str:
    """The class, and its package where it is not torch's own."""
    name = type(module).__name__
    return name if type(module).__module__.startswith("torch.") else f"{type(module).__module__.split('.')[0]} {name}"


def shared(model: nn.Module) -> set[int]:
    """The ids of the tensors that more than one module has."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for tensor in module._parameters.values():
            if tensor is not None:
                owners[id(tensor)] = owners.get(id(tensor), 0) + 1
    return {key for key, number in owners.items() if number > 1}


def place_of(*modules: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Device and type of the first floating-point tensor that the modules have."""
    tensors = (t for module in modules for t in (*module.parameters(), *module.buffers()))
    return next(((t.device, t.dtype) for t in tensors if t.is_floating_point()), None)


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's own parameters and buffers."""
    return {name: t for name, t in {**module._parameters, **module._buffers}.items() if t is not None}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Those of a module's own parameters and buffers, by which it is known again."""
    return {name: tuple(t.shape) for name, t in tensors_of(module).items()}


def check_same(name: str, module: Any, was: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise where a module is not the one that a receipt speaks of, as `describe` and `shapes_of` told it."""
    if describe(module) != was:
        raise ValueError(f"the receipt is not of this model: {name} is {describe(module)}, and not {was}")
    if shapes_of(module) != shapes:
        raise ValueError(
            f"the receipt is not of this model: {name} has {_written(shapes_of(module))}, and not {_written(shapes)}"
        )


def _written(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "no parameters"


def tensor_like(values: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(values).to(like.device, like.dtype)
