"""The norms of a Keras model: which there are, what they are called, and which inputs they have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..convert.keras import KINDS
from .keras_graph import calls, graphs, layers

# Every norm whose call is known: a subclass of one of these may do something else.
KNOWN = frozenset(known for classes in KINDS.values() for known in classes)


def kind_of(layer: Any) -> str | None:
    return next((kind for kind, classes in KINDS.items() if isinstance(layer, classes)), None)


def norms(model: Any, kind: str = "any") -> Iterator[tuple[str, Any, str, str | None]]:
    """Name, layer, kind and, where a layer holds it, be it in the graph too, that one's name; each norm once."""
    found = [(model.name, model, None), *layers(model)]
    holders = {id(layer): hidden for _, layer, hidden in found if hidden is not None}
    seen: set[int] = set()
    for name, layer, _ in found:
        its = kind_of(layer)
        if its is not None and kind in (its, "any") and id(layer) not in seen:
            seen.add(id(layer))
            yield name, layer, its, holders.get(id(layer))


def why_not(layer: Any, hidden: str | None) -> str | None:
    """Why no other layer may take the place of a norm, or None."""
    if hidden is not None:
        return f"it is inside {hidden}, which only its own code can build"
    if type(layer) not in KNOWN:
        return "its class is a subclass of a norm's, and may do something else"
    return None if layer.built else "it is not built"


def input_shapes(model: Any) -> dict[int, list[tuple[int | None, ...]]]:
    """The shapes of each layer's inputs in all calls, by the layer's id; None for an open length."""
    shapes: dict[int, list[tuple[int | None, ...]]] = {}
    for graph in graphs(model):
        for call in calls(graph):
            for tensor in call.input_tensors[:1]:
                shapes.setdefault(id(call.operation), []).append(tuple(tensor.shape))
    return shapes


def numbers(layer: Any) -> int:
    """Weights, running statistics among them, each once."""
    return sum(math.prod(w.shape) for w in layer.weights)


def describe(layer: Any) -> str:
    """The class, and its package where it is not Keras's own."""
    name, package = type(layer).__name__, type(layer).__module__.split(".")[0]
    return name if package == "keras" else f"{package} {name}"


def shapes_of(layer: Any) -> list[tuple[int, ...]]:
    """Those of a layer's weights, by which it is known again."""
    return [tuple(w.shape) for w in layer.weights]


def check_same(name: str, layer: Any, was: str, shapes: list[tuple[int, ...]]) -> None:
    """Raise where a layer is not the one that a receipt speaks of, as `describe` and `shapes_of` told it."""
    there = (describe(layer), shapes_of(layer))
    if there != (was, shapes):
        raise ValueError(
            f"the receipt is not of this model: {name} is {there[0]} with weights {there[1]}, and not {was} with "
            f"{shapes}"
        )


def named(model: Any) -> dict[str, Any]:
    """The layers by name; a model that is one layer by its own."""
    return {name: layer for name, layer, _ in ((model.name, model, None), *layers(model))}
