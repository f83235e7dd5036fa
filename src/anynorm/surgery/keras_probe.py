"""Running a Keras model outside training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from .keras_graph import inputs_of, is_graph, layers
from .keras_norms import input_shapes, norms
from .keras_watch import Reads, watched
from .proving import Entangled, apart
from .receipt import first_line

# For a length that is open, and for the batch.
_OPEN, _BATCH = 32, 4
_WORDS = np.array(["a", "the", "norm", "of a", "unseen"])


class Probe:
    """An input and what the model makes of it.

    Attributes:
        words: what the input is, or why there is none.
        shapes: of the inputs of each norm, by the layer's id; with a given input those that it leads to, else those
            that the graph says.
        outputs: the model's, or None where nothing could be run.
        repeated: by how much they differ when the same model is run again.
        partly: whether there are others that cannot be compared.
    """

    def __init__(self, model: Any, given: Any) -> None:
        self.inputs: Any = None
        self.outputs: list[np.ndarray] | None = None
        self.repeated = 0.0
        self.partly = False
        self.shapes: dict[int, list[tuple[int | None, ...]]] = input_shapes(model)
        self._model, self._weights = model, list(model.variables)
        if given is False:
            self.words = "not wanted"
        elif given is not None:
            self.inputs, self.words = given, f"the given one, {_written(given)}"
            self.shapes = {}
            watchable = [layer for _, layer, _, _ in norms(model)]
            with watched(watchable, lambda layer, x, _: self.shapes.setdefault(id(layer), []).append(tuple(x.shape))):
                self.outputs = self.run(model)
        else:
            self._make(model)
        if self.outputs is not None:
            self.repeated = apart(self.outputs, self.run(model) or [])
        elif own := [name for name, layer, _ in layers(model) if _has_code(layer)]:
            self.words += f" (so nothing was seen of which weights the code of {', '.join(own)} reads)"

    def uncalled(self, name: str) -> bool:
        """Whether the last run did not reach a layer; a graph that was made anew calls all that is in it."""
        return False

    def run(self, model: Any) -> list[np.ndarray] | None:
        """The model's outputs, flat, in float64; None without an input. The model stays as it is, to its random seeds.

        Raises:
            Entangled: the model reads a weight that the first model has and this one has not.
        """
        if self.inputs is None:
            return None
        if not all(layer.built for layer in model._flatten_layers()):
            # Its first call makes weights, which a scope without side effects would lose.
            model(self.inputs, training=False)
        with Reads() as reads:
            outputs = keras.tree.flatten(model(self.inputs, training=False))
        self._check_own(model, reads)
        return [_wide(np.asarray(keras.ops.convert_to_numpy(y))) for y in outputs]

    def _check_own(self, model: Any, reads: Reads) -> None:
        own = {id(w) for w in model.variables}
        foreign = [w.path for w in self._weights if id(w) in reads.seen and id(w) not in own]
        if foreign and model is self._model:
            raise Entangled(
                f"the changed model still reads {', '.join(foreign)}, of a layer that is no longer in it: the code of "
                "another layer has hold of that one. The model is as it was"
            )
        if foreign:
            raise Entangled(
                f"the new model reads {', '.join(foreign)} of the given one: the code of a layer has hold of a layer "
                "or weight of the given model, and the new one would go on depending on it; inplace=True changes the "
                "model itself"
            )

    def _make(self, model: Any) -> None:
        if not is_graph(model) or not getattr(model, "inputs", None):
            self.words = "the model does not say its inputs; give probe="
            return
        rng = np.random.default_rng(0)
        try:
            self.inputs = keras.tree.map_structure(lambda tensor: _random(tensor, rng), inputs_of(model))
            self.outputs = self.run(model)
        except Exception as failed:  # whatever a model raises that an input does not fit
            self.inputs, self.words = None, f"a random input does not run ({first_line(failed)}); give probe="
        else:
            self.words = f"random, {_written(self.inputs)}"


def _wide(y: np.ndarray) -> np.ndarray:
    return y.astype(np.complex128 if y.dtype.kind == "c" else np.float64)


def _random(tensor: Any, rng: np.random.Generator) -> np.ndarray:
    shape = [_BATCH if tensor.shape[0] is None else tensor.shape[0]]
    shape += [_OPEN if n is None else n for n in tensor.shape[1:]]
    if "float" in tensor.dtype:
        return rng.normal(size=shape).astype("float32")
    if tensor.dtype == "string":
        return rng.choice(_WORDS, shape)
    return rng.integers(0, 2, shape).astype(tensor.dtype)


def _has_code(layer: Any) -> bool:
    """Whether what a layer reads is for its user to say."""
    return isinstance(layer, keras.layers.Lambda) or type(layer).__module__.split(".")[0] not in ("keras", "anynorm")


def _written(inputs: Any) -> str:
    return ", ".join(str(tuple(x.shape)) for x in keras.tree.flatten(inputs) if hasattr(x, "shape"))
