"""Where a layer's weights lay in old files: what they were called there, in which order, and inside which layer.

HDF5 files list a layer's weights in the order of Keras 2, files of Keras 2.12 and later number them within each layer,
and SavedModels name them. A `Part` says all three for one layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np

import anynorm.keras as norms
from anynorm.keras.kernels import DEPTHWISE, kernels_of

from .errors import RescueError

STATE = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev", "mean", "variance", "count")
INSIDE = ("cell", "cells", "forward_layer", "backward_layer", "layer", "kernel_norm", "recurrent_norm", "state_norm",
          "_query_dense", "_key_dense", "_value_dense", "_output_dense")  # fmt: skip
OLD_NAMES = {"ContribInstanceNormalization": "InstanceNormalization"}


@dataclass
class Slot:
    """One weight of an old layer.

    Attributes:
        names: what it was called.
        shape: its shape there, None where the file decides.
        store: what takes its numbers.
        trainable: whether it was among the trainable weights.
        key: the same for all slots that mean one weight.
        twin: whether the same weight also lies elsewhere, and may be missing here.
    """

    names: tuple[str, ...]
    shape: tuple[int | None, ...]
    store: Callable[[np.ndarray], Any]
    trainable: bool
    key: int
    twin: bool = False

    def takes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(n in (None, m) for n, m in zip(self.shape, shape, strict=True))


@dataclass
class Part:
    """An old layer's weights.

    Attributes:
        name, old: the layer's name and old class.
        own: its own weights, trainable ones first.
        children: the layers in it, by the attribute that held them; of a model or of stacked cells, by name.
        frozen: whether it was not trainable.
        is_model, is_clone: whether it is a model; whether it is a copy that only takes space.
        finish: what is left to do when all numbers are there.
    """

    name: str
    old: str
    own: list[Slot] = field(default_factory=list)
    children: dict[str, Part] = field(default_factory=dict)
    frozen: bool = False
    is_model: bool = False
    is_clone: bool = False
    finish: Callable[[], None] | None = None

    def slots(self) -> list[Slot]:
        return self.own + [slot for child in self.children.values() for slot in child.slots()]

    def kind(self) -> Any:
        """What two parts have in common that are one layer at two places."""
        return self.name, self.old, tuple(slot.shape for slot in self.slots())

    def every(self) -> list[Part]:
        return [self, *(part for child in self.children.values() for part in child.every())]


def part_of(layer: Any, old: dict[int, str], frozen: list[Any]) -> Part:
    """The old weights of a new layer, whose old class may be known better than from its type."""
    name = type(layer).__name__
    part = Part(layer.name, old.get(id(layer), OLD_NAMES.get(name, name)))
    part.frozen = not layer.trainable or any(one is layer for one in frozen)
    if isinstance(layer, norms.WeightNormalization):
        return _weight(part, layer, old, frozen)
    if isinstance(layer, norms.SpectralNormalization):
        return _spectral(part, layer, old, frozen)
    if isinstance(layer, keras.layers.Discretization) and layer.num_bins is not None:
        return _discretization(part, layer)
    part.is_model = isinstance(layer, keras.Model)
    inside = {one.name: one for one in layer.layers} if part.is_model else _inside(layer)
    part.children = {key: part_of(one, old, frozen) for key, one in inside.items()}
    taken = {id(w) for one in inside.values() for w in one.weights}
    part.own = [_slot(w) for w in layer.weights if id(w) not in taken]
    if isinstance(layer, DEPTHWISE):
        part.own[0].names += ("depthwise_kernel",)
    part.own.sort(key=lambda slot: not slot.trainable)
    if isinstance(layer, keras.layers.Normalization) and part.own:
        part.finish = layer.finalize_state
    return part


def _inside(layer: Any) -> dict[str, Any]:
    found = {key: getattr(layer, key, None) for key in INSIDE}
    if isinstance(layer, keras.layers.Bidirectional):
        found.pop("layer")
    if isinstance(found["cells"], list | tuple):
        found |= {f"cells/{i}": cell for i, cell in enumerate(found["cells"])}
    return {key: one for key, one in found.items() if isinstance(one, keras.layers.Layer)}


def _slot(variable: Any, **more: Any) -> Slot:
    shape = tuple(int(n) for n in variable.shape)
    return Slot((variable.name,), shape, variable.assign, variable.name not in STATE, id(variable), **more)


def _wrapped(part: Part, layer: Any, old: dict[int, str], frozen: list[Any]) -> Any:
    """The one kernel of a wrapped layer; its place there becomes a twin of the wrapper's."""
    kernels = kernels_of(layer.layer)
    if len(kernels) > 1:
        raise RescueError(f"{layer.name} wraps a layer with several kernels, which TensorFlow Addons could not")
    kernel = kernels[0]
    part.children["layer"] = part_of(layer.layer, old, frozen)
    for slot in part.children["layer"].slots():
        slot.twin = slot.key == id(kernel.variable)
    return kernel


