"""Groups cut into chunks: a first launch leaves each chunk's sums in a workspace, a second combines and applies them.

The workspace holds for each group its `chunks * per_group` chunks side by side, first all of one sum, then all of the
other. Every program of the second launch adds them up in the same order; nothing is added atomically.
"""

import triton
import triton.language as tl

from .epilogue import activated, affine, read
from .tiles import centred, merged, normalized, places, scaled, spread


@triton.jit
def segments_of(tile, segments, each, step, per_group, KEPT: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr):
    """Where a tile begins and ends, its segments, which of them there are, and beside the first one's group each one's.

    Tiles of columns lie on multiples of their width, wherever groups end, so that loads are wide. Those of rows begin
    with a group, or divide one (not WHOLE), so that no group is cut otherwise for being another one's neighbour.
    """
    if COLUMNS:
        begin = tile * KEPT
        end = tl.minimum(begin + KEPT, segments)
    elif WHOLE:
        begin = tile * step
        end = tl.minimum(begin + step, segments)
    else:
        begin = (tile // per_group) * each + (tile % per_group) * KEPT
        end = tl.minimum(begin + KEPT, (tile // per_group) * each + each)
    s = begin + tl.arange(0, KEPT)
    return begin, end, s, s < end, tl.where(s < end, s // each - begin // each, -1)


@triton.jit
def groups_of(
    outer, begin, end, segments, each, KEPT: tl.constexpr, GROUPS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Of a tile's groups: its number here and in all, whether it is there, and which of its own tiles this one is."""
    g = begin // each + tl.arange(0, GROUPS)
    there = g * each < end
    part = tl.maximum(begin - _origin(g, each, KEPT, COLUMNS), 0) // KEPT
    return g, outer * (segments // each) + g, there, part


@triton.jit
def _origin(g, each, KEPT: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the first tile of a group begins."""
    if COLUMNS:
        return g * each // KEPT * KEPT
    else:
        return g * each


@triton.jit
def shares(g, t, each, chunks, KEPT: tl.constexpr, COLUMNS: tl.constexpr):
    """How many of each group's segments its chunks t are of."""
    begin = _origin(g, each, KEPT, COLUMNS)[:, None] + (t // chunks * KEPT)[None, :]
    first = (g * each)[:, None]
    return tl.minimum(begin + KEPT, first + each) - tl.maximum(begin, first)


@triton.jit
def keep(work_at, one, other, at, there, part, c, per_group, chunks, length):
    """A chunk's two sums into the workspace."""
    at = work_at + at.to(tl.int64) * (chunks * per_group) + part * chunks + c
    tl.store(at, one, mask=there)
    tl.store(at + length, other, mask=there)


@triton.jit
def statistics(
    x_at, residual_at, total_at, work_at,
    segments, reduced, each, tiles, step, per_group, chunk, chunks, length, top,
    KEPT: tl.constexpr, WIDE: tl.constexpr, GROUPS: tl.constexpr, MERGES: tl.constexpr, COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr, REMOVES_MEAN: tl.constexpr,
):  # fmt: skip
    """Each chunk's mean and its sum of squared differences from that, in double; and x + residual, which is x then."""
    tile, rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    c, outer = rest % chunks, rest // chunks
    begin, end, s, inside, owner = segments_of(tile, segments, each, step, per_group, KEPT, COLUMNS, WHOLE)
    _g, at, there, part = groups_of(outer, begin, end, segments, each, KEPT, GROUPS, COLUMNS)
    mean = tl.zeros([KEPT], tl.float64)
    square = tl.zeros([KEPT], tl.float64)
    first = c * chunk
    end = tl.minimum(first + chunk, reduced)
    for start in range(first, end, WIDE):
        q = start + tl.arange(0, WIDE)
        mask = inside[:, None] & (q < end)[None, :]
        place = places(outer, s, q, segments, reduced, COLUMNS)
        x = read(x_at, residual_at, total_at, place, mask)
        count = tl.minimum(end - start, WIDE) * 1.0
        _d, more, its_mean, _power, inverse = centred((x,), (mask,), count, top, REMOVES_MEAN)
        square += more.to(tl.float64) * inverse.to(tl.float64) * inverse.to(tl.float64)
        if REMOVES_MEAN:
            # The part of all so far that these are, and the weight of the difference between the two means.
            weight = count.to(tl.float64) / (start - first + count)
            delta = its_mean - mean
            mean += delta * weight
            square += delta * delta * weight * (start - first)
    if MERGES:
        many = merged(tl.where(inside, 1.0, 0.0), owner, GROUPS, MERGES).to(tl.float64)
        apart = mean - spread(merged(mean, owner, GROUPS, MERGES) / many, owner, GROUPS, MERGES)
        mean = merged(mean, owner, GROUPS, MERGES) / many
        square = merged(square + (end - first) * apart * apart, owner, GROUPS, MERGES)
    keep(work_at, mean, square, at, there, part, c, per_group, chunks, length)


@triton.jit
def apply(
    x_at, y_at, scale_at, offset_at, shift_at, gain_at, work_at, mean_at, variance_at, saved_at,
    segments, reduced, each, tiles, step, per_group, chunk, chunks, length, divisor, modulus, span, row, root,
    KEPT: tl.constexpr, WIDE: tl.constexpr, GROUPS: tl.constexpr, MERGES: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, WHOLE: tl.constexpr, AFFINE: tl.constexpr, ACTIVATION: tl.constexpr,
    REMOVES_MEAN: tl.constexpr, REMOVES_SCALE: tl.constexpr,
):  # fmt: skip
    """y from what the chunks left, or, without a workspace, from a mean and a variance that are given.

    From the last chunk to the first: what was read last is still in the cache. Without y: the statistics alone.
    """
    last = tl.num_programs(0) - 1 - tl.program_id(0)
    tile, rest = last % tiles, last // tiles
    if y_at is not None:
        c, outer = rest % chunks, rest // chunks
    else:
        c, outer = 0, rest
    begin, end, s, inside, owner = segments_of(tile, segments, each, step, per_group, KEPT, COLUMNS, WHOLE)
    g, at, there, part = groups_of(outer, begin, end, segments, each, KEPT, GROUPS, COLUMNS)
    if work_at is not None:
        mean, variance = _combined(
            work_at, g, at, there, reduced, each, per_group, chunk, chunks, length, KEPT, GROUPS, BLOCK, COLUMNS
        )  # fmt: skip
    else:
        variance = tl.load(variance_at + at, mask=there, other=1.0).to(tl.float64)
        mean = tl.zeros_like(variance)
        if REMOVES_MEAN:
            mean = tl.load(mean_at + at, mask=there, other=0.0).to(tl.float64)
    rstd = tl.zeros_like(variance) + 1.0
    if REMOVES_SCALE:
        root = tl.zeros_like(variance) + root
        square = variance + root * root
        rstd = tl.where(square == 0.0, 0.0, 1.0 / tl.sqrt(square))
    if c == 0:
        first = there & (part == 0)
        if work_at is not None and mean_at is not None:
            tl.store(mean_at + at, mean.to(tl.float32), mask=first)
            tl.store(variance_at + at, variance.to(tl.float32), mask=first)
        if saved_at is not None:
            tl.store(saved_at + at * 2, mean, mask=first)
            tl.store(saved_at + at * 2 + 1, rstd, mask=first)
    if y_at is not None:
        power, high, low, factor = scaled(mean, rstd)
        power = spread(power, owner, GROUPS, MERGES)
        high = spread(high, owner, GROUPS, MERGES)
        low = spread(low, owner, GROUPS, MERGES)
        factor = spread(factor, owner, GROUPS, MERGES)
        if AFFINE == "kept":
            a, known = ((s // divisor) % modulus)[:, None], inside[:, None]
            scale, offset = affine(scale_at, offset_at, shift_at, gain_at, a, outer, span, row, known)
        end = tl.minimum(c * chunk + chunk, reduced)
        for start in range(c * chunk, end, WIDE):
            q = start + tl.arange(0, WIDE)
            mask = inside[:, None] & (q < end)[None, :]
            place = places(outer, s, q, segments, reduced, COLUMNS)
            x = tl.load(x_at + place, mask=mask, other=0.0).to(tl.float32)
            if AFFINE == "reduced":
                a, known = q[None, :], (q < end)[None, :]
                scale, offset = affine(scale_at, offset_at, shift_at, gain_at, a, outer, span, row, known)
            y = activated(normalized(x, power, high, low, factor) * scale + offset, ACTIVATION)
            tl.store(y_at + place, y.to(y_at.dtype.element_ty), mask=mask)


@triton.jit
def _combined(
    work_at, g, at, there, reduced, each, per_group, chunk, chunks, length,
    KEPT: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean and variance of each group: about the first chunk's mean, so that those of a constant are exact."""
    row = work_at + at.to(tl.int64) * (chunks * per_group)
    base = tl.load(row, mask=there, other=0.0)
    total = tl.zeros([GROUPS], tl.float64)
    count = (total + reduced) * each
    for start in range(0, chunks * per_group, BLOCK):
        t = start + tl.arange(0, BLOCK)
        weight = shares(g, t, each, chunks, KEPT, COLUMNS)
        mask = there[:, None] & (t < chunks * per_group)[None, :] & (weight > 0)
        mean = tl.load(row[:, None] + t[None, :], mask=mask, other=0.0)
        weight = weight.to(tl.float64) * tl.minimum(reduced - (t % chunks) * chunk, chunk)[None, :]
        total += tl.sum(tl.where(mask, (mean - base[:, None]) * weight, 0.0), 1)
    centre = base + total / count
    total = tl.zeros([GROUPS], tl.float64)
    for start in range(0, chunks * per_group, BLOCK):
        t = start + tl.arange(0, BLOCK)
        weight = shares(g, t, each, chunks, KEPT, COLUMNS)
        mask = there[:, None] & (t < chunks * per_group)[None, :] & (weight > 0)
        apart = tl.load(row[:, None] + t[None, :], mask=mask, other=0.0) - centre[:, None]
        square = tl.load(row[:, None] + length + t[None, :], mask=mask, other=0.0)
        weight = weight.to(tl.float64) * tl.minimum(reduced - (t % chunks) * chunk, chunk)[None, :]
        total += tl.sum(tl.where(mask, square + apart * apart * weight, 0.0), 1)
    return centre, total / count
