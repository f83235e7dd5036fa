"""The graph of a Keras model: who calls what, and who holds whom.

Keras has no public way to ask for the calls of a graph; all that is taken from inside it is here and in the file that
makes graphs anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np


@dataclass(frozen=True)
class Saved:
    """A layer as its class, configuration and weights.

    Attributes:
        kind: the class.
        config: what `get_config` gave.
        weights: arrays.
    """

    kind: Any
    config: dict[str, Any]
    weights: list[Any] = field(repr=False)

    @classmethod
    def of(cls, layer: Any) -> Saved:
        return cls(type(layer), layer.get_config(), [np.array(w) for w in layer.get_weights()])

    def layer(self) -> Any:
        """A new layer, not built yet."""
        return self.kind.from_config(self.config)


def is_graph(model: Any) -> bool:
    """Whether a model is a graph that can be made anew: of Keras's own classes for Sequential and functional ones.

    A subclass may have an `__init__`, weights and attributes that another model of its graph would lack.
    """
    known = isinstance(model, keras.Sequential | keras.Function) and type(model).__module__.startswith("keras.")
    return known and not (model._trainable_variables or model._non_trainable_variables)


def why_no_graph(model: Any) -> str:
    """What a model is that is no graph."""
    if not isinstance(model, keras.Model):
        return f"{model.name} is a lone layer, {type(model).__name__}, and not a model"
    if isinstance(model, keras.Sequential | keras.Function) and type(model).__module__.startswith("keras."):
        return f"{model.name} has weights of its own besides those of its layers"
    return f"{model.name} is a model of a class of its own, {type(model).__name__}"


def check_graph(model: Any) -> None:
    """Raise unless the model can be made anew."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"{why_no_graph(model)}: there is no graph in which another layer could take its place. Put it into one, "
            "keras.Sequential([keras.Input(shape), layer]), or make the layer that you want by itself"
        )
    if not is_graph(model):
        raise ValueError(
            f"{why_no_graph(model)}, and only its code says how it is made: it cannot be built anew. Sequential and "
            "functional models can"
        )
    if isinstance(model, keras.Sequential) and model._functional is None:
        raise ValueError(f"{model.name} has no graph yet: build it, or give it an Input first")


def held_twice(model: Any) -> dict[int, list[str]]:
    """Where the layers are, by their ids, that another layer holds besides the graph or a second one does.

    Such a holder is a wrapper or a layer of one's own. A copy of it, made from its configuration, holds a copy.
    """
    places: dict[int, dict[str, None]] = {}
    for _, layer, hidden in layers(model):
        # An input is nothing but a shape: two of them are as good as one.
        if isinstance(layer, keras.layers.InputLayer):
            continue
        places.setdefault(id(layer), {})[hidden or ""] = None
    return {key: [place or "the graph" for place in found] for key, found in places.items() if len(found) > 1}


def check_copy(model: Any) -> None:
    """Raise where a copy would not share the layers that the model shares."""
    shared = held_twice(model)
    for name, layer, _ in layers(model):
        if id(layer) in shared:
            raise ValueError(
                f"{name} is in {' and in '.join(shared[id(layer)])}, and in a copy these would be two layers; "
                "inplace=True changes the model itself"
            )


def layers(model: Any, prefix: str = "", owner: str | None = None) -> Iterator[tuple[str, Any, str | None]]:
    """Name, layer, and the name of the layer that it is hidden in, None for one of a graph; those shared come again."""
    own = is_graph(model)
    for layer in model.layers if isinstance(model, keras.Model) else model._layers:
        name = f"{prefix}{layer.name}"
        hidden = owner or (None if own else prefix.rstrip("/") or model.name)
        yield name, layer, hidden
        yield from layers(layer, f"{name}/", hidden)


def graphs(model: Any) -> Iterator[Any]:
    """The graph of a model and those of the models in it, each once."""
    if is_graph(model):
        inner = [layer for _, layer, hidden in layers(model) if hidden is None and is_graph(layer)]
        for graph in {id(m): m for m in (model, *inner)}.values():
            made = graph._functional if isinstance(graph, keras.Sequential) else graph
            # A Sequential that is not built has none yet.
            if made is not None:
                yield made


def calls(graph: Any) -> list[Any]:
    """The calls of a graph, in order: each with `operation`, `input_tensors`, `outputs` and `arguments`."""
    depths = sorted(graph._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in graph._nodes_by_depth[depth] if not node.is_input]


def inputs_of(model: Any) -> Any:
    """The symbolic inputs in the structure in which the model takes them."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input
