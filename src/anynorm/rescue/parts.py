"""The parts of a layer's configuration that are not plain data: initializers and their like, and types.

Nothing is looked up by a module's name that a file gives, and no function of a file's is called: a class has to be one
that Keras itself has under that name and of the kind that is expected.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import keras

from .errors import RescueError

KINDS = {
    "initializer": (keras.initializers, keras.initializers.Initializer),
    "regularizer": (keras.regularizers, keras.regularizers.Regularizer),
    "constraint": (keras.constraints, keras.constraints.Constraint),
}
TUPLES = ("__tuple__", "TensorShape")
LARGEST_NUMBER = 2**31
# What is counted in steps of a window or of an iteration, and more of them than any layer has.
STEPS = frozenset((
    "cropping", "dilation_rate", "kernel_size", "padding", "pool_size", "power_iterations", "size", "strides",
))  # fmt: skip
LARGEST_STEP = 2**19
# What may be any number of 64 bits.
WIDE = frozenset(("mask_token", "oov_token", "seed", "shared_object_id", "vocabulary"))
PART_KEYS = frozenset(("class_name", "config", "module", "registered_name", "shared_object_id"))


@keras.saving.register_keras_serializable("anynorm")
class Guard(keras.initializers.Initializer):
    """Zeros in place of an initializer's numbers, as long as they are no more than the file can hold.

    A first build with these finds out, before memory is taken, whether the configuration and the weights fit.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        if (count := math.prod(shape)) > self.allowed:
            raise RescueError(
                f"a weight of shape {tuple(shape)} has {count:,} numbers, and the file only {self.allowed:,}; either "
                "the configuration or the weights are damaged"
            )
        return keras.ops.zeros(shape, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        return {"allowed": self.allowed}


def plain(value: Any, key: str = "") -> Any:
    """Configuration with tuples as lists and without the module that a class once came from.

    >>> plain({"class_name": "__tuple__", "items": [3, 3]})
    [3, 3]
    """
    if isinstance(value, dict):
        if value.get("class_name") in TUPLES and isinstance(value.get("items"), list):
            return [plain(item, key) for item in value["items"]]
        return {name: plain(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item, key) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise RescueError(f"a number in the configuration is {value}")
    most = LARGEST_STEP if key in STEPS else 2**64 if key in WIDE else LARGEST_NUMBER
    if isinstance(value, int) and abs(value) > most:
        raise RescueError(f"{key[:80]} is {value:.3g} in the configuration, which no model needs; the file is damaged")
    return value


def named(value: Any, kind: str, convert: Callable[[Any], Any] = lambda made: made) -> Any:
    """An initializer, regularizer or constraint, given by its name, or by its class and arguments."""
    module, base = KINDS[kind]
    if value is None:
        return None
    if isinstance(value, str):
        value = {"class_name": value, "config": {}}
    name, config = _class_and_config(value, kind)
    made = getattr(module, "".join(word[:1].upper() + word[1:] for word in name.split("_")), None)
    if made is None or not inspect.isclass(made) or not issubclass(made, base) or made is base:
        raise RescueError(f'the {kind} "{name}" is none of Keras\'s')
    known = inspect.signature(made.__init__).parameters
    arguments = {key: item for key, item in config.items() if key not in ("dtype", "partition_info")}
    if unknown := ", ".join(sorted(set(arguments) - set(known) | set(arguments) & {"self"})):
        raise RescueError(f'the {kind} "{name}" has no argument {unknown[:80]}')
    if any(isinstance(item, dict) for item in arguments.values()):
        raise RescueError(f'the {kind} "{name}" has an argument that is no plain number')
    return convert(made(**arguments))


def _class_and_config(value: Any, what: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        raise RescueError(f"what should be a {what} is {str(value)[:80]!r}")
    if unknown := ", ".join(sorted(set(value) - PART_KEYS)):
        raise RescueError(f"the description of a {what} has {unknown[:80]}, which none has")
    config = value.get("config") or {}
    if not isinstance(config, dict):
        raise RescueError(f"the configuration of a {what} is {str(config)[:80]!r}")
    return value["class_name"], config


def dtype(value: Any) -> str | None:
    """The name of a type or of a policy."""
    if isinstance(value, dict):
        _, config = _class_and_config(value, "dtype policy")
        value = config.get("name")
    if value is not None and value not in (
        "float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16", "int32", "int64", "bool",
        "uint8", "string",
    ):  # fmt: skip
        raise RescueError(f"{str(value)[:80]!r} is no type of numbers")
    return value


def is_part(key: str) -> str:
    """Which of the kinds an argument of this name is, or "".

    >>> is_part("kernel_initializer"), is_part("units")
    ('initializer', '')
    """
    return next((kind for kind in KINDS if key.endswith(f"_{kind}") or key == kind), "")
