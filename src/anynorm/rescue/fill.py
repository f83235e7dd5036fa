"""From stored numbers into the slots of a model, for each of the three ways in which old files keep them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .bundle import Bundle
from .errors import RescueError
from .h5 import Reader
from .layout import Part, Slot, in_order, snake

LARGEST_WEIGHT = 1e30
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
APART = "they are two now, with the same numbers, and train apart: Keras 3 opens no file with a layer at two places"


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
        shared: which layers were one layer in several models of the old file, in words.
    """

    def __init__(self, part: Part, progress: Callable[[int, int], None] | None) -> None:
        self.part, self.progress = part, progress
        self.filled: set[int] = set()
        self.total = len(part.slots())
        self.shared: list[str] = []
        self.came: dict[int, tuple[Stored, bool]] = {}
        self.known: dict[Any, list[Part]] = {}
        self.places = dict(_places(part))

    def put(self, slot: Slot, stored: Stored, named: bool = True) -> None:
        last = re.sub(r"(_\d+)?(:\d+)?$", "", stored.name.rpartition("/")[2])
        if named and last not in {re.sub(r"_\d+$", "", name) for name in slot.names}:
            raise RescueError(f'the weight "{stored.name[:80]}" stands where "{slot.names[0]}" should')
        if not slot.takes(stored.shape):
            raise RescueError(
                f'the weight "{stored.name[:80]}" has the shape {stored.shape}, and the layer needs {slot.shape}'
            )
        slot.store(_checked(stored.read(), stored.name, last))
        self.filled.add(slot.key)
        self.came[id(slot)] = stored, named
        if self.progress:
            self.progress(min(len(self.filled), self.total), self.total)

    def copy(self, part: Part, first: Part) -> None:
        """Give a part the numbers of the one that was the same layer at another place."""
        for slot, other in zip(part.slots(), first.slots(), strict=True):
            if id(other) in self.came:
                self.put(slot, *self.came[id(other)])

    def one(self, part: Part, first: Part, sure: bool = True) -> None:
        """Note that two parts were one layer, or may have been."""
        if part.slots():
            were = "were one layer" if sure else "have the same name and numbers: if they were one layer"
            self.shared.append(f"{self.places[id(first)]} and {self.places[id(part)]} {were}, {APART}")

    def have_same_numbers(self, part: Part, other: Part) -> bool:
        pairs = ((self.came.get(id(a)), self.came.get(id(b))) for a, b in zip(part.slots(), other.slots(), strict=True))
        return all(a and b and np.array_equal(a[0].read(), b[0].read()) for a, b in pairs)

    def done(self) -> None:
        """Raise if a weight got no numbers; else let the layers work out what they make of theirs."""
        for part in self.part.every():
            missing = [slot.names[0] for slot in part.own if slot.key not in self.filled]
            if missing:
                raise RescueError(f"the file has no numbers for {part.name}'s {', '.join(missing)}")
        for part in self.part.every():
            if part.finish:
                part.finish()


def _places(part: Part, inside: str = "") -> Iterator[tuple[int, str]]:
    """Where each part is, by its identity: the names of the models and wrappers that it is in, and its own."""
    for child in part.children.values():
        yield id(child), f"{inside}{child.name}"
        yield from _places(child, f"{inside}{child.name}/")


