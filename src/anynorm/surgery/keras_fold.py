"""Folding batch normalizations of a Keras model into the layers in front of them."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import keras

from ..convert import keras as dialect
from ..convert.norm import FIRST, LAST
from .folding import Refused
from .folding import fold as folded
from .keras_graph import Saved, calls, check_graph, graphs, held_twice
from .keras_norms import check_same, describe, named, norms, numbers, why_not
from .keras_rebuild import rebuilt
from .receipt import Receipt, Row

_L = keras.layers
_PLAIN = (_L.Dense, _L.Conv1D, _L.Conv2D, _L.Conv3D)
_TRANSPOSED = (_L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose)
_DEPTHWISE = (_L.DepthwiseConv1D, _L.DepthwiseConv2D)
_SEPARABLE = (_L.SeparableConv1D, _L.SeparableConv2D)
_FOLDABLE = (*_PLAIN, *_TRANSPOSED, *_DEPTHWISE, *_SEPARABLE)


def fold(model: Any, receipt: Receipt, inplace: bool) -> Any:
    """The model with its batch normalizations folded, as far as they can be."""
    check_graph(model)
    graph = _Graph(model)
    replaced: dict[int, Saved | None] = {}
    kept: dict[str, Any] = {}
    for name, norm, _, hidden in norms(model, "batch"):
        try:
            if reason := why_not(norm, hidden):
                raise Refused(reason)
            front = graph.front(norm)
            made = _folded(norm, front)
        except Refused as refused:
            receipt.refuse(name, norm, str(refused))
            continue
        front_name = graph.names[id(front)]
        shapes = [tuple(w.shape) for w in made.weights]
        kept[name] = (Saved.of(norm), front_name, Saved.of(front), describe(front), shapes, _computing(made.layer()))
        replaced |= {id(norm): None, id(front): made}
        before = numbers(front) + numbers(norm)
        after = sum(w.size for w in made.weights)
        became, note = f"in {front_name} ({describe(front)})", _note(front)
        receipt.rows.append(Row(name, describe(norm), became, before, after, note))
    receipt.undo = partial(_undo, kept)
    return rebuilt(model, replaced, inplace=inplace, notes=receipt.notes)


class _Graph:
    """Who feeds whom in a model and the models in it, and how often each layer is called."""

    def __init__(self, model: Any) -> None:
        self.names = {id(layer): name for name, layer in reversed(named(model).items())}
        self.held = held_twice(model)
        self.calls: Counter[int] = Counter()
        self.users: Counter[int] = Counter()
        self.makers: dict[int, Any] = {}
        self.call_of: dict[int, Any] = {}
        for graph in graphs(model):
            # An output that leaves a graph is used out there.
            self.users.update(id(tensor) for tensor in graph.outputs)
            for call in calls(graph):
                self.calls[id(call.operation)] += 1
                self.call_of[id(call.operation)] = call
                self.users.update(id(tensor) for tensor in call.input_tensors)
                self.makers |= {id(tensor): call.operation for tensor in call.outputs}

    def front(self, norm: Any) -> Any:
        """The layer in front of a norm, that it can be folded into."""
        if self.calls[id(norm)] != 1:
            raise Refused(f"it is used {self.calls[id(norm)]} times")
        call = self.call_of[id(norm)]
        if call.arguments.kwargs.get("training"):
            raise Refused("it is called with training=True, and so never uses its running statistics")
        tensor = call.input_tensors[0]
        front = self.makers.get(id(tensor))
        if front is None:
            raise Refused("no layer is in front of it, but an input of its model")
        if type(front) not in _FOLDABLE:
            raise Refused(f"{front.name} ({describe(front)}), in front of it, is no convolution or dense layer")
        if self.calls[id(front)] != 1:
            raise Refused(f"{front.name}, in front of it, is used {self.calls[id(front)]} times")
        if id(front) in self.held:
            raise Refused(f"{front.name}, in front of it, is also in {self.held[id(front)][-1]}")
        if self.users[id(tensor)] != 1:
            raise Refused(f"the output of {front.name}, in front of it, is used {self.users[id(tensor)]} times")
        if front.activation is not keras.activations.linear:
            raise Refused(f"the activation of {front.name}, {_name(front.activation)}, is between")
        if getattr(front, "lora_enabled", False) or getattr(front, "quantization_mode", None):
            raise Refused(f"{front.name}, in front of it, has quantized or LoRA weights")
        return front


def _note(front: Any) -> str:
    words = ("kernel_constraint", "depthwise_constraint", "pointwise_constraint", "bias_constraint")
    bound = [word for word in words if getattr(front, word, None) is not None]
    return f"training would apply its {' and '.join(bound)} to what is folded" if bound else ""


def _name(activation: Any) -> str:
    return str(getattr(activation, "__name__", activation))


def _folded(norm: Any, front: Any) -> Saved:
    """The layer in front, with a bias and the norm in it."""
    try:
        values = dialect.read(norm)
    except (TypeError, ValueError) as wrong:
        raise Refused(str(wrong)) from wrong
    first = getattr(front, "data_format", "channels_last") == "channels_first"
    if values.axes != ((FIRST,) if first else (LAST,)):
        raise Refused(f"its axis {norm.axis} is not the one with the channels of {front.name}")
    variable = front.pointwise_kernel if isinstance(front, _SEPARABLE) else front.kernel
    kernel: Any = dialect.numpy(variable)
    channels: tuple[int, ...] = (-1, 1) if isinstance(front, _TRANSPOSED) else (-1,)
    if isinstance(front, _DEPTHWISE):
        channels = kernel.shape[-2:]
    made = folded(values, kernel, dialect.numpy(front.bias), channels)
    others = [(w, dialect.numpy(w)) for w in front.weights if w is not front.bias]
    weights = [made.kernel if w is variable else array for w, array in others]
    return Saved(type(front), {**front.get_config(), "use_bias": True}, [*weights, made.bias])


def _computing(layer: Any) -> dict[str, Any]:
    """What of a layer's configuration says what it computes, and not how it is trained."""
    training = ("name", "trainable", "_initializer", "_regularizer", "_constraint")
    return {word: value for word, value in layer.get_config().items() if not word.endswith(training)}


def _undo(kept: dict[str, Any], model: Any, inplace: bool) -> tuple[Any, Receipt]:
    """The norms back behind the layers that they were folded into, and those as they were."""
    receipt, found = Receipt("revert: fold"), named(model)
    replaced: dict[int, Saved | None] = {}
    after = {}
    for name, (_, front_name, _, was, shapes, computing) in kept.items():
        check_same(front_name, found[front_name], was, shapes)
        now = _computing(found[front_name])
        if other := [word for word in computing if now.get(word) != computing[word]]:
            raise ValueError(
                f"the receipt is not of this model: {front_name} has {other[0]}={now.get(other[0])!r}, and not "
                f"{computing[other[0]]!r}"
            )
        if found.get(name, model) is not model:
            raise ValueError(f"the receipt is not of this model: it has a layer called {name} already")
    for name, (norm, front_name, front, *_) in kept.items():
        layer = found[front_name]
        replaced[id(layer)], after[id(layer)] = front, norm
        number = sum(w.size for w in norm.weights)
        receipt.rows.append(Row(name, "(folded)", norm.kind.__name__, 0, number, f"{front_name} as it was"))
    return rebuilt(model, replaced, after, inplace, receipt.notes), receipt
