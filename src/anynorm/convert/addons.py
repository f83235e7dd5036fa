"""The dialect of TensorFlow Addons, whose layers are dictionaries here: the library itself need not be installed.

    {"class_name": "Addons>InstanceNormalization", "config": {"axis": -1, ...}, "weights": [gamma, beta]}

`config` is what the layer's `get_config()` gives, and `weights` its `get_weights()`, or what a file has in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..ops import numpy as ops
from .norm import LAST, Array, Norm, layout_of, neutral, shape_of

CHANNELS, ANY_SENTENCE = "last", False
_KINDS = {
    "GroupNormalization": "group",
    "InstanceNormalization": "instance",
    "FilterResponseNormalization": "response",
}
_NAMES = {kind: f"Addons>{name}" for name, kind in _KINDS.items()}
# The layers' defaults, for configurations that leave them out.
_DEFAULTS = {"axis": -1, "center": True, "scale": True, "groups": 2}


def read(layer: Any) -> Norm:
    name = str(layer["class_name"]).rsplit(">", 1)[-1]
    if name not in _KINDS:
        raise TypeError(f"{name} is none of the normalizations of TensorFlow Addons: {', '.join(_KINDS)}")
    config, weights = {**_DEFAULTS, **layer["config"]}, [np.asarray(w) for w in layer["weights"]]
    if _KINDS[name] == "response":
        return _response(config, weights)
    axis = config["axis"]
    if axis < -1:
        # Its reshape is wrong there, so that a model trained with it learned something else.
        raise ValueError(f"Addons' {name} on axis {axis} is no {_KINDS[name]} normalization; there is no counterpart")
    there = [config["scale"], config["center"]]
    if len(weights) != sum(there):
        raise ValueError(f"{name} with {config} has {sum(there)} weights, and {len(weights)} were given")
    values = iter(weights)
    scale, offset = (next(values) if yes else None for yes in there)
    kind, groups, shape = _KINDS[name], config["groups"], shape_of(scale, offset)
    if kind == "group" and (groups == -1 or shape == (groups,)):
        kind = "instance"
    return Norm(
        kind,
        (axis,),
        shape,
        config.get("epsilon", 1e-3),
        scale,
        offset,
        channels=layout_of((axis,)),
        groups=groups if kind == "group" else None,
    )


def _response(config: dict[str, Any], weights: list[np.ndarray]) -> Norm:
    eps = abs(float(config.get("epsilon", 1e-6)))
    if config.get("learned_epsilon", False):
        eps += abs(float(weights.pop(0)[0]))
    scale, offset = (w.reshape(-1) for w in weights)
    return Norm("response", (LAST,), scale.shape, eps, scale, offset, rank=4, channels=CHANNELS)


def write(norm: Norm) -> dict[str, Any]:
    if norm.kind not in _NAMES or len(norm.axes) != 1:
        raise ValueError(f"TensorFlow Addons has no {norm.kind} normalization; it has {', '.join(_KINDS)}")
    if norm.kind == "response":
        if norm.axes != (LAST,):
            raise ValueError("Addons' FilterResponseNormalization has its channels last")
        config: dict[str, Any] = {"axis": [1, 2], "epsilon": norm.eps, "learned_epsilon": False}
        weights = [values.reshape(1, 1, 1, -1) for values in neutral(norm)]
    else:
        has = {"scale": norm.scale is not None, "center": norm.offset is not None}
        config = {"groups": norm.groups or -1, "axis": norm.axes[0], "epsilon": norm.eps, **has}
        weights = [values for values in (norm.scale, norm.offset) if values is not None]
    return {"class_name": _NAMES[norm.kind], "config": config, "weights": weights}


def run(layer: Any, x: np.ndarray) -> np.ndarray:
    """What the layer's configuration and weights mean, by NumPy; the library is not needed and not asked."""
    norm = read(layer)
    y: np.ndarray = ops.normalize(x, norm.scale, norm.offset, None, norm.spec(x.ndim), norm.eps)[0]
    return y


def parts(model: Any) -> list[Any] | None:
    """A list of dictionaries is a chain of layers."""
    return model if isinstance(model, list) else None


def join(layers: list[Any]) -> list[Any]:
    return layers


def named(model: Any) -> Iterator[tuple[str, Any]]:
    """None: the layers of a list have no names."""
    return iter(())


def state(model: Any) -> dict[str, Any]:
    raise TypeError("a dictionary of arrays is a state already: give it to convert_state as it is")


def array(values: Array) -> np.ndarray:
    return np.asarray(values)
