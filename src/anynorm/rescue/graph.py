"""From the configuration that Keras 2 wrote to a Keras 3 model, layer by layer and call by call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from . import calls, parts
from .classes import MODELS, WITHOUT_EFFECT, accepted, changed, class_of, why_not
from .errors import RescueError, blaming
from .report import Report, Row

INNER = ("layer", "backward_layer", "cell", "cells")
LAYER_KEYS = parts.PART_KEYS | {"build_config", "build_input_shape", "compile_config", "inbound_nodes", "name"}
# More layers and more models within models than there are.
MOST_LAYERS = 5_000
DEEPEST = 20


def old_class(spec: Any) -> tuple[str, dict[str, Any]]:
    """A layer's class in the old model, and its configuration."""
    if not isinstance(spec, dict) or not isinstance(spec.get("class_name"), str):
        raise RescueError(f"where a layer should be described there is {str(spec)[:80]!r}")
    if unknown := ", ".join(sorted(set(spec) - LAYER_KEYS)):
        raise RescueError(f"the description of a {spec['class_name'][:80]} has {unknown[:80]}, which no layer has")
    registered, config = spec.get("registered_name"), spec.get("config")
    old = registered if isinstance(registered, str) and ">" in registered else spec["class_name"]
    if old == "Sequential" and isinstance(config, list):
        config = {"layers": config}
    if not isinstance(config, dict):
        raise RescueError(f"the configuration of a {old[:80]} is {str(config)[:80]!r}")
    return old, config


