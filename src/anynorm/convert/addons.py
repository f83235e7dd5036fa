"""The dialect of TensorFlow Addons, whose layers are dictionaries here: the library itself need not be installed.

    {"class_name": "Addons>InstanceNormalization", "config": {"axis": -1, ...}, "weights": [gamma, beta]}

`config` is what the layer's `get_config()` gives, and `weights` its `get_weights()`, or what a file has in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..ops import numpy as ops
from .norm import LAST, Array, Norm, Types, layout_of, neutral, shape_of, widened

CHANNELS, ANY_SENTENCE, FREEZES = "last", False, False
LOUD: tuple[str, ...] = ()
_KINDS = {
    "GroupNormalization": "group",
    "InstanceNormalization": "instance",
    "FilterResponseNormalization": "response",
}
_NAMES = {kind: f"Addons>{name}" for name, kind in _KINDS.items()}
# The layers' defaults, for configurations that leave them out.
_DEFAULTS = {"axis": -1, "center": True, "scale": True}


def is_norm(layer: Any) -> bool:
    return _name(layer) in _KINDS


def why_not(layer: Any) -> str | None:
    """Why no layer made anew can be what this one is: there is nothing besides what is read."""
    return None


def variables(layer: Any) -> list[Any]:
    """None that two layers could share."""
    return []


def _name(layer: Any) -> str:
    if not isinstance(layer, Mapping) or not {"class_name", "config", "weights"} <= layer.keys():
        raise TypeError(
            f'this {type(layer).__name__} is no layer of TensorFlow Addons: {{"class_name": ..., "config": ..., '
            '"weights": [...]}, or a list of these'
        )
    return str(layer["class_name"]).rsplit(">", 1)[-1]


def read(layer: Any) -> Norm:
    name = _name(layer)
    if name not in _KINDS:
        raise TypeError(f"{name} is none of the normalizations of TensorFlow Addons: {', '.join(_KINDS)}")
    given = [np.asarray(w) for w in layer["weights"] or ()]
    config, weights = {**_DEFAULTS, **layer["config"]}, [widened(w) for w in given]
    types = Types(*[w.dtype.name for w in given[:1]])
    if _KINDS[name] == "response":
        return replace(_response(layer["config"], weights), types=types)
    axis = config["axis"]
    if not isinstance(axis, int) or axis == 0:
        raise ValueError(f"Addons' {name} has its channels on one axis behind the batch, and not on {axis!r}")
    if axis < -1:
        # Its reshape is wrong there, so that a model trained with it learned something else.
        raise ValueError(f"Addons' {name} on axis {axis} is no {_KINDS[name]} normalization; there is no counterpart")
    there = [config["scale"], config["center"]]
    if len(weights) != sum(there):
        raise ValueError(f"{name} with {config} has {sum(there)} weights, and {len(weights)} were given")
    values = iter(weights)
    scale, offset = (next(values) if yes else None for yes in there)
    kind, groups, shape = _KINDS[name], config.get("groups"), shape_of(scale, offset)
    if kind == "group" and groups is None:
        raise ValueError(f"the configuration of this {name} says no groups; Addons' default was 2 once, and 32 later")
    if kind == "group" and groups == -1:
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
        types=types,
    )


def _response(config: dict[str, Any], weights: list[np.ndarray]) -> Norm:
    eps = abs(float(config.get("epsilon", 1e-6)))
    is_learned = bool(config.get("learned_epsilon", False))
    if list(config.get("axis", [1, 2])) != [1, 2] or len(weights) != 2 + is_learned:
        raise ValueError(
            "Addons' FilterResponseNormalization has the axis [1, 2] and the weights gamma and beta, behind a learned "
            f"epsilon where it has one; this one has {config} and {len(weights)} weights"
        )
    learned = float(weights.pop(0)[0]) if is_learned else None
    scale, offset = (w.reshape(-1) for w in weights)
    one: dict[str, Any] = {"rank": 4, "channels": CHANNELS, "learned_eps": learned}
    return Norm("response", (LAST,), scale.shape, eps, scale, offset, **one)


def write(norm: Norm) -> dict[str, Any]:
    if norm.kind not in _NAMES or len(norm.axes) != 1:
        raise ValueError(f"TensorFlow Addons has no {norm.kind} normalization; it has {', '.join(_KINDS)}")
    if norm.kind == "response":
        if norm.axes != (LAST,):
            raise ValueError("Addons' FilterResponseNormalization has its channels last")
        learned = [] if norm.learned_eps is None else [np.array([norm.learned_eps], np.float32)]
        config: dict[str, Any] = {"axis": [1, 2], "epsilon": norm.eps, "learned_epsilon": bool(learned)}
        weights = [*learned, *(values.reshape(1, 1, 1, -1) for values in neutral(norm))]
    else:
        has = {"scale": norm.scale is not None, "center": norm.offset is not None}
        config = {"groups": norm.groups or -1, "axis": norm.axes[0], "epsilon": norm.eps, **has}
        weights = [values for values in (norm.scale, norm.offset) if values is not None]
    return {"class_name": _NAMES[norm.kind], "config": config, "weights": weights}


def run(layer: Any, x: np.ndarray) -> np.ndarray:
    """What the layer's configuration and weights mean, by NumPy; the library is not needed and not asked."""
    norm = read(layer)
    y: np.ndarray = ops.normalize(x, norm.scale, norm.offset, None, norm.spec(x.ndim), norm.whole_eps)[0]
    return y


def parts(model: Any) -> list[Any] | None:
    """A list of dictionaries is a chain of layers."""
    return model if isinstance(model, list) else None


def join(layers: list[Any]) -> list[Any]:
    return layers


def named(model: Any) -> Iterator[tuple[str, Any]]:
    """None: the layers of a list have no names."""
    return iter(())


def state(model: Any) -> Iterable[tuple[str, Any]]:
    raise TypeError("a dictionary of arrays is a state already: give it to convert_state as it is")


def array(values: Array, dtype: str) -> np.ndarray:
    """NumPy has no bfloat16: its values come as float32."""
    return np.asarray(values)
