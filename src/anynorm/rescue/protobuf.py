"""The wire format of Protocol Buffers, as far as two small messages need it, checked at every step."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import RescueError


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends.

    >>> varint(bytes([0xAC, 0x02]), 0)
    (300, 2)
    """
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
    raise RescueError("a number in the file has no end; the file is cut off or damaged")


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, in order: their numbers and values, whose types the reader has to know.

    >>> list(fields(bytes([0x08, 0x2A, 0x12, 0x02]) + b"ab"))
    [(1, 42), (2, b'ab')]
    """
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or at + size > len(data):
            raise RescueError("a field is longer than what is left of the file, which is cut off or damaged")
        part = data[at : at + size]
        yield number, part if kind == 2 else int.from_bytes(part, "little")
        at += size


def text(value: int | bytes) -> str:
    """A field that has to be text."""
    if isinstance(value, int):
        raise RescueError("a field is a number where there should be text; the file is damaged")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RescueError(f"a field is not text, and the file damaged: {error}") from error


def number(value: int | bytes) -> int:
    """A field that has to be a number."""
    if isinstance(value, bytes):
        raise RescueError("a field is text where there should be a number; the file is damaged")
    return value


def message(value: int | bytes) -> bytes:
    """A field that has to be a message."""
    if isinstance(value, int):
        raise RescueError("a field is a number where there should be a message; the file is damaged")
    return value
