"""The norms of a Keras model as facts."""

from __future__ import annotations

from typing import Any

from ..convert import keras as dialect
from ..convert.state import NAMES
from .facts import Facts, facts_of
from .keras_norms import kind_of, norms
from .keras_probe import Probe


def facts(model: Any, probe: Probe, batch: int | None) -> list[Facts]:
    """Each norm's, in the model's order."""
    found = []
    for name, layer, _, _ in norms(model):
        layer_name, shapes = type(layer).__name__, probe.shapes.get(id(layer), [])
        try:
            norm = dialect.read(layer)
        except (TypeError, ValueError) as unreadable:
            found.append(
                Facts(name, layer_name, kind_of(layer) or "norm", "", tuple(shapes), doubts=(str(unreadable),))
            )
            continue
        found.append(facts_of(name, layer_name, norm, NAMES["keras"], shapes, batch, not layer.trainable))
    return found
