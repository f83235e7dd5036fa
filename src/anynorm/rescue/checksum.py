"""CRC-32C, the checksum of TensorFlow's files; Python's own library has only the other polynomial."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

POLYNOMIAL = 0x82F63B78
LANES = 4096


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, list[int]]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(POLYNOMIAL), table >> 1).astype(np.uint32)
    return table, table.tolist()


def crc32c(data: bytes) -> int:
    """The checksum of some bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table, numbers = _tables()
    width = len(data) // LANES
    crc = 0xFFFFFFFF
    if width > 256:
        crc = _lanes(np.frombuffer(data, np.uint8, width * LANES).reshape(LANES, width), table, numbers)
        data = data[width * LANES :]
    for byte in data:
        crc = numbers[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _lanes(rows: np.ndarray, table: np.ndarray, numbers: list[int]) -> int:
    """The register after all rows, which run side by side, since the checksum of a sum is the sum of checksums."""
    register = np.zeros(len(rows), np.uint32)
    register[0] = 0xFFFFFFFF
    for column in np.ascontiguousarray(rows.T):
        register = table[(register ^ column) & 255] ^ register >> 8
    # Joined, a row's register is moved on by as many zero bytes as the rows behind it have.
    basis = [_after_zeros(1 << bit, rows.shape[1], numbers) for bit in range(32)]
    crc = 0
    for value in register.tolist():
        moved = 0
        for bit in range(32):
            if crc >> bit & 1:
                moved ^= basis[bit]
        crc = moved ^ value
    return crc


def _after_zeros(crc: int, count: int, numbers: list[int]) -> int:
    """A register after zero bytes: a linear map, squared for each bit of the count."""
    step = [numbers[(1 << bit) & 255] ^ (1 << bit) >> 8 for bit in range(32)]
    while count:
        if count & 1:
            crc = _apply(step, crc)
        step = [_apply(step, column) for column in step]
        count >>= 1
    return crc


def _apply(matrix: list[int], vector: int) -> int:
    out = 0
    for bit in range(32):
        if vector >> bit & 1:
            out ^= matrix[bit]
    return out
