"""From a view of an array to launches: into which tiles it is cut. Pure integers, no tuning when called.

It is computed in one of two ways:

    held      a program holds whole groups in registers and reads them once
    split     a group is cut into chunks, each a program's, whose results lie in a workspace until the second launch
              combines them. Few large groups keep a whole GPU busy so, and no tile outgrows the registers

How a group is cut depends on its size alone, never on how many there are: no result depends on its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .views import Geometry

# Elements of a tile: 16 KB of float32, 32 numbers for each thread of four warps.
TILE = 4096
# Up to here a row stays in registers; the gradient holds x, dy and, where each element has a scale, two sums of it.
HELD, HELD_GRADIENT, HELD_SUMS = 24576, 16384, 8192
# Of several rows with a scale each, as in a group, and of such rows with a shift and a gain; of several columns.
HELD_STRETCHES, HELD_MODULATED, HELD_COLUMNS = 20480, 16384, 16384
# And a row that is read without a mask.
HELD_FULL = 16384
# Of rows in half precision twice as many fit beside their scale; what the compiler makes for later generations spills,
# and so does a modulation or an activation.
HELD_HALF, HELD_HALF_UNTIL = 32768, 10
# Short rows side by side: a warp has numbers of its own for each of its rows, and registers for eight, four backward.
MOST_ROWS = 128
# More lanes of a tile than this may not idle.
WASTE = 0.25
# A sector of memory is read whole: so much must lie side by side.
SECTOR = 32
# Chunks of a group.
MOST_CHUNKS = 256


@dataclass(frozen=True)
class Device:
    """How many processors a GPU has, and its compute capability's first number."""

    processors: int
    generation: int


@dataclass(frozen=True)
class Held:
    """Whole groups in registers: tiles of `kept` groups.

    Attributes:
        parts: powers of two that together hold a group's elements.
        full: whether they are known to hold nothing else.
        programs: how many share the work, at most; 0: one for each tile.
    """

    parts: tuple[int, ...]
    full: bool
    kept: int
    warps: int
    programs: int = 0


@dataclass(frozen=True)
class Split:
    """Groups cut into chunks: tiles of `kept` segments and `wide` elements of each.

    Attributes:
        step: segments of the whole groups that a tile of rows covers; 0 where not even one fits.
        tiles: tiles side by side that cover the segments of one outer index.
        per_group: tiles that a group's segments lie on, at most.
        chunk: elements of a segment that one program reads; a multiple of `wide`.
        chunks: and how many such there are.
        groups: that lie on a tile, at most.
        block: chunks of a group that the second launch adds at once.
    """

    kept: int
    wide: int
    step: int
    tiles: int
    per_group: int
    chunk: int
    chunks: int
    groups: int
    block: int
    warps: int


