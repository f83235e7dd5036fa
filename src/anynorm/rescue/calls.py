"""The tensors that a configuration speaks of: shapes of inputs, and references to what layers return."""

from __future__ import annotations

import math
from typing import Any

from .errors import RescueError

# More numbers in one sample than any input has.
LARGEST_SAMPLE = 2**28
# A keyword argument that is None, where None stands for a tensor that is not there yet.
NONE = object()


def name_of(config: dict[str, Any]) -> str | None:
    """A name without the slashes that Keras 3 does not allow in it; old models may have none at all."""
    name = config.get("name")
    if name is not None and not isinstance(name, str):
        raise RescueError(f"a name is {str(name)[:80]!r}, which is no text")
    return name and name.replace("/", "_")


def input_shape(shape: Any) -> tuple[int | None, ...]:
    fits = isinstance(shape, list) and all(n is None or (type(n) is int and n > 0) for n in shape)
    if not fits or math.prod(n or 1 for n in shape) > LARGEST_SAMPLE:
        raise RescueError(f"{str(shape)[:80]!r} is no shape of an input")
    return tuple(shape)


def check_agreement(stated: tuple[int | None, ...], given: Any) -> None:
    shape = tuple(given.shape)
    if len(stated) != len(shape) or any(None not in pair and pair[0] != pair[1] for pair in zip(stated, shape)):  # noqa: B905
        raise RescueError(f"its input is {shape}, and was {stated} in the old model; the file is damaged")


def _is_reference(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and all(type(n) is int for n in value[1:3])
    )


def tensor(value: Any, tensors: dict[str, dict[int, Any]]) -> Any:
    """The tensor that a reference means, or None if its layer has not been called yet."""
    if not _is_reference(value) or value[0] not in tensors:
        raise RescueError(
            f"{str(value)[:80]!r} refers to no layer; the file is damaged, or a layer of this model is in a model "
            "within it too, and Keras 2 lost how it was called, which it does but in .keras"
        )
    made = tensors[value[0]].get(value[1])
    if made is None:
        return None
    made = made if isinstance(made, list | tuple) else [made]
    if not 0 <= value[2] < len(made):
        raise RescueError(f"{value[0]} has no output number {value[2]}")
    return made[value[2]]


def keywords(given: Any, tensors: dict[str, dict[int, Any]]) -> dict[str, Any]:
    """The keyword arguments of a call: tensors, lists of them, and plain values."""
    if not isinstance(given, dict):
        raise RescueError(f"its arguments are {str(given)[:80]!r}")
    keywords: dict[str, Any] = {}
    for key, value in given.items():
        if _is_reference(value):
            keywords[key] = tensor(value, tensors)
        elif isinstance(value, list) and value and all(_is_reference(one) for one in value):
            found = [tensor(one, tensors) for one in value]
            keywords[key] = None if any(one is None for one in found) else found
        elif isinstance(value, dict | list):
            raise RescueError(f"its argument {key[:80]} is {str(value)[:80]!r}, which is not known here")
        else:
            keywords[key] = NONE if value is None else value
    return keywords


def ends(value: Any, tensors: dict[str, dict[int, Any]]) -> Any:
    """A model's inputs or outputs: one tensor, a list or a dictionary of them."""
    if _is_reference(value):
        value = [value]
    if isinstance(value, dict):
        return {key: _found(one, tensors) for key, one in value.items()}
    if not isinstance(value, list) or not value:
        raise RescueError(f"the model's inputs or outputs are {str(value)[:80]!r}")
    found = [_found(one, tensors) for one in value]
    return found[0] if len(found) == 1 else found


def _found(value: Any, tensors: dict[str, dict[int, Any]]) -> Any:
    found = tensor(value, tensors)
    if found is None:
        raise RescueError(f"{value[0]} has no call number {value[1]}")
    return found
