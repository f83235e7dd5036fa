"""HDF5 files, read so that a damaged or hostile one can neither reach other files nor claim more than it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RescueError, blaming

# Keras 2 does not compress, and weights hardly shrink; what claims to have shrunk more is there to fill the memory.
MOST_COMPRESSED = 100
# More of a model's structure than any has, and more groups and arrays.
LARGEST_TEXT = 1 << 24
MOST_OBJECTS = 12_000
OPTIMIZER = ("optimizer", "optimizer_weights")


class Reader:
    """An open HDF5 file.

    Attributes:
        name: the file's, for messages.
        seen: the paths of the arrays that have been read.
    """

    def __init__(self, file: Any, name: str) -> None:
        self.file, self.name = file, name
        self.seen: set[str] = set()

    def _at(self, path: str) -> Any:
        import h5py

        at = self.file
        for word in path.strip("/").split("/"):
            link = at.get(word, getlink=True) if isinstance(at, h5py.Group) else None
            if not isinstance(link, h5py.HardLink):
                raise RescueError(f"{self.name} has no {path[:80]}, or only a link to somewhere else")
            at = at[word]
        return at

    def is_group(self, path: str) -> bool:
        import h5py

        at = self.file
        for word in path.strip("/").split("/"):
            if not isinstance(at, h5py.Group) or not isinstance(at.get(word, getlink=True), h5py.HardLink):
                return False
            at = at[word]
        return isinstance(at, h5py.Group)

    def names(self, path: str) -> list[str]:
        """What a group has in it; nothing if there is no such group."""
        return list(self._at(path)) if self.is_group(path) else []

    def _dataset(self, path: str) -> Any:
        return self._numbers(self._at(path), path)

    def _numbers(self, found: Any, path: str) -> Any:
        """An array of which the file holds as much as it claims."""
        import h5py

        if not isinstance(found, h5py.Dataset) or found.shape is None or found.dtype.kind not in "fiub":
            raise RescueError(f"{path[:80]} in {self.name} is no array of numbers")
        if found.is_virtual or found.external:
            raise RescueError(f"the numbers of {path[:80]} are outside {self.name}, where nothing is read")
        if found.size * found.dtype.itemsize > MOST_COMPRESSED * found.id.get_storage_size():
            raise RescueError(f"{path[:80]} claims a shape of {found.shape}, and {self.name} does not hold so much")
        return found

    def shape(self, path: str) -> tuple[int, ...]:
        return tuple(self._dataset(path).shape)

    def array(self, path: str) -> np.ndarray:
        array: np.ndarray = self._dataset(path)[()]
        self.seen.add(path)
        return np.asarray(array)

    def arrays(self, inside: str = "") -> Iterator[tuple[str, Any]]:
        """All arrays in a group and the groups in it, and their paths, but for the optimizer's."""
        import h5py

        waiting = [(f"{inside}/" if inside else "", self._at(inside) if inside else self.file)]
        visits = 0
        while waiting:
            path, group = waiting.pop()
            for name in group:
                if not path and name in OPTIMIZER:
                    continue
                at = f"{path}{name}"
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise RescueError(f"{at[:80]} in {self.name} is only a link to somewhere else")
                found = group[name]
                if isinstance(found, h5py.Group):
                    waiting.append((f"{at}/", found))
                else:
                    yield at, found
                # Groups may contain themselves, once or several times.
                visits += 1
                if visits > MOST_OBJECTS or at.count("/") > 50:
                    raise RescueError(
                        f"{self.name} has more groups and arrays than any model; are they within each other?"
                    )

    def count(self) -> int:
        """How many numbers the arrays of the file have together."""
        return sum(math.prod(self._numbers(found, path).shape) for path, found in self.arrays())

    def attribute(self, path: str, name: str) -> Any:
        """An attribute, with bytes as text."""
        import h5py

        at = self._at(path) if path else self.file
        if name not in at.attrs:
            return None
        value = at.attrs[name]
        if isinstance(value, h5py.Empty):
            return []
        if isinstance(value, np.ndarray):
            return [one.decode() if isinstance(one, bytes) else str(one) for one in value.tolist()]
        return value.decode() if isinstance(value, bytes) else value

    def attributes(self, path: str, name: str) -> list[str]:
        """A list of names, which Keras splits over several attributes where it is long."""
        whole = self.attribute(path, name)
        if isinstance(whole, list):
            return whole
        found: list[str] = []
        for i in range(10000):
            part = self.attribute(path, f"{name}{i}")
            if not isinstance(part, list):
                break
            found += part
        return found

    def json(self, name: str) -> Any:
        value = self.attribute("", name)
        return None if value is None else parsed(value, f"the {name} in {self.name}")


def parsed(value: Any, what: str) -> Any:
    """JSON, or an error that says what is not."""
    if isinstance(value, str | bytes) and len(value) > LARGEST_TEXT:
        raise RescueError(f"{what} is {len(value):,} letters long, more than any model's structure")
    try:
        return json.loads(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise RescueError(f"{what} is no JSON, and damaged: {str(error)[:80]}") from error


@contextmanager
def reading(path: Path, name: str | None = None) -> Iterator[Reader]:
    """Open a file for the block, and turn what it does wrong into a `RescueError`."""
    import h5py

    name = name or str(path)
    with blaming(name, MemoryError):
        if not h5py.is_hdf5(path):
            raise RescueError(f"{name} is neither an HDF5 file nor a zip archive, or it is cut off")
        with h5py.File(path, "r") as file:
            yield Reader(file, name)
