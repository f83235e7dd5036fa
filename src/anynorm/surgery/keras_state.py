"""A Keras model as it is before it is changed in place, to give back where something fails."""

from __future__ import annotations

from typing import Any

from .keras_copy import copied
from .keras_graph import layers


class State:
    """The very objects that a model has: its attributes, its graph, its layers' flags and numbers.

    Args:
        model: the model.
        parameters: whether its parameters' numbers may change too, which then need memory once more.
    """

    def __init__(self, model: Any, parameters: bool) -> None:
        parts = [model, *(layer for _, layer, _ in layers(model))]
        self._model, self._attributes = model, dict(vars(model))
        self._contents = [(v, v.copy()) for v in self._attributes.values() if type(v) in (list, dict)]
        self._flags = [(layer, layer.trainable) for layer in parts]
        self._numbers = [(w, copied(w)) for w in (model.variables if parameters else model.non_trainable_variables)]
        # The nodes of the new graph come behind those of the old one.
        self._nodes = [(nodes, len(nodes)) for part in parts for nodes in (part._inbound_nodes, part._outbound_nodes)]

    def restore(self) -> None:
        vars(self._model).clear()
        vars(self._model).update(self._attributes)
        for value, contents in self._contents:
            value.clear()
            value.extend(contents) if isinstance(value, list) else value.update(contents)
        for nodes, number in self._nodes:
            del nodes[number:]
        for variable, values in self._numbers:
            variable.assign(values)
        for layer, flag in self._flags:
            if layer.trainable is not flag:
                layer.trainable = flag
