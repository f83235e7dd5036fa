"""Groups cut into chunks: a first launch leaves each chunk's sums in a workspace, a second combines and applies them.

The workspace holds for each group its `chunks * per_group` chunks side by side, first all of one sum, then all of the
other. Every program of the second launch adds them up in the same order; nothing is added atomically.
"""

import triton
import triton.language as tl

from .tiles import centred, merged, normalized, places, scaled, spread


@triton.jit
def _segments(tile, segments, each, step, per_group, KEPT: tl.constexpr, WHOLE: tl.constexpr):
    """A tile's segments, which of them there are, and the tile's group to which each belongs, -1 for none."""
    i = tl.arange(0, KEPT)
    if WHOLE:
        s = tile * step + i
        inside = (i < step) & (s < segments)
        return s, inside, tl.where(inside, i // each, -1), tile * (step // each)
    else:
        within = (tile % per_group) * KEPT + i
        inside = within < each
        return (tile // per_group) * each + within, inside, tl.where(inside, 0, -1), tile // per_group


@triton.jit
def statistics(
    x_at, work_at,
    segments, reduced, each, tiles, step, per_group, chunk, chunks, length, top,
    KEPT: tl.constexpr, WIDE: tl.constexpr, GROUPS: tl.constexpr, COLUMNS: tl.constexpr, WHOLE: tl.constexpr,
    REMOVES_MEAN: tl.constexpr,
):  # fmt: skip
    """Each chunk's mean and its sum of squared differences from that, in double."""
    MERGES: tl.constexpr = GROUPS != KEPT
    tile, rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    c, outer = rest % chunks, rest // chunks
    s, inside, owner, group = _segments(tile, segments, each, step, per_group, KEPT, WHOLE)
    mean = tl.zeros([KEPT], tl.float64)
    square = tl.zeros([KEPT], tl.float64)
    begin = c * chunk
    end = tl.minimum(begin + chunk, reduced)
    for start in range(begin, end, WIDE):
        q = start + tl.arange(0, WIDE)
        mask = inside[:, None] & (q < end)[None, :]
        at = places(outer, s, q, segments, reduced, COLUMNS)
        x = tl.load(x_at + at, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(end - start, WIDE) * 1.0
        _, more, its_mean, _, inverse = centred((x,), (mask,), count, top, REMOVES_MEAN)
        # The part of all so far that these are, and the weight of the difference between the two means.
        part = count.to(tl.float64) / (start - begin + count)
        delta = its_mean - mean
        mean += delta * part
        square += more.to(tl.float64) * inverse.to(tl.float64) * inverse.to(tl.float64)
        square += delta * delta * part * (start - begin)
    if MERGES:
        many = merged(tl.where(inside, 1.0, 0.0), owner, GROUPS, MERGES).to(tl.float64)
        apart = mean - spread(merged(mean, owner, GROUPS, MERGES) / many, owner, GROUPS, MERGES)
        mean = merged(mean, owner, GROUPS, MERGES) / many
        square = merged(square + (end - begin) * apart * apart, owner, GROUPS, MERGES)
    _keep(work_at, mean, square, outer, tile, c, group, segments, each, per_group, chunks, length, step, GROUPS, WHOLE)


@triton.jit
def _keep(
    work_at, one, other, outer, tile, c, group, segments, each, per_group, chunks, length, step,
    GROUPS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A chunk's two sums into the workspace."""
    i = tl.arange(0, GROUPS)
    there = (group + i < segments // each) & (i < (step // each if WHOLE else 1))
    at = (outer * (segments // each) + group + i).to(tl.int64) * (chunks * per_group) + (tile % per_group) * chunks + c
    tl.store(work_at + at, one, mask=there)
    tl.store(work_at + length + at, other, mask=there)


@triton.jit
def _counts(t, reduced, each, chunk, chunks, KEPT: tl.constexpr):
    """How many elements each chunk t of a group has."""
    long = tl.minimum(reduced - (t % chunks) * chunk, chunk)
    wide = tl.minimum(each - (t // chunks) * KEPT, KEPT)
    return long.to(tl.float64) * wide


@triton.jit
def apply(
    x_at, y_at, scale_at, offset_at, work_at, mean_at, variance_at, saved_at,
    segments, reduced, each, tiles, step, per_group, chunk, chunks, length, divisor, modulus, root,
    KEPT: tl.constexpr, WIDE: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr, AFFINE: tl.constexpr, REMOVES_MEAN: tl.constexpr, REMOVES_SCALE: tl.constexpr,
):  # fmt: skip
    """y from what the chunks left, or, without a workspace, from a mean and a variance that are given.

    From the last chunk to the first: what was read last is still in the cache. Without y: the statistics alone.
    """
    MERGES: tl.constexpr = GROUPS != KEPT
    last = tl.num_programs(0) - 1 - tl.program_id(0)
    tile, rest = last % tiles, last // tiles
    if y_at is not None:
        c, outer = rest % chunks, rest // chunks
    else:
        c, outer = 0, rest
    s, inside, owner, group = _segments(tile, segments, each, step, per_group, KEPT, WHOLE)
    i = tl.arange(0, GROUPS)
    there = (group + i < segments // each) & (i < (step // each if WHOLE else 1))
    at = outer * (segments // each) + group + i
    if work_at is not None:
        mean, variance = _combined(
            work_at, at, there, reduced, each, per_group, chunk, chunks, length, KEPT, GROUPS, BLOCK
        )
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
    if c + tile % per_group == 0:
        if work_at is not None and mean_at is not None:
            tl.store(mean_at + at, mean.to(tl.float32), mask=there)
            tl.store(variance_at + at, variance.to(tl.float32), mask=there)
        if saved_at is not None:
            tl.store(saved_at + at * 2, mean, mask=there)
            tl.store(saved_at + at * 2 + 1, rstd, mask=there)
    if y_at is not None:
        power, high, low, factor = scaled(mean, rstd)
        power = spread(power, owner, GROUPS, MERGES)
        high = spread(high, owner, GROUPS, MERGES)
        low = spread(low, owner, GROUPS, MERGES)
        factor = spread(factor, owner, GROUPS, MERGES)
        if AFFINE == "kept":
            a = (s // divisor) % modulus
            if scale_at is not None:
                scale = tl.load(scale_at + a, mask=inside, other=0.0).to(tl.float32)[:, None]
            if offset_at is not None:
                offset = tl.load(offset_at + a, mask=inside, other=0.0).to(tl.float32)[:, None]
        begin = c * chunk
        end = tl.minimum(begin + chunk, reduced)
        for start in range(begin, end, WIDE):
            q = start + tl.arange(0, WIDE)
            mask = inside[:, None] & (q < end)[None, :]
            place = places(outer, s, q, segments, reduced, COLUMNS)
            x = tl.load(x_at + place, mask=mask, other=0.0).to(tl.float32)
            y = normalized(x, power, high, low, factor)
            if AFFINE == "reduced":
                if scale_at is not None:
                    scale = tl.load(scale_at + q, mask=q < end, other=0.0).to(tl.float32)[None, :]
                if offset_at is not None:
                    offset = tl.load(offset_at + q, mask=q < end, other=0.0).to(tl.float32)[None, :]
            if scale_at is not None:
                y *= scale
            if offset_at is not None:
                y += offset
            tl.store(y_at + place, y.to(y_at.dtype.element_ty), mask=mask)


@triton.jit
def _combined(
    work_at, at, there, reduced, each, per_group, chunk, chunks, length,
    KEPT: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and variance of each group: about the first chunk's mean, so that those of a constant are exact."""
    parts = chunks * per_group
    row = work_at + at.to(tl.int64) * parts
    base = tl.load(row, mask=there, other=0.0)
    total = tl.zeros([GROUPS], tl.float64)
    count = (total + reduced) * each
    for start in range(0, parts, BLOCK):
        t = start + tl.arange(0, BLOCK)
        mask = there[:, None] & (t < parts)[None, :]
        mean = tl.load(row[:, None] + t[None, :], mask=mask, other=0.0)
        weight = _counts(t, reduced, each, chunk, chunks, KEPT)
        total += tl.sum(tl.where(mask, (mean - base[:, None]) * weight[None, :], 0.0), 1)
    centre = base + total / count
    total = tl.zeros([GROUPS], tl.float64)
    for start in range(0, parts, BLOCK):
        t = start + tl.arange(0, BLOCK)
        mask = there[:, None] & (t < parts)[None, :]
        apart = tl.load(row[:, None] + t[None, :], mask=mask, other=0.0) - centre[:, None]
        square = tl.load(row[:, None] + length + t[None, :], mask=mask, other=0.0)
        weight = _counts(t, reduced, each, chunk, chunks, KEPT)
        total += tl.sum(tl.where(mask, square + apart * apart * weight[None, :], 0.0), 1)
    return centre, total / count
