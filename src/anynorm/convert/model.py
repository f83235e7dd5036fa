"""Whole models: chains of nothing but normalizations, and where the normalizations of any other model are."""

from __future__ import annotations

from types import ModuleType
from typing import Any

# What cures names that two things have, as Keras lets them.
_RENAME = "give the layers that they are in names of their own (name=), and build the model again"


def norms(model: Any, dialect: ModuleType) -> dict[str, Any]:
    """The normalizations in a model that have parameters, by the names that its state gives them."""
    found: dict[str, Any] = {}
    for name, layer in dialect.named(model):
        if dialect.is_norm(layer):
            if name in found:
                raise ValueError(f'two normalizations are called "{name}": {_RENAME}')
            found[name] = layer
    return found


def state(model: Any, dialect: ModuleType) -> dict[str, Any]:
    """A model's arrays by name; raises where one would take the place of another."""
    found: dict[str, Any] = {}
    for name, value in dialect.state(model):
        if name in found:
            raise ValueError(f'two variables are called "{name}", and a state has room for one: {_RENAME}')
        found[name] = value
    return found


def flat(model: Any, dialect: ModuleType) -> list[Any]:
    """The layers of a chain and of the chains in it, or the one layer itself."""
    parts = dialect.parts(model)
    return [model] if parts is None else [layer for part in parts for layer in flat(part, dialect)]


def layers_of(model: Any, dialect: ModuleType) -> list[Any]:
    """The layers of a chain, or the one layer itself; raises if one is no normalization and others are."""
    found = flat(model, dialect)
    for layer in found:
        if dialect.is_norm(layer):
            continue
        if names := [name for name, one in dialect.named(model) if dialect.is_norm(one)]:
            raise TypeError(_refusal(type(layer).__name__, names))
    return found


def _refusal(unknown: str, names: list[str]) -> str:
    shown = ", ".join(f'"{name}": ...' for name in names[:3]) + (", ..." if names[3:] else "")
    return (
        f"{unknown} is no normalization layer, so that convert cannot make this model anew. Build it there, and bring "
        f"its {len(names)} normalizations over by their names here and there: convert_state(model_state(model), "
        f"{{{shown}}}, source=..., to=...); norm_mapping(model, other) finds these names where it can"
    )
