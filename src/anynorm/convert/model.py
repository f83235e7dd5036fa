"""Whole models: chains of nothing but normalizations, and where the normalizations of any other model are."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def is_norm(layer: Any, dialect: ModuleType) -> bool:
    """Whether the dialect knows a layer; whether it also has a counterpart elsewhere is for `read` to say."""
    try:
        dialect.read(layer)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def norms(model: Any, dialect: ModuleType) -> dict[str, Any]:
    """The normalizations in a model that have parameters, by the names that its state gives them."""
    return {name: layer for name, layer in dialect.named(model) if is_norm(layer, dialect)}


def layers_of(model: Any, dialect: ModuleType) -> list[Any]:
    """The layers of a chain and of the chains in it, or the one layer itself; raises if one is no normalization."""
    found, chain = [], [model]
    while chain:
        layer = chain.pop(0)
        parts = dialect.parts(layer)
        if parts is not None:
            chain = [*parts, *chain]
            continue
        if not is_norm(layer, dialect) and (names := list(norms(model, dialect))):
            raise TypeError(_refusal(type(layer).__name__, names))
        found.append(layer)
    return found


def _refusal(unknown: str, names: list[str]) -> str:
    shown = ", ".join(f'"{name}": ...' for name in names[:3]) + (", ..." if names[3:] else "")
    return (
        f"{unknown} is no normalization layer, so that convert cannot make this model anew. Build it there, and bring "
        f"its {len(names)} normalizations over by their names here and there: convert_state(model_state(model), "
        f"{{{shown}}}, source=..., to=...); norm_names(model) lists them all"
    )