def gathered(g: Geometry, length: int) -> tuple[tuple[int, int, int, int, int], tuple[int, int, int]]:
    """How `length` sums lie, and the tile that adds them: channels, samples, and sums of each.

    They lie as [lead, samples, within, channels, behind]; outermost are chunks.
    """
    behind = 1 if g.affine == "reduced" else g.divisor // g.each if g.alike else g.divisor
    channels = g.reduced if g.affine == "reduced" else g.modulus
    samples = max(1, g.samples)
    lead = 1 if g.affine == "reduced" else length // (g.groups if g.alike else g.outer * g.segments)
    within = length // (lead * samples * channels * behind)
    # A sector's worth of channels where there are few, so that several processors share them.
    wide = 8 if channels <= 1024 else 32
    block = min(padded(lead * within * behind), 1024 // wide)
    return (lead, samples, within, channels, behind), (wide, min(padded(samples), 1024 // wide // block), block)


def shared(g: Geometry, tiles: int, most: int) -> tuple[int, int, int]:
    """How programs share `tiles` tiles of each outer index: their number, tiles that some share, and how many do.

    Those of one outer index where each sample has sums of its own; how many must not depend on the other samples then.
    """
    if g.samples:
        # Their sums are as long as a segment, so that each adds up many.
        few = max(1, min(most, tiles, g.segments // 32))
        return g.outer * few, tiles, few
    few = min(most, g.outer * tiles)
    return few, g.outer * tiles, few


def padded(length: int) -> int:
    """The power of two from `length` on.

    >>> [padded(n) for n in (1, 3, 64, 65)]
    [1, 4, 64, 128]
    """
    return 1 << (length - 1).bit_length()


def parts(length: int, most: int) -> tuple[int, ...]:
    """Powers of two that hold so many elements, all but the last alike, and leave no more than a quarter idle.

    None is larger than `most`: what a program computes for one after the other takes fewer registers.

    >>> parts(768, 4096), parts(1024, 4096), parts(1152, 4096), parts(1000, 4096), parts(9000, 4096)
    ((1024,), (1024,), (1024, 128), (1024,), (4096, 4096, 1024))
    """
    if length > most * 4:
        # Whole ones alone: a last one in another layout would cost registers that are used up.
        return (most,) * -(-length // most)
    if length > most:
        rest = length % most
        return (most,) * (length // most) + ((max(most // 8, padded(rest)),) if rest else ())
    whole = padded(length)
    if whole <= 16 or length >= (1 - WASTE) * whole:
        return (whole,)
    # An eighth at least: a thinner second part would be spread over too few threads for wide loads.
    return whole // 2, max(whole // 16, padded(length - whole // 2))


def held(g: Geometry, itemsize: int, gradient: bool, device: Device, behind: bool = False) -> Held | None:
    """The tiles that hold whole groups; None where groups are too large.

    Args:
        itemsize: bytes of an element.
        gradient: whether it is the backward pass.
        device: that computes; a program or a few on each of its processors share the sums over groups.
        behind: whether a modulation or an activation follows.
    """
    # The sums over a channel would take a tile for each channel.
    if g.each > 1 and (g.columns or gradient):
        return None
    sums = gradient and g.affine == "reduced"
    most = HELD_SUMS if sums else HELD_GRADIENT if gradient else HELD
    if not (gradient or behind or g.columns or g.each > 1) and itemsize == 2 and device.generation < HELD_HALF_UNTIL:
        most = HELD_HALF
    if g.columns or g.each > 1:
        most = min(most, HELD_COLUMNS if g.columns else HELD_MODULATED if g.samples else HELD_STRETCHES)
    # With 32 warps in parts of sixteen bytes a thread, in half precision too.
    is_widest = itemsize == 2 and g.count > (HELD_SUMS if gradient else HELD)
    cut = parts(g.count, TILE * 2 if is_widest else TILE)
    tile = sum(cut)
    least = min(SECTOR // itemsize, padded(g.segments)) if g.columns else 1
    if tile * least > most:
        return None
    kept = max(least, min(MOST_ROWS, TILE // padded(tile)))
    if g.columns or g.samples:
        kept = max(least, min(kept, padded(g.segments)))
    elements = kept * padded(tile)
    warps = _warps(elements * 2 if gradient else elements)
    if not gradient and tile <= HELD:
        warps = min(warps, 16)
    if not g.columns:
        warps = max(warps, min(16, kept // (4 if gradient else 8)))
    # A program's sums are as long as a group: the fewer programs, the less is written, and the longer the group, the
    # fewer have room on a processor.
    programs = device.processors * max(1, min(4, HELD_SUMS // tile)) if sums else 0
    # Without a mask the compiler moves loads so far ahead that the longest rows are spilled.
    return Held(cut, tile == g.count <= HELD_FULL, kept, warps, programs)


def split(g: Geometry) -> Split:
    """The tiles of groups that are cut into chunks."""
    if g.columns:
        # A line of memory in float32: the narrower the tiles, the fewer chunks keep all processors busy.
        kept = _least_idle(g.segments, (32, 64, 16)) if g.segments > 16 else padded(g.segments)
        wide = min(TILE // kept, padded(g.reduced))
    else:
        wide = _wide(g.reduced)
        kept = max(1, TILE // wide)
    step = kept // g.each * g.each
    if g.columns:
        tiles, per_group, room = -(-g.segments // kept), _most_tiles(g.each, kept), _most_tiles(kept, g.each)
    elif step:
        tiles, per_group, room = -(-g.segments // step), 1, step // g.each
    else:
        per_group, room = -(-g.each // kept), 1
        tiles = g.segments // g.each * per_group
    room = kept if g.each == 1 else padded(room)
    # What the second launch reads of all chunks, it reads for each chunk: with their square it grows.
    most = max(1, min(MOST_CHUNKS, math.isqrt(g.count) // 6) // per_group)
    chunk = -(-g.reduced // (most * wide)) * wide
    chunks = -(-g.reduced // chunk)
    block = min(padded(chunks * per_group), max(1, TILE // 2 // room))
    return Split(kept, wide, step, tiles, per_group, chunk, chunks, room, block, _warps(2 * TILE))


def _most_tiles(length: int, tile: int) -> int:
    """On how many tiles of a grid a stretch of such a length lies at most, if stretches lie end to end as well."""
    return 1 if tile % length == 0 else length // tile if length % tile == 0 else (length - 2) // tile + 2


def _wide(length: int) -> int:
    """The widest tile of a row that leaves little idle at its end."""
    if length <= 256:
        return padded(length)
    return _least_idle(length, (4096, 2048, 1024, 512, 256))


def _least_idle(length: int, sizes: tuple[int, ...]) -> int:
    """The first of some sizes of tiles that leaves at most an eighth idle, or else as little as possible."""

    def idle(size: int) -> float:
        return max(0.125, 1 - length / (-(-length // size) * size))

    return min((size for size in sizes if size <= TILE), key=idle)


def _warps(elements: int) -> int:
    return max(4, min(32, elements // 1024))
