"""The variables of a SavedModel, read without TensorFlow: an index, which is a sorted table, and shards of raw numbers.

The table is LevelDB's: blocks of entries whose keys share beginnings, an index block that says where they are, and a
footer that says where that is. Every checksum is tested, since nothing else would notice a flipped bit.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .checksum import crc32c
from .errors import RescueError
from .protobuf import fields, message, number, text, varint

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
# TensorFlow's numbers of types; strings are not among them, since models keep none that rescue needs.
TYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "|u1",
    5: "<i2",
    6: "|i1",
    9: "<i8",
    10: "|b1",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
STRING = 7
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# The state of random numbers, which is drawn anew.
RANDOM = "/_random_generator/"
LARGEST_INDEX = 1 << 23


@dataclass(frozen=True)
class Entry:
    """Where a variable's numbers are; the type is "" where it is none that a weight has, as that of text is."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    is_text: bool


@dataclass(frozen=True)
class Object:
    """What TensorFlow saved: the numbers of the objects in it, by their names, and the key of its variable or ""."""

    children: dict[str, int]
    key: str


class Bundle:
    """The variables that `variables/variables.index` names.

    Attributes:
        entries: by key, such as "layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE".
        objects: the objects of the model, which is the first of them. A variable may be in several, and its key is the
            shortest way to it, which may be through a list of all variables.
    """

    def __init__(self, folder: Path) -> None:
        self.index = folder / "variables" / "variables.index"
        if not self.index.is_file():
            raise RescueError(
                f"{folder} has no variables/variables.index, where a SavedModel says what its weights are"
            )
        if self.index.stat().st_size > LARGEST_INDEX:
            raise RescueError(f"{self.index} is larger than any index of variables")
        table = dict(_table(self.index.read_bytes()))
        self.shards = 1
        for field, value in fields(table.pop(b"", b"")):
            if field == 1:
                self.shards = number(value)
            if field == 2 and value:
                raise RescueError(f"{self.index}: numbers with the larger end first are not supported")
        read = {key.decode(errors="replace"): _entry(value) for key, value in table.items()}
        ends: dict[Path, int] = {}
        for entry in read.values():
            path = self._shard(entry)
            ends[path] = max(ends.get(path, 0), entry.offset + entry.size)
        for path, end in ends.items():
            if not path.is_file() or end > path.stat().st_size:
                raise RescueError(f"{path} is missing or cut off: it should reach to byte {end:,} at least")
        texts = {key: self._data(entry, key) for key, entry in read.items() if entry.is_text}
        self.objects = _objects(texts[GRAPH]) if GRAPH in texts else []
        if not self.objects:
            raise RescueError(f"{self.index} does not say which variable is whose; it is damaged, or of TensorFlow 1")
        self.entries = {key: entry for key, entry in read.items() if entry.dtype}
        self.seen: set[str] = set()

    def object(self, path: str, at: int = 0) -> int | None:
        """The number of the object at a path such as "layer_with_weights-0/cell" from another, or None."""
        found: int | None = at
        for name in path.split("/"):
            found = None if found is None else self.objects[found].children.get(name)
        return found

    def key(self, at: int, name: str) -> str:
        """The key of the variable that an object has under a name, or ""."""
        found = self.object(name, at)
        key = "" if found is None else self.objects[found].key
        return key if key in self.entries else ""

    def _shard(self, entry: Entry) -> Path:
        return self.index.with_name(f"variables.data-{entry.shard:05d}-of-{self.shards:05d}")

    def read(self, key: str) -> np.ndarray:
        entry = self.entries[key]
        self.seen.add(key)
        return np.frombuffer(self._data(entry, key), entry.dtype).reshape(entry.shape)

    def _data(self, entry: Entry, key: str) -> bytes:
        path = self._shard(entry)
        with path.open("rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
        covered = _with_lengths(data, math.prod(entry.shape)) if entry.is_text else data
        if _unmasked(entry.checksum) != crc32c(covered):
            raise RescueError(f"{path}: the numbers of {key} have another checksum than when they were written")
        return data

    def unread(self) -> list[str]:
        """The variables of layers that have not been read."""
        return [
            key
            for key in self.entries
            if key.startswith(("layer", "variables/")) and RANDOM not in key and key not in self.seen
        ]


def _entry(value: bytes) -> Entry:
    """What the index says of a variable."""
    found = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: list[int] = []
    for field, part in fields(value):
        if field in found:
            found[field] = number(part)
        elif field == 2:
            dims = [message(dim) for kind, dim in fields(message(part)) if kind == 2]
            shape = [next((number(size) for kind, size in fields(dim) if kind == 1), 0) for dim in dims]
        elif field == 7:
            raise RescueError("a variable is stored in slices, as partitioned variables are, which is not supported")
    dtype = TYPES.get(found[1], "")
    if dtype and math.prod(shape) * np.dtype(dtype).itemsize != found[5]:
        raise RescueError(f"the index gives a variable of shape {shape} {found[5]} bytes; the file is damaged")
    return Entry(dtype, tuple(shape), found[3], found[4], found[5], found[6], found[1] == STRING)


def _objects(data: bytes) -> list[Object]:
    """The objects that the text of a checkpoint lists; the text comes behind its length and a checksum of that."""
    _, at = varint(data, 0)
    found = []
    for field, node in fields(data[at + 4 :]):
        if field != 1:
            continue
        children, key = {}, ""
        for kind, part in fields(message(node)):
            said = dict(fields(message(part))) if kind in (1, 2) else {}
            if kind == 1:
                children[text(said.get(2, b""))] = number(said.get(1, 0))
            elif kind == 2 and text(said.get(1, b"")) == "VARIABLE_VALUE":
                key = text(said.get(3, b""))
        found.append(Object(children, key))
    if any(i >= len(found) for one in found for i in one.children.values()):
        raise RescueError("an object of the checkpoint has one in it that is not there; the file is damaged")
    return found


def _with_lengths(data: bytes, count: int) -> bytes:
    """What the checksum of texts covers: their lengths in four bytes each instead of as they are written."""
    lengths, at = [], 0
    for _ in range(min(count, len(data))):
        length, at = varint(data, at)
        lengths.append((length & 0xFFFFFFFF).to_bytes(4, "little"))
    return b"".join([*lengths, data[at:]])


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a table: keys and values."""
    if len(data) < FOOTER or int.from_bytes(data[-8:], "little") != MAGIC:
        raise RescueError("the index of variables does not end as one; it is cut off, damaged or something else")
    footer = data[-FOOTER:]
    at = 0
    for _ in range(2):  # past the handle of the block of meta data
        _, at = varint(footer, at)
    for _, handle in _block(data, footer[at:]):
        yield from _block(data, handle)


def _block(data: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset, at = varint(handle, 0)
    size, _ = varint(handle, at)
    if offset + size + 5 > len(data) or size < 4:
        raise RescueError("a block of the index of variables lies outside the file, which is cut off or damaged")
    block, (kind, checksum) = data[offset : offset + size], struct.unpack_from("<BI", data, offset + size)
    if kind != 0:
        raise RescueError("the index of variables is compressed, which TensorFlow does not do, or damaged")
    if _unmasked(checksum) != crc32c(data[offset : offset + size + 1]):
        raise RescueError("a block of the index of variables has another checksum than when it was written")
    end = size - 4 * (int.from_bytes(block[-4:], "little") + 1)
    key, at = b"", 0
    while at < end:
        shared, at = varint(block, at)
        new, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + new + length > end:
            raise RescueError("an entry of the index of variables leaves its block; the file is damaged")
        key, at = key[:shared] + block[at : at + new], at + new
        yield key, block[at : at + length]
        at += length


def _unmasked(checksum: int) -> int:
    """Checksums are stored rotated and shifted, so that data may contain them."""
    rotated = (checksum - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
