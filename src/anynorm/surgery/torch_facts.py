"""The norms of a torch model, and those of a file of tensors, as facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..convert import torch as dialect
from ..convert.state import NAMES
from .facts import Facts, doubts_of_batch, doubts_of_numbers, facts_of
from .torch_norms import is_frozen, norms
from .torch_probe import Probe

_NAMES = NAMES["torch"]
# In the dictionaries that training scripts save, the model is one of several entries.
_MODEL = ("state_dict", "model_state_dict", "model", "model_state", "net", "module")


def facts(model: nn.Module, probe: Probe, batch: int | None) -> list[Facts]:
    """Each norm's, in the model's order."""
    found = []
    for name, module, _ in norms(model):
        norm = dialect.read(module, whole=False)
        norm = replace(norm, **_statistics(module))
        shapes = probe.shapes.get(name, [])
        found.append(facts_of(name or "(model)", type(module).__name__, norm, _NAMES, shapes, batch, is_frozen(module)))
    return found


def _statistics(module: Any) -> dict[str, Any]:
    return {
        key: dialect.numpy(getattr(module, name, None))
        for key, name in (("mean", "running_mean"), ("variance", "running_var"))
    }


def facts_of_state(state: Mapping[str, Any], batch: int | None) -> list[Facts]:
    """The norms that a file of tensors has: those with running statistics, or with a weight over one axis.

    Raises:
        ValueError: there are no tensors.
    """
    for key in _MODEL:
        if isinstance(inner := state.get(key), Mapping):
            state = inner
            break
    tensors = {key: value for key, value in state.items() if hasattr(value, "dim")}
    if not tensors:
        raise ValueError("there are no tensors in it, and no state_dict that has some")
    layers: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, last = key.rpartition(".")
        if last in _NAMES:
            layers.setdefault(name, {})[last] = value
    return [_of_tensors(name or "(model)", found, batch) for name, found in layers.items() if _is_norm(found)]


def _is_norm(found: Mapping[str, Any]) -> bool:
    if "running_mean" in found:
        return True
    return "weight" in found and all(
        value.dim() == 1 and value.shape == found["weight"].shape for value in found.values()
    )


def _of_tensors(name: str, found: Mapping[str, Any], batch: int | None) -> Facts:
    arrays: dict[str, Any] = {key: dialect.numpy(found[key]) for key in _NAMES if key in found}
    kind = "batch" if "running_mean" in found else "norm"
    doubts = [*doubts_of_batch(kind, batch), *doubts_of_numbers(arrays, None, _NAMES)]
    shapes = {key: tuple(values.shape) for key, values in arrays.items()}
    return Facts(name, "?", kind, "", (), shapes, sum(values.size for values in arrays.values()), doubts=tuple(doubts))
