"""The graph of a Keras model: who calls what, and the same graph made anew with other layers in it.

Keras has no public way to ask for the calls of a graph; all that is taken from inside it is in this file.
"""

from __future__ import annotations

import inspect
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
    """Whether a model is a graph that can be made anew: Sequential or functional, with Keras's own `call`."""
    if not isinstance(model, keras.Sequential | keras.Function):
        return False
    return not any("call" in vars(c) for c in type(model).__mro__ if not c.__module__.startswith("keras."))


def check_graph(model: Any) -> None:
    """Raise unless the model can be made anew."""
    if not is_graph(model):
        raise ValueError(
            f"{model.name} is a model of a class of its own, {type(model).__name__}, and only its call says how its "
            "layers are connected: it cannot be built anew. Sequential and functional models can"
        )
    if isinstance(model, keras.Sequential) and model._functional is None:
        raise ValueError(f"{model.name} has no graph yet: build it, or give it an Input first")


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


class _Through:
    """What stands for a layer that is left out."""


class Rebuild:
    """A model's graph made anew.

    Args:
        replaced: what comes in the place of a layer, by the layer's id; None leaves it out.
        after: what is called on the output of a layer.
        reuse: whether the other layers are the same objects in the new graph, or copies.
    """

    def __init__(
        self, replaced: dict[int, Saved | None], after: dict[int, Saved] | None = None, *, reuse: bool = False
    ) -> None:
        self._replaced, self._after, self._reuse = replaced, after or {}, reuse
        self._made: dict[int, Any] = {}
        self._copies: list[tuple[Any, Any]] = []
        self._filled: list[tuple[Any, Saved]] = []
        self._followers: dict[int, Any] = {}

    def of(self, model: Any) -> Any:
        """The new model, with the old one's weights, flags and names."""
        new = self._model(model)
        for old, copy in [] if self._reuse else [(model, new), *self._copies]:
            _take_over(old, copy)
        for layer, saved in self._filled:
            layer.set_weights([np.array(w) for w in saved.weights])
            layer.trainable = saved.config.get("trainable", True)
        return new

    def _model(self, model: Any) -> Any:
        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        words = {"clone_function": self._layer, "call_function": self._call}
        return keras.models.clone_model(model, keras.tree.map_structure(_input_like, inputs_of(model)), **words)

    def _sequential(self, model: Any) -> Any:
        # Made as the graph of its layers would be, Sequential being the only class that takes no call function.
        made: list[Any] = [_input_like(model.inputs[0])]
        for layer in model.layers:
            new = self._layer(layer)
            made += [] if isinstance(new, _Through) else [new]
            made += [self._followers[id(new)]] if id(new) in self._followers else []
        new_model = type(model)(made, name=model.name)
        if model.compiled:
            new_model.compile_from_config(model.get_compile_config())
        return new_model

    def _layer(self, layer: Any) -> Any:
        if id(layer) not in self._made:
            self._made[id(layer)] = new = self._new(layer)
            if id(layer) in self._after:
                self._followers[id(new)] = self._fresh(self._after[id(layer)])
        return self._made[id(layer)]

    def _new(self, layer: Any) -> Any:
        if id(layer) in self._replaced:
            saved = self._replaced[id(layer)]
            return _Through() if saved is None else self._fresh(saved)
        if is_graph(layer):
            changed = {*self._replaced, *self._after}
            if self._reuse and not any(id(inner) in changed for _, inner, _ in layers(layer)):
                return layer
            new = self._model(layer)
            # Flags of a model reach all that is in it, so those of what is in it come later.
            self._copies.insert(0, (layer, new))
            return new
        if self._reuse:
            return layer
        try:
            new = _again(layer)
        except Exception as failed:  # whatever a layer of one's own raises
            raise ValueError(f"the layer {layer.name} cannot be made anew from its configuration: {failed}") from failed
        if isinstance(layer, keras.Layer):
            self._copies.append((layer, new))
        return new

    def _fresh(self, saved: Saved) -> Any:
        layer = saved.layer()
        self._filled.append((layer, saved))
        return layer

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, _Through):
            return args[0] if args else next(iter(kwargs.values()))
        if any(layer is fresh for fresh, _ in self._filled):
            # Whether it takes a mask, and knows of training, differs from the layer that it takes the place of.
            known = inspect.signature(layer.call).parameters
            kwargs = {name: value for name, value in kwargs.items() if name in known}
        y = layer(*args, **kwargs)
        return self._followers[id(layer)](y) if id(layer) in self._followers else y


def _again(layer: Any) -> Any:
    """A layer of the same configuration."""
    if not isinstance(layer, keras.layers.Lambda):
        return layer.__class__.from_config(layer.get_config())
    # Its function is at hand: from a configuration Keras would not run it, and it would have lost its names.
    base = {name: value for name, value in layer.get_config().items() if name in ("name", "trainable", "dtype")}
    words = {"output_shape": layer._output_shape, "mask": layer.mask, "arguments": layer.arguments}
    return type(layer)(layer.function, **words, **base)


def _input_like(tensor: Any) -> Any:
    """An input by the same name; of its own accord Keras would take the tensor's, which is another."""
    layer = tensor._keras_history.operation
    shape, optional = tensor.shape, getattr(layer, "optional", False)
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=layer.name, sparse=tensor.sparse, optional=optional)


def inputs_of(model: Any) -> Any:
    """The symbolic inputs in the structure in which the model takes them."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def _take_over(old: Any, new: Any) -> None:
    """Flags and values of a layer, of what is in it too; the layers of a model have theirs by themselves, later."""
    if is_graph(old):
        # Of a model True would reach all that is in it, frozen or not.
        if not old.trainable:
            new.trainable = False
        return
    for one, other in zip(old._flatten_layers(), new._flatten_layers(), strict=True):
        other.trainable = one.trainable
    for one, other in zip(old.variables, new.variables, strict=True):
        # By way of a copy: JAX's arrays would be shared, and training one model deletes what it has used up.
        other.assign(np.array(keras.ops.convert_to_numpy(one)))


def rebuilt(
    model: Any, replaced: dict[int, Saved | None], after: dict[int, Saved] | None = None, inplace: bool = False
) -> Any:
    """The model with other layers in it: a new one, or the given one with its graph made anew."""
    check_graph(model)
    new = Rebuild(replaced, after, reuse=inplace).of(model)
    if not inplace:
        return new
    flags = [(layer, layer.trainable) for _, layer, _ in layers(new)]
    trainable, config = model.trainable, model.get_compile_config() if model.compiled else None
    # Without it the model would go on counting the layers that it had.
    object.__delattr__(model, "_tracker")
    if isinstance(model, keras.Sequential):
        model.__init__([new.inputs[0], *new.layers], name=model.name)
    else:
        model.__init__(new.input, new.output, name=model.name)
    if not trainable:
        model.trainable = False
        for layer, flag in flags:
            layer.trainable = flag
    if config:
        model.compile_from_config(config)
    return model
