"""The graph of a Keras model made anew with other layers in it, and copies of layers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import keras
import numpy as np

from .keras_copy import attributes, exchange, held, take_over
from .keras_graph import Saved, check_copy, check_graph, inputs_of, is_graph, layers
from .receipt import first_line


class _Through:
    """What stands for a layer that is left out."""


class Rebuild:
    """A model's graph made anew.

    Args:
        replaced: what comes in the place of a layer, by the layer's id; None leaves it out.
        after: what is called on the output of a layer.
        reuse: whether the other layers are the same objects in the new graph, or copies.

    Attributes:
        lost: attributes of models that could not be taken over.
        unsaid: calls in which something was said that the new layer is not told, in words.
    """

    def __init__(
        self, replaced: dict[int, Saved | None], after: dict[int, Saved] | None = None, *, reuse: bool = False
    ) -> None:
        self._replaced, self._after, self._reuse = replaced, after or {}, reuse
        self._made: dict[int, Any] = {}
        self._copies: list[tuple[Any, Any]] = []
        self._filled: list[tuple[Any, Saved]] = []
        self._followers: dict[int, Any] = {}
        self.lost: list[str] = []
        self.unsaid: list[str] = []

    def of(self, model: Any) -> Any:
        """The new model, with the old one's weights, flags and names."""
        new = self._model(model)
        copies = [(model, new), *self._copies]
        for old, copy in [] if self._reuse else copies:
            take_over(old, copy)
        for old, copy in copies[self._reuse :]:
            if isinstance(old, keras.Model):
                self.lost += attributes(old, copy, self.there())
        for layer, saved in self._filled:
            layer.set_weights([np.array(w) for w in saved.weights])
            layer.trainable = saved.config.get("trainable", True)
        return new

    def there(self) -> dict[int, Any]:
        """The layers of the new model by the ids of those that they stand for."""
        return {key: layer for key, layer in self._made.items() if not isinstance(layer, _Through)}

    def _model(self, model: Any) -> Any:
        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        words = {"clone_function": self._layer, "call_function": self._call}
        with _not_compiled(model):
            new = keras.models.clone_model(model, keras.tree.map_structure(_input_like, inputs_of(model)), **words)
        _compile(new, compiling_of(model))
        return new

    def _sequential(self, model: Any) -> Any:
        # Made as the graph of its layers would be, Sequential being the only class that takes no call function.
        made: list[Any] = [_input_like(model.inputs[0])]
        for layer in model.layers:
            new = self._layer(layer)
            made += [] if isinstance(new, _Through) else [new]
            made += [self._followers[id(new)]] if id(new) in self._followers else []
        new = type(model)(made, name=model.name)
        _compile(new, compiling_of(model))
        return new

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
            raise ValueError(
                f"the layer {layer.name} cannot be made anew from its configuration, and inplace=True changes the "
                f"model itself: {first_line(failed)}"
            ) from failed
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
            if kwargs.get("training") is not None and "training" not in known:
                said = f"{layer.name} was called with training={kwargs['training']}"
                self.unsaid.append(f"{said}, which the norm in its place does not take; revert will not say it again")
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


@contextmanager
def _not_compiled(model: Any) -> Iterator[None]:
    """Keep Keras from compiling a clone, where it raises if it does not know the loss."""
    compiled = model.compiled
    model.compiled = False
    try:
        yield
    finally:
        model.compiled = compiled


def compiling_of(model: Any) -> dict[str, Any] | None:
    """The configuration to compile another model like this one, None where it is not compiled."""
    with warnings.catch_warnings():
        # A loss that is a lambda is unsafe to read from a file; this goes to none.
        warnings.simplefilter("ignore")
        return model.get_compile_config() if model.compiled else None


def _compile(model: Any, config: dict[str, Any] | None) -> None:
    """Compile as far as Keras can: what it cannot make from a configuration, such as a lambda, leaves it undone."""
    with suppress(Exception):
        if config is not None:
            model.compile_from_config(config)


def rebuilt(
    model: Any,
    replaced: dict[int, Saved | None],
    after: dict[int, Saved] | None = None,
    inplace: bool = False,
    notes: list[str] | None = None,
) -> Any:
    """The model with other layers in it: a new one, or the given one with its graph made anew.

    Args:
        replaced, after: as for `Rebuild`.
        notes: is told which attributes the new model lacks, and what calls no longer say.
    """
    check_graph(model)
    if not inplace:
        check_copy(model)
    rebuild = Rebuild(replaced, after, reuse=inplace)
    new = rebuild.of(model)
    if notes is not None:
        notes += [f"attributes that the new model lacks: {', '.join(rebuild.lost)}"] if rebuild.lost else []
        notes += rebuild.unsaid
    if not inplace:
        _check_apart(model, new)
        return new
    flags = [(layer, layer.trainable) for _, layer, _ in layers(new)]
    trainable, config, before = model.trainable, compiling_of(model), held(model)
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
    exchange(model, before, new, rebuild.there())
    _compile(model, config)
    return model


def _check_apart(model: Any, new: Any) -> None:
    """Raise where a copy has weights of the model that it is a copy of."""
    given = {id(w) for w in model.variables}
    if shared := [w.path for w in new.variables if id(w) in given]:
        raise ValueError(
            f"a copy of the model would share {', '.join(shared)} with it: the configuration of a layer hands on the "
            "layer or weight itself; inplace=True changes the model itself"
        )
