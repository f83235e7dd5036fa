"""Which function an activation of an old model is: a name may mean another one in Keras 3."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from anynorm.keras.activations import approximate_gelu, keras2_hard_sigmoid

from .errors import RescueError

NEEDS = "to open the new file, import anynorm.keras first"
# Those that are another function in Keras 3 or have another name there, and what to say about them.
CHANGED: dict[str, tuple[Any, str]] = {
    "hard_sigmoid": (
        keras2_hard_sigmoid,
        f"hard_sigmoid is Keras 2's, clip(0.2 x + 0.5, 0, 1), and Keras 3 calls another function so; {NEEDS}",
    ),
    "gelu": (
        "gelu",
        "gelu is taken for Keras's; Keras 2.13 and later wrote Addons' gelu so too, of which it differs by up to 5e-4",
    ),
    "log_softmax_v2": ("log_softmax", ""),
    "Addons>gelu": (approximate_gelu, f"gelu is Addons', in its approximate form; {NEEDS}"),
    "Addons>hardshrink": ("hard_shrink", ""),
    "Addons>mish": ("mish", ""),
    "Addons>softshrink": ("soft_shrink", ""),
    "Addons>tanhshrink": ("tanh_shrink", ""),
}
NO_ACTIVATIONS = ("get", "serialize", "deserialize")


def activation(value: Any) -> tuple[Any, str]:
    """An activation, as its name where Keras has it, and what there is to say; Keras 2 wrote a few as objects."""
    if isinstance(value, dict):
        value = value.get("config") if value.get("class_name") == "function" else value.get("class_name")
    if value is None:
        return None, ""
    name = str(value)
    if name in CHANGED:
        return CHANGED[name]
    is_keras_s = not name.startswith("_") and name not in NO_ACTIVATIONS
    if not is_keras_s or not inspect.isfunction(getattr(keras.activations, name, None)):
        raise RescueError(f'the activation "{name[:80]}" is none of Keras\'s')
    return name, ""
