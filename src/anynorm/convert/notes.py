"""What a layer made anew in another framework cannot be, in words."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .norm import Norm

_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}


def lost(was: Norm, source: ModuleType, made: Norm, target: ModuleType) -> list[str]:
    """What of a norm its target could not take over.

    Args:
        was: as it was read.
        made: what was written, read again.
    """
    notes = [f"parameters are {made.types.parameters}, and were {was.types.parameters}"]
    if was.types.parameters == made.types.parameters:
        notes = []
    if was.mean is not None and _is_narrower(made.types.statistics, was.types.statistics):
        notes.append(f"running statistics are {made.types.statistics}, and were {was.types.statistics}")
    results = [norm.types.result or norm.types.parameters for norm in (was, made)]
    if results[0] != results[1] and was.types.result is not None:
        notes.append(f"results were {results[0]} whatever the input, and follow from input and parameters now")
    freed = [] if target.FREEZES else [name for name in sorted(was.frozen) if getattr(made, name) is not None]
    if freed:
        notes.append(f"the frozen {' and '.join(freed)} would learn: leave them out of the optimizer")
    if was.still and was.kind == "batch" and not made.still:
        notes.append("trainable=False keeps running statistics in training too: elsewhere, call eval() after train()")
    if was.synchronized and not made.synchronized:
        notes.append("statistics are those of one device, and were synchronized")
    if was.learned_eps is not None and made.learned_eps is None:
        notes.append(f"the learned epsilon is part of eps now, {made.eps:.3g}, and learns no more")
    if source is not target:
        notes += [f"{name} has no counterpart: it was {was.own[name]}" for name in source.LOUD if name in was.own]
    return notes


def shared(layers: list[Any], source: ModuleType) -> list[str]:
    """That layers of a chain have parameters in common, which the new ones have not."""
    owners: dict[int, set[int]] = {}
    for layer in layers:
        for variable in source.variables(layer):
            owners.setdefault(id(variable), set()).add(id(layer))
    is_shared = any(len(found) > 1 for found in owners.values())
    return ["layers of the chain share parameters, and now each has its own"] if is_shared else []


def _is_narrower(a: str, b: str) -> bool:
    return a != b and _BITS[a] <= _BITS[b]
