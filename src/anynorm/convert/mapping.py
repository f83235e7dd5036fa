"""Which norm of one model is which of another: only where there is no doubt."""

from __future__ import annotations

import re
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

from . import model as models
from .norm import Shapes


class _Known(NamedTuple):
    """What is known of a norm besides its name.

    Attributes:
        kind: "batch" and so on, or None for a norm given as a sentence, which may be any.
        shapes: those of its parameters and running statistics, by what they are.
    """

    kind: str | None
    shapes: Shapes

    def fits(self, other: _Known) -> bool:
        """Flax has the parameters of several axes in one, so that only shapes of as many axes are compared."""
        if None not in (self.kind, other.kind) and self.kind != other.kind:
            return False
        if self.shapes.keys() != other.shapes.keys():
            return False
        pairs = ((shape, other.shapes[role]) for role, shape in self.shapes.items())
        return all(a == b if len(a) == len(b) else prod(a) == prod(b) for a, b in pairs)

    def __str__(self) -> str:
        shape = next(iter(self.shapes.values()))
        return f"{self.kind or 'sentence'} {shape}, {' and '.join(self.shapes)}"


def of_models(a: Any, source: ModuleType, b: Any, target: ModuleType) -> dict[str, str]:
    """The names of a's norms to those of b's; raises where they could be paired in more than one way."""
    ours, theirs = _known(a, source), _known(b, target)
    if len(ours) != len(theirs):
        raise ValueError(f"one model has {len(ours)} norms and the other {len(theirs)}: {_shown(ours, theirs)}")
    pairs = _by_name(ours, theirs) or _by_order(a, source, b, target) or _by_shape(ours, theirs)
    if pairs is None:
        raise ValueError(
            "their names differ and several have one kind and shape, so that only you know which is which: write the "
            f"mapping, {{name here: name there}}. {_shown(ours, theirs)}"
        )
    for name, other in pairs.items():
        if not ours[name].fits(theirs[other]):
            raise ValueError(
                f'"{name}" ({ours[name]}) would be "{other}" ({theirs[other]}), and they do not fit; write the '
                f"mapping, {{name here: name there}}. {_shown(ours, theirs)}"
            )
    return pairs


def _known(model: Any, dialect: ModuleType) -> dict[str, _Known]:
    found = models.norms(model, dialect).items()
    return {name: _Known(dialect.kind(layer), dialect.shapes(layer)) for name, layer in found}


def _by_name(ours: dict[str, _Known], theirs: dict[str, _Known]) -> dict[str, str] | None:
    here, there = _bare(list(ours)), _bare(list(theirs))
    return {name: there[bare] for bare, name in here.items()} if here.keys() == there.keys() else None


def _bare(names: list[str]) -> dict[tuple[str, ...], str]:
    """The names without what depends on the framework; as they are where two would become one."""
    split = [[part for part in re.split(r"[./]", name) if part != "layers"] for name in names]
    while len(split) > 1 and all(len(parts) > 1 and parts[0] == split[0][0] for parts in split):
        split = [parts[1:] for parts in split]
    found = {tuple(parts): name for parts, name in zip(split, names, strict=True)}
    return found if len(found) == len(names) else {(name,): name for name in names}


def _by_order(a: Any, source: ModuleType, b: Any, target: ModuleType) -> dict[str, str] | None:
    orders = [_order(a, source), _order(b, target)]
    return None if None in orders else dict(zip(*orders, strict=True))  # type: ignore[arg-type]


def _order(model: Any, dialect: ModuleType) -> list[str] | None:
    """The names of a chain's norms in the order in which it calls them; None where a norm is not the chain's own."""
    names = {id(layer): name for name, layer in models.norms(model, dialect).items()}
    calls = [names[id(layer)] for layer in models.flat(model, dialect) if id(layer) in names]
    is_whole = dialect.parts(model) is not None and len(calls) == len(set(calls)) == len(names)
    return calls if is_whole else None


def _by_shape(ours: dict[str, _Known], theirs: dict[str, _Known]) -> dict[str, str] | None:
    fitting = {name: [other for other in theirs if known.fits(theirs[other])] for name, known in ours.items()}
    pairs = {name: found[0] for name, found in fitting.items() if len(found) == 1}
    return pairs if len(pairs) == len(ours) == len(set(pairs.values())) else None


def _shown(ours: dict[str, _Known], theirs: dict[str, _Known]) -> str:
    here, there = (", ".join(f'"{name}" ({known})' for name, known in side.items()) for side in (ours, theirs))
    return f"Here: {here or 'none'}. There: {there or 'none'}"
