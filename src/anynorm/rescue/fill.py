"""From stored numbers into the slots of a model, for each of the three ways in which old files keep them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .bundle import Bundle
from .errors import RescueError
from .h5 import Reader
from .layout import Part, Slot, in_order, snake

LARGEST_WEIGHT = 1e30
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


@dataclass(frozen=True)
class Stored:
    """Numbers in a file that have not been read yet."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Filler:
    """Puts numbers into slots; nothing is read before its shape is known to fit.

    Attributes:
        progress: is told how many of all weights are read.
    """

    def __init__(self, part: Part, progress: Callable[[int, int], None] | None) -> None:
        self.part, self.progress = part, progress
        self.filled: set[int] = set()
        self.total = len(part.slots())

    def put(self, slot: Slot, stored: Stored, named: bool = True) -> None:
        last = re.sub(r"(_\d+)?(:\d+)?$", "", stored.name.rpartition("/")[2])
        if named and last not in {re.sub(r"_\d+$", "", name) for name in slot.names}:
            raise RescueError(f'the weight "{stored.name[:80]}" stands where "{slot.names[0]}" should')
        if stored.shape != slot.shape:
            raise RescueError(
                f'the weight "{stored.name[:80]}" has the shape {stored.shape}, and the layer needs {slot.shape}'
            )
        slot.store(_checked(stored.read(), stored.name, last))
        self.filled.add(slot.key)
        if self.progress:
            self.progress(min(len(self.filled), self.total), self.total)

    def done(self) -> None:
        """Raise if a weight got no numbers; else let the layers work out what they make of theirs."""
        for part in self.part.every():
            missing = [slot.names[0] for slot in part.own if slot.key not in self.filled]
            if missing:
                raise RescueError(f"the file has no numbers for {part.name}'s {', '.join(missing)}")
        for part in self.part.every():
            if part.finish:
                part.finish()


def _checked(array: np.ndarray, name: str, last: str) -> np.ndarray:
    """Numbers that a weight may have; HDF5 has no checksums, but a flipped bit of an exponent shows."""
    if array.dtype.kind == "f" and not (np.abs(array) <= LARGEST_WEIGHT).all():
        raise RescueError(f'the weight "{name[:80]}" has numbers that are not finite or beyond {LARGEST_WEIGHT:g}')
    if last in ("variance", "moving_variance") and (array < 0).any():
        raise RescueError(f'the variance "{name[:80]}" is negative')
    return array


def from_lists(filler: Filler, lists: dict[str, list[Stored]]) -> None:
    """Weights in Keras 2's order for each layer of the model: by name, or in order where no name fits."""
    layers = {part.name: part for part in filler.part.children.values() if in_order(part, True) != ([], [])}
    lists = {name.replace("/", "_"): stored for name, stored in lists.items() if stored}
    if set(lists) != set(layers):
        if len(lists) != len(layers) or set(lists) & set(layers):
            only = sorted(set(lists) ^ set(layers))
            raise RescueError(f"file and model do not have the same layers with weights: {', '.join(only)[:300]}")
        lists = dict(zip(layers, lists.values(), strict=True))
    for name, part in layers.items():
        orders = [[*first, *second] for first, second in (in_order(part, True), in_order(part, False))]
        slots = next((order for order in orders if len(order) == len(lists[name])), None)
        if slots is None:
            wanted = " or ".join(str(n) for n in sorted({len(order) for order in orders}))
            raise RescueError(f"the file has {len(lists[name])} weights for {name}, which has {wanted}")
        for slot, stored in zip(slots, lists[name], strict=True):
            filler.put(slot, stored)


def from_numbers(filler: Filler, reader: Reader) -> None:
    """Weights that are numbered in each layer, in groups called after the layers' classes."""
    container = next((name for name in CONTAINERS if reader.is_group(name)), None)
    if container is None:
        raise RescueError(f"{reader.name} has no group of layers")
    _numbered(filler, filler.part, reader, "")


def _numbered(filler: Filler, part: Part, reader: Reader, path: str) -> None:
    stored = [
        Stored(f"{path}vars/{name}", reader.shape(f"{path}vars/{name}"), partial(reader.array, f"{path}vars/{name}"))
        for name in sorted(reader.names(f"{path}vars"), key=lambda n: (len(n), n))
    ]
    own = [slot for slot in part.own if not slot.twin] if len(stored) < len(part.own) else part.own
    if len(own) != len(stored) and not (part.is_clone and not stored):
        raise RescueError(f"the file has {len(stored)} weights for {part.name}, which has {len(own)}")
    for slot, one in zip(own, stored, strict=False):
        filler.put(slot, one, named=False)
    if part.is_model:
        container = next((name for name in CONTAINERS if reader.is_group(f"{path}{name}")), CONTAINERS[0])
        for key, child in _numbered_names(part.children.values()):
            _numbered(filler, child, reader, f"{path}{container}/{key}/")
        return
    cells = [child for key, child in part.children.items() if key.startswith("cells/")]
    for key, child in _numbered_names(cells):
        _numbered(filler, child, reader, f"{path}cells/{key}/")
    for key, child in part.children.items():
        if not key.startswith("cells/") and (not child.is_clone or reader.is_group(f"{path}{key}")):
            _numbered(filler, child, reader, f"{path}{key}/")


def _numbered_names(parts: Iterable[Part]) -> list[tuple[str, Part]]:
    """The layers' names in the file: their classes', numbered from the second on."""
    seen: dict[str, int] = {}
    named = []
    for part in parts:
        name = snake(part.old)
        seen[name] = seen.get(name, -1) + 1
        named.append((f"{name}_{seen[name]}" if seen[name] else name, part))
    return named


def from_names(filler: Filler, bundle: Bundle, layers: dict[str, str]) -> None:
    """Weights of a SavedModel by the objects that have them; `layers` tells the name of the layer at each path."""
    names = {bundle.object(path): name.replace("/", "_") for path, name in layers.items()}
    _by_name(filler, filler.part, bundle, 0, names)


def _by_name(filler: Filler, part: Part, bundle: Bundle, at: int, names: dict[int | None, str]) -> None:
    for slot in part.own:
        found = ((name, bundle.key(at, name)) for name in slot.names)
        name, key = next(((name, key) for name, key in found if key), ("", ""))
        if key:
            stored = Stored(f"{part.name}/{name}", bundle.entries[key].shape, partial(bundle.read, key))
            filler.put(slot, stored)
    for key, child in part.children.items():
        if part.is_model:
            inside = bundle.objects[at].children.items()
            ways = (i for name, i in inside if name.startswith("layer") and names.get(i) == child.name)
            place = next(ways, None)
        else:
            place = bundle.object(key, at)
        if place is not None:
            _by_name(filler, child, bundle, place, names)