def _weight(part: Part, layer: Any, old: dict[int, str], frozen: list[Any]) -> Part:
    kernel = _wrapped(part, layer, old, frozen)
    values: dict[str, np.ndarray] = {}
    shape = tuple(int(n) for n in kernel.variable.shape)

    def keep(name: str) -> Callable[[np.ndarray], None]:
        return lambda array: values.__setitem__(name, array)

    names = (kernel.variable.name, "v")
    for slot in part.children["layer"].slots():
        if slot.twin:
            slot.store = keep("v")
    # TensorFlow Addons took the last axis for the outputs' whatever the layer.
    part.own = [
        Slot(("g",), shape[-1:], keep("g"), True, id(layer.g)),
        Slot(names, shape, keep("v"), True, id(kernel.variable)),
        Slot(("initialized", "_initialized"), (), keep("initialized"), False, id(part)),
    ]
    clone = part_of(layer.layer, old, frozen)
    for slot in clone.slots():
        slot.store, slot.twin = (lambda array: None), False
    clone.frozen = True
    for one in clone.every():
        one.is_clone = True
    part.children["_naked_clone_layer"] = clone

    def finish() -> None:
        v = values["v"].astype(np.float64)
        rest = tuple(range(v.ndim - 1))
        norm = np.sqrt(np.sum(v * v, rest))
        initialized = bool(values["initialized"])
        g = values["g"] if initialized or layer.data_init else norm
        if kernel.axes != (v.ndim - 1,):
            v = v * (g / np.where(norm > 0, norm, 1.0))
            g = np.sqrt(np.sum(v * v, tuple(i for i in range(v.ndim) if i not in kernel.axes)))
        kernel.variable.assign(v.astype(np.float32))
        layer.g.assign(g.astype(np.float32))
        if layer.initialized is not None:
            layer.initialized.assign(initialized)

    part.finish = finish
    return part


def _spectral(part: Part, layer: Any, old: dict[int, str], frozen: list[Any]) -> Part:
    kernel = _wrapped(part, layer, old, frozen)
    if not layer.converted:
        raise RescueError(f"{layer.name}'s kernel is divided already in old files: make it with converted=True")
    width = int(kernel.variable.shape[-1])
    vector = layer.vectors[0]
    # Of another axis than the outputs', the vector is of no use.
    serves = tuple(vector.shape) == (1, width) and kernel.axes == (len(kernel.variable.shape) - 1,)
    use = vector.assign if serves else lambda array: None
    part.own = [
        Slot((kernel.variable.name, "w"), tuple(int(n) for n in kernel.variable.shape), kernel.variable.assign, True,
             id(kernel.variable)),
        Slot(("sn_u", "vector_u", "u"), (1, width), use, False, id(vector)),
    ]  # fmt: skip

    def finish() -> None:
        if not serves:
            layer.restart()
        layer.as_stored.assign(True)

    part.finish = finish
    return part


def _discretization(part: Part, layer: Any) -> Part:
    """Of a layer that saw data; the boundaries of its bins follow from what it kept of them."""

    def finish() -> None:
        layer.finalize_state()
        if layer.output_mode != "int" and len(layer.bin_boundaries) + 1 != layer.num_bins:
            raise RescueError(
                f"{layer.name} saw too little data for its {layer.num_bins} bins, and Keras 3 takes so many"
            )

    part.own = [Slot(("summary",), (2, None), partial(setattr, layer, "summary"), False, id(layer))]
    part.finish = finish
    return part


def in_order(part: Part, clones: bool) -> tuple[list[Slot], list[Slot]]:
    """A layer's trainable and other weights in the order of Keras 2."""
    trainable = [slot for slot in part.own if slot.trainable and not slot.twin]
    others = [slot for slot in part.own if not slot.trainable and not slot.twin]
    inside = [in_order(child, clones) for child in part.children.values() if clones or not child.is_clone]
    firsts, seconds = ([slot for pair in inside for slot in pair[i]] for i in (0, 1))
    if not part.frozen:
        return trainable + firsts, others + seconds
    if part.is_model:
        return [], trainable + firsts + others + seconds
    return [], trainable + others + [slot for pair in inside for slot in (*pair[0], *pair[1])]


def snake(name: str) -> str:
    """A class's name as Keras writes it in paths.

    >>> snake("LeakyReLU"), snake("Conv2D"), snake("Addons>TLU")
    ('leaky_re_lu', 'conv2d', 'tlu')
    """
    name = re.sub(r"\W+", "", name.rpartition(">")[2])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
