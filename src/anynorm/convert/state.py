"""Whole state dictionaries: the same arrays under the names that another framework gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from .norm import type_name, widened

# The names of scale, offset, running mean and running variance, and what stands between a layer's name and theirs.
NAMES = {
    "torch": ("weight", "bias", "running_mean", "running_var"),
    "keras": ("gamma", "beta", "moving_mean", "moving_variance"),
    "nnx": ("scale", "bias", "mean", "var"),
    "addons": ("gamma", "beta", "moving_mean", "moving_variance"),
}
SEPARATORS = {"torch": ".", "keras": "/", "nnx": ".", "addons": "/"}
# Names besides: Keras's RMS normalization calls its weight scale.
ALIASES = {"keras": {"scale": "gamma"}}
NESTED = frozenset({"nnx"})
# Where filter response normalization's parameters have the input's dimensions, (1, 1, 1, c), and elsewhere (c,).
WHOLE = frozenset({"addons", "keras"})
# Filter response normalization's.
LEARNED = {"torch": "learned_eps", "keras": "learned_epsilon", "addons": "learned_epsilon"}
# What a dialect has beyond these, by which of them it comes with.
COMPANIONS = {"torch": {"running_mean": ("num_batches_tracked", 0)}}


def converted(state: Mapping[str, Any], names: Mapping[str, str], source: str, to: str) -> dict[str, Any]:
    """The arrays by the target's names, flat."""
    for given, is_what in (
        (state, "arrays by name, as model_state(model) gives them"),
        (names, "{name here: name there}"),
    ):
        if not isinstance(given, Mapping):
            raise TypeError(f"convert_state takes {is_what}, and this is a {type(given).__name__}")
    flat = dict(_flat(state, SEPARATORS[source]))
    result: dict[str, Any] = {}
    for ours, theirs in names.items():
        start = ours + SEPARATORS[source] if ours else ""
        found = {key: value for key, value in flat.items() if key == ours or key.startswith(start)}
        if not found:
            has = ", ".join(flat) or "none at all"
            raise KeyError(f'no entry of the state is called "{ours}" or begins with it; it has {has}')
        for key, value in found.items():
            inner = [("", value)] if key == ours else _renamed(key[len(start) :], value, source, to)
            for new, array in inner:
                name = SEPARATORS[to].join(part for part in (theirs, new) if part)
                if name in result:
                    raise ValueError(f'"{key}" would be "{name}" in {to}, and so would be another: write other names')
                result[name] = array
    return result


def _renamed(name: str, value: Any, source: str, to: str) -> Iterator[tuple[str, Any]]:
    if name in {companion for companion, _ in COMPANIONS.get(source, {}).values()}:
        if source == to:
            yield name, value
        return
    # In files of Keras 2 every name ends so.
    name = name.removesuffix(":0")
    known = ALIASES.get(source, {}).get(name, name)
    if source in LEARNED and known == LEARNED[source] and to in LEARNED:
        yield LEARNED[to], value
        return
    if known not in NAMES[source]:
        raise KeyError(
            f'"{name}" is no parameter of a normalization in {source} that {to} has: {", ".join(NAMES[source])}. Name '
            "layers of normalization only, or map the entry itself, by its full name on both sides"
        )
    if source in WHOLE and to not in WHOLE and _is_along_one(np.shape(value)):
        value = np.reshape(value, -1)
    new = NAMES[to][NAMES[source].index(known)]
    yield new, value
    if new in COMPANIONS.get(to, {}) and source != to:
        companion, start = COMPANIONS[to][new]
        yield companion, np.asarray(start)


def _is_along_one(shape: tuple[int, ...]) -> bool:
    """Of an image's four dimensions or more, all but one of length 1, which no other norm has."""
    return len(shape) > 3 and prod(shape) == max(shape)


def host(value: Any) -> tuple[np.ndarray, str]:
    """An array of any framework's as NumPy's, wider where NumPy has no such type, and the name of its own type.

    Raises what the framework does for an array without numbers, or TypeError.
    """
    array = value if hasattr(value, "dtype") else np.asarray(value)
    dtype = type_name(array)
    if hasattr(array, "detach"):
        # What is on a device of torch's, or watched by autograd, says its values only after these.
        array = array.detach().cpu()
        array = array.float() if dtype == "bfloat16" else array
    read = np.asarray(array)
    if read.dtype.kind in "OSU":
        # Of objects is what NumPy makes of anything that is no array, such as JAX's ShapeDtypeStruct.
        raise TypeError("it is of objects or text")
    return widened(read), dtype


def numbers(name: str, value: Any) -> tuple[np.ndarray, str]:
    """`host` of an entry; raises, saying what to do, where it has no numbers."""
    try:
        return host(value)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        (reason, *_) = str(error).splitlines() or [""]
        raise ValueError(
            f'what would be "{name}" is a {type(value).__name__} that has no numbers, or none that NumPy reads: call a '
            "lazy torch module once, give one on the meta device some by to_empty() and load_state_dict(), give an "
            "abstract one of Flax's some by nnx.update, and convert outside of compiled functions "
            f"({reason})"
        ) from error


def nested(flat: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`, with numbers as numbers, as in the states of lists."""
    tree: dict[Any, Any] = {}
    for key, value in flat.items():
        *path, last = (int(part) if part.isdigit() else part for part in key.split(separator))
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise ValueError(f'"{key}" would be in "{part}", which is an array')
        if isinstance(branch.get(last), dict):
            raise ValueError(f'"{key}" would be an array, and others are in it')
        branch[last] = value
    return tree


def _flat(state: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _flat(value, separator, f"{prefix}{key}{separator}")
        else:
            yield f"{prefix}{key}", value