def layers_in(spec: Any, inside: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Names and old classes of all layers, those in wrappers and models too."""
    old, config = old_class(spec)
    if depth > DEEPEST:
        raise RescueError(f"layers are within {DEEPEST} others, which no model's are; the file is damaged or hostile")
    name = f"{inside}{config.get('name', old)}"
    if old not in MODELS:
        yield name, old
    for key in INNER if old not in MODELS else ("layers",):
        found = config.get(key)
        for one in found if isinstance(found, list) else [found] if found is not None else []:
            yield from layers_in(one, f"{name}/" if depth or old not in MODELS else "", depth + 1)


def survey(spec: Any, report: Report, unsafe: bool) -> None:
    """Put every layer into the report; raise, naming them all, if some cannot be taken over."""
    for name, old in layers_in(spec):
        if len(report.rows) == MOST_LAYERS:
            raise RescueError(f"the model has more than {MOST_LAYERS:,} layers")
        made = keras.layers.Lambda if unsafe and old == "Lambda" else class_of(old)
        if made is None:
            report.rows.append(Row(name, old, refused=why_not(old)))
        else:
            report.rows.append(Row(name, old, keras.saving.get_registered_name(made)))
    if report.refused:
        reasons = "\n".join(f"  {row.name}: {row.refused}" for row in report.refused)
        error = RescueError(f"{report.path} has layers that cannot be taken over:\n{reasons}")
        error.report = report
        raise error


class Builder:
    """Makes a model; `allowed` is how many numbers a weight may have in a build that only tries whether all fits.

    Attributes:
        old: the old class of each layer that was made, by its identity.
        frozen: the layers that were not trainable.
    """

    def __init__(self, report: Report, allowed: int | None, unsafe: bool) -> None:
        self.report, self.allowed, self.unsafe = report, allowed, unsafe
        self.old: dict[int, str] = {}
        self.frozen: list[Any] = []

    def model(self, spec: Any) -> Any:
        old, config = old_class(spec)
        if old not in MODELS:
            raise RescueError(
                f"the model is a {old[:80]}, a class of its own; only Sequential and functional are known"
            )
        if not isinstance(config.get("layers"), list) or not config["layers"]:
            raise RescueError(f"the {old} model lists no layers")
        model = self._sequential(config) if old == "Sequential" else self._functional(config)
        return self._made(model, old, config)

    def _made(self, layer: Any, old: str, config: dict[str, Any]) -> Any:
        self.old[id(layer)] = old
        if config.get("trainable") is False:
            self.frozen.append(layer)
        return layer

    def layer(self, spec: Any) -> Any:
        old, config = old_class(spec)
        if old in MODELS:
            return self.model(spec)
        name = str(config.get("name", old))
        with blaming(f"layer {name[:80]}"):
            if old == "InputLayer":
                return self._input(config)
            if old == "Lambda":
                return self._lambda(config)
            made = class_of(old)
            if made is None:
                raise RescueError(why_not(old))
            config, notes = changed(old, parts.plain(config))
            layer = made(**self._arguments(made, config))
            self._note(name, notes)
            return self._made(layer, old, config)

    def _note(self, name: str, notes: list[str]) -> None:
        for row in self.report.rows:
            if row.name.rpartition("/")[2] == name:
                row.changes += [note for note in notes if note not in row.changes]

    def _arguments(self, made: type, config: dict[str, Any]) -> dict[str, Any]:
        known = accepted(made)
        arguments: dict[str, Any] = {}
        for key, value in config.items():
            if key == "trainable":
                continue
            if key not in known:
                neutral = WITHOUT_EFFECT.get(key)
                if neutral is None or (neutral and value not in neutral):
                    raise RescueError(f"{made.__name__} has no argument {key[:80]}={repr(value)[:80]} in Keras 3")
                continue
            arguments[key] = self._argument(key, value)
        if self.allowed is not None:
            guard = parts.Guard(self.allowed)
            arguments |= {key: guard for key in known if parts.is_part(key) == "initializer"}
        return arguments

    def _argument(self, key: str, value: Any) -> Any:
        if key in INNER and value is not None:
            return [self.layer(one) for one in value] if isinstance(value, list) else self.layer(value)
        if kind := parts.is_part(key):
            return parts.named(value, kind)
        if key == "dtype":
            return parts.dtype(value)
        if key == "name":
            return calls.name_of({"name": value})
        if isinstance(value, dict):
            raise RescueError(f"the argument {key[:80]} is an object, {str(value)[:80]!r}, which is not known here")
        return value

    def _input(self, config: dict[str, Any]) -> Any:
        shape = parts.plain(config.get("batch_input_shape", config.get("batch_shape")))
        if config.get("ragged") or config.get("sparse"):
            raise RescueError("ragged and sparse inputs are not in Keras 3 on every backend")
        dtype = parts.dtype(config.get("dtype"))
        return keras.Input(batch_shape=calls.input_shape(shape), dtype=dtype, name=calls.name_of(config))

    def _lambda(self, config: dict[str, Any]) -> Any:
        if not self.unsafe:
            raise RescueError(why_not("Lambda"))
        code = config.get("function")
        if isinstance(code, dict):
            code = (code.get("config") or {}).get("value")
        if not isinstance(code, list) or len(code) != 3:
            raise RescueError("its code is neither as Keras 2 wrote it in HDF5 nor in .keras")
        kept: dict[str, Any] = {key: config[key] for key in ("name", "arguments") if key in config}
        function: dict[str, Any] = {
            "class_name": "__lambda__",
            "config": {"code": code[0], "defaults": code[1], "closure": code[2]},
        }
        return keras.layers.Lambda.from_config({**kept, "function": function}, safe_mode=False)

    def _sequential(self, config: dict[str, Any]) -> Any:
        specs = config["layers"]
        first, arguments = old_class(specs[0])
        inputs = []
        if first == "InputLayer":
            inputs, specs = [self.layer(specs[0])], specs[1:]
        elif first not in MODELS:
            shape = arguments.get("batch_input_shape") or config.get("build_input_shape")
            if shape is None:
                raise RescueError("the model has never seen an input, so that its weights have no shapes")
            inputs = [keras.Input(batch_shape=calls.input_shape(parts.plain(shape)))]
        layers, x = [], inputs[0] if inputs else None
        for spec in specs:
            layer = self.layer(spec)
            with blaming(f"layer {layer.name}"):
                # Called here, so that an error has the layer's name; the model calls them all once more.
                x = layer.outputs[0] if x is None else self._call(layer, spec, x)
            layers.append(layer)
        return keras.Sequential([*inputs, *layers], name=calls.name_of(config))

    def _call(self, layer: Any, spec: Any, given: Any, **keywords: Any) -> Any:
        """Call a layer for the first time, on what the configuration says was its input then."""
        if isinstance(layer, OF_ANY_SHAPE):
            return layer(given, **keywords)
        config = spec["config"]
        stated = [config.get("batch_input_shape")] if isinstance(config, dict) else []
        stated += [build.get("input_shape") for build in [spec.get("build_config")] if isinstance(build, dict)]
        for shape in map(parts.plain, stated):
            if isinstance(shape, list) and not any(isinstance(n, list | dict) for n in shape):
                calls.check_agreement(calls.input_shape(shape), given)
        return layer(given, **keywords)

    def _functional(self, config: dict[str, Any]) -> Any:
        layers: dict[str, Any] = {}
        tensors: dict[str, dict[int, Any]] = {}
        specs: dict[str, Any] = {}
        waiting: list[tuple[str, int, Any]] = []
        for spec in config["layers"]:
            old, own = old_class(spec)
            name = spec.get("name", own.get("name"))
            if not isinstance(name, str) or name in layers:
                raise RescueError(f"a layer is called {str(name)[:80]!r}, which is no name or another's too")
            layers[name], specs[name] = self.layer(spec), spec
            tensors[name] = {0: layers[name]} if old == "InputLayer" else {}
            # A model's own nodes begin with the one that made it.
            start = int(old in MODELS)
            nodes = spec.get("inbound_nodes") or []
            waiting += [(name, start + i, node) for i, node in enumerate(nodes)] if old != "InputLayer" else []
        while waiting:
            later = [node for node in waiting if not self._called(layers, specs, tensors, *node)]
            if len(later) == len(waiting):
                raise RescueError(f"the calls of {later[0][0]} need tensors that no layer makes")
            # Backwards in turn, in which a list that begins with the last layer is quick.
            waiting = later[::-1]
        inputs, outputs = (calls.ends(config.get(key), tensors) for key in ("input_layers", "output_layers"))
        with blaming("the model's inputs and outputs"):
            return keras.Model(inputs, outputs, name=calls.name_of(config))

    def _called(
        self,
        layers: dict[str, Any],
        specs: dict[str, Any],
        tensors: dict[str, dict[int, Any]],
        name: str,
        at: int,
        node: Any,
    ) -> bool:
        """Make a layer's call if its inputs are there and its earlier calls have been made."""
        with blaming(f"a call of {name[:80]}"):
            if not isinstance(node, list) or not node:
                raise RescueError(f"it is written as {str(node)[:80]!r}")
            given = [calls.tensor(one, tensors) for one in node]
            keywords = calls.keywords(node[0][3] if len(node[0]) > 3 else {}, tensors)
            first = int(self.old.get(id(layers[name])) in MODELS)
            earlier = at == first or at - 1 in tensors[name]
            if not earlier or any(one is None for one in [*given, *keywords.values()]):
                return False
            keywords = {key: None if value is calls.NONE else value for key, value in keywords.items()}
            if isinstance(layers[name], RECURRENT) and len(given) > 1:
                # Keras 2 wrote the initial states as further inputs.
                given, keywords["initial_state"] = given[:1], given[1:]
                if keywords.pop("constants", None) is not None:
                    raise RescueError("Keras 3 has no constants of recurrent layers")
            one = len(given) == 1 and not isinstance(layers[name], MERGING)
            if one and at == first:
                tensors[name][at] = self._call(layers[name], specs[name], given[0], **keywords)
            else:
                tensors[name][at] = layers[name](given[0] if one else given, **keywords)
            return True


MERGING = tuple(
    getattr(keras.layers, name)
    for name in ("Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract")
)
# They may have seen data of another shape before.
OF_ANY_SHAPE = (keras.layers.Discretization, keras.layers.IntegerLookup)
RECURRENT = (keras.layers.Bidirectional, keras.layers.RNN)