def _repeated(
    part: Part, same: Callable[[Part, Part], bool], known: dict[Any, list[Part]] | None = None
) -> Iterator[tuple[Part, Part]]:
    """The layers in a part that are the same as earlier ones, and those; they have one name, class and shapes."""
    known = {} if known is None else known
    for key, child in part.children.items():
        if child.is_clone or not (part.is_model or key == "layer"):
            continue
        alike = known.setdefault(child.kind(), [])
        earlier = next((one for one in alike if same(child, one)), None)
        if earlier:
            yield child, earlier
        else:
            alike.append(child)
            yield from _repeated(child, same, known)


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
        whole = [[*first, *second] for first, second in (in_order(part, True), in_order(part, False))]
        # A model lists a layer once that is in it twice, in a model or wrapper within it.
        again = list(_repeated(part, lambda *_: True))
        others = {id(slot) for one, _ in again for slot in one.slots()}
        orders = whole + [[slot for slot in order if id(slot) not in others] for order in whole]
        slots = next((order for order in orders if len(order) == len(lists[name])), None)
        if slots is None:
            wanted = " or ".join(str(n) for n in sorted({len(order) for order in orders}))
            raise RescueError(f"the file has {len(lists[name])} weights for {name}, which has {wanted}")
        for slot, stored in zip(slots, lists[name], strict=True):
            filler.put(slot, stored)
        for one, first in again:
            if not any(id(slot) in filler.came for slot in one.slots()):
                filler.copy(one, first)
    for one, first in _repeated(filler.part, filler.have_same_numbers):
        filler.one(one, first, sure=False)


def from_numbers(filler: Filler, reader: Reader) -> None:
    """Weights that are numbered in each layer, in groups called after the layers' classes."""
    container = next((name for name in CONTAINERS if reader.is_group(name)), None)
    if container is None:
        raise RescueError(f"{reader.name} has no group of layers")
    _numbered(filler, filler.part, reader, "")


def _numbered(filler: Filler, part: Part, reader: Reader, path: str) -> None:
    filler.known.setdefault(part.kind(), []).append(part)
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
        _contained(filler, list(part.children.values()), reader, f"{path}{container}/")
        return
    cells = [child for key, child in part.children.items() if key.startswith("cells/")]
    _contained(filler, cells, reader, f"{path}cells/")
    for key, child in part.children.items():
        if key.startswith("cells/") or (child.is_clone and not reader.is_group(f"{path}{key}")):
            continue
        if key == "layer" and not reader.is_group(f"{path}{key}") and child.kind() in filler.known:
            _again(filler, child)
        else:
            _numbered(filler, child, reader, f"{path}{key}/")


def _again(filler: Filler, part: Part) -> None:
    """A layer that is in the file already, at another place."""
    first, *more = filler.known[part.kind()]
    if more and part.slots():
        raise RescueError(f"the file does not say which of several layers of one name {filler.places[id(part)]} is")
    filler.copy(part, first)
    filler.one(part, first)


def _contained(filler: Filler, parts: list[Part], reader: Reader, path: str) -> None:
    """The layers in a container, called after their classes and numbered from the second on.

    One that is in the file already, at another place, has neither a group nor a number here.
    """
    groups = Counter(re.sub(r"_\d+$", "", name) for name in reader.names(path))
    classes = Counter(snake(part.old) for part in parts)
    lacking = {name: count - groups[name] for name, count in classes.items()}
    seen: Counter[str] = Counter()
    for part in parts:
        name = snake(part.old)
        if lacking[name] > 0 and part.kind() in filler.known:
            lacking[name] -= 1
            _again(filler, part)
            continue
        if classes[name] > groups[name] and part.kind() in filler.known and part.slots():
            raise RescueError(f"the file does not say whether {filler.places[id(part)]} is in another model too")
        _numbered(filler, part, reader, f"{path}{name}_{seen[name]}/" if seen[name] else f"{path}{name}/")
        seen[name] += 1


def from_names(filler: Filler, bundle: Bundle, layers: dict[str, str]) -> None:
    """Weights of a SavedModel by the objects that have them; `layers` tells the name of the layer at each path."""
    names = {bundle.object(path): name.replace("/", "_") for path, name in layers.items()}
    objects: dict[int, int] = {}
    _by_name(filler, filler.part, bundle, 0, names, objects)
    for one, first in _repeated(filler.part, lambda a, b: objects.get(id(a)) == objects.get(id(b))):
        filler.one(one, first)


def _by_name(
    filler: Filler, part: Part, bundle: Bundle, at: int, names: dict[int | None, str], objects: dict[int, int]
) -> None:
    objects[id(part)] = at
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
            _by_name(filler, child, bundle, place, names, objects)
