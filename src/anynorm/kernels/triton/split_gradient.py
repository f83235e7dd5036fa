"""The gradient of groups cut into chunks: each chunk's sums, then dx; at last dscale and doffset of all sums."""

import triton
import triton.language as tl

from .split import groups_of, keep, segments_of, shares
from .tiles import merged, normalized, places, scaled, spread


@triton.jit
def _centre(saved_at, at, there):
    """What the h of these groups is made of."""
    mean = tl.load(saved_at + at * 2, mask=there, other=0.0)
    rstd = tl.load(saved_at + at * 2 + 1, mask=there, other=0.0)
    return scaled(mean, rstd)


@triton.jit
def sums(
    x_at, dy_at, scale_at, saved_at, work_at, sums_at,
    segments, reduced, each, tiles, step, per_group, chunk, chunks, outers, length, sums_length, divisor, modulus,
    KEPT: tl.constexpr, WIDE: tl.constexpr, GROUPS: tl.constexpr, MERGES: tl.constexpr, COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr, AFFINE: tl.constexpr, PER_GROUP: tl.constexpr,
):  # fmt: skip
    """Of each chunk the sums of g * h and of g = dy * scale; and those of dy * h and dy, for dscale and doffset.

    These a segment, or a group where the whole of a group has one scale (PER_GROUP).
    """
    tile, rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    c, outer = rest % chunks, rest // chunks
    begin, end, s, inside, owner = segments_of(tile, segments, each, step, per_group, KEPT, COLUMNS, WHOLE)
    g, at, there, part = groups_of(outer, begin, end, segments, each, KEPT, GROUPS, COLUMNS)
    power, high, low, factor = _centre(saved_at, at, there)
    power = spread(power, owner, GROUPS, MERGES)
    high = spread(high, owner, GROUPS, MERGES)
    low = spread(low, owner, GROUPS, MERGES)
    factor = spread(factor, owner, GROUPS, MERGES)
    dy_h = tl.zeros([KEPT, WIDE], tl.float32)
    dy_1 = tl.zeros([KEPT, WIDE], tl.float32)
    end = tl.minimum(c * chunk + chunk, reduced)
    for start in range(c * chunk, end, WIDE):
        q = start + tl.arange(0, WIDE)
        mask = inside[:, None] & (q < end)[None, :]
        place = places(outer, s, q, segments, reduced, COLUMNS)
        x = tl.load(x_at + place, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_at + place, mask=mask, other=0.0).to(tl.float32)
        if AFFINE == "reduced" and scale_at is not None:
            dy *= tl.load(scale_at + q, mask=q < end, other=0.0).to(tl.float32)[None, :]
        dy_h += dy * normalized(x, power, high, low, factor)
        dy_1 += dy
    one = tl.sum(dy_h, 1)
    other = tl.sum(dy_1, 1)
    if sums_at is not None and not PER_GROUP:
        place = sums_at + (c * outers + outer).to(tl.int64) * segments + s
        tl.store(place, one, mask=inside)
        tl.store(place + sums_length, other, mask=inside)
    if AFFINE == "kept" and scale_at is not None:
        scale = tl.load(scale_at + (s // divisor) % modulus, mask=inside, other=0.0).to(tl.float32)
    else:
        scale = tl.zeros([KEPT], tl.float32) + 1.0
    if sums_at is not None and PER_GROUP:
        all_groups = segments // each * outers
        place = sums_at + (c * per_group + part).to(tl.int64) * all_groups + at
        tl.store(place, merged(one, owner, GROUPS, MERGES), mask=there)
        tl.store(place + sums_length, merged(other, owner, GROUPS, MERGES), mask=there)
        # A group that lies on fewer tiles than others leaves one place to be filled.
        last = there & (g * each + each <= begin + KEPT) & (part + 2 == per_group)
        nothing = tl.zeros([GROUPS], tl.float32)
        tl.store(place + all_groups, nothing, mask=last)
        tl.store(place + all_groups + sums_length, nothing, mask=last)
    one = merged(one * scale, owner, GROUPS, MERGES)
    other = merged(other * scale, owner, GROUPS, MERGES)
    keep(work_at, one, other, at, there, part, c, per_group, chunks, length)


@triton.jit
def _means(
    work_at, g, at, there, reduced, each, per_group, chunks, length, owner,
    KEPT: tl.constexpr, GROUPS: tl.constexpr, MERGES: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    REMOVES_MEAN: tl.constexpr, REMOVES_SCALE: tl.constexpr,
):  # fmt: skip
    """What each moment removed takes out: the group's means of g * h and of g; 0 for one that stays."""
    row = work_at + at.to(tl.int64) * (chunks * per_group)
    along = tl.zeros([GROUPS], tl.float64)
    level = tl.zeros([GROUPS], tl.float64)
    for start in range(0, chunks * per_group, BLOCK):
        t = start + tl.arange(0, BLOCK)
        share = shares(g, t, each, chunks, KEPT, COLUMNS)
        mask = there[:, None] & (t < chunks * per_group)[None, :] & (share > 0)
        if REMOVES_SCALE:
            along += tl.sum(tl.load(row[:, None] + t[None, :], mask=mask, other=0.0).to(tl.float64), 1)
        if REMOVES_MEAN:
            level += tl.sum(tl.load(row[:, None] + length + t[None, :], mask=mask, other=0.0).to(tl.float64), 1)
    count = (tl.zeros([GROUPS], tl.float64) + reduced) * each
    along = spread((along / count).to(tl.float32), owner, GROUPS, MERGES)
    level = spread((level / count).to(tl.float32), owner, GROUPS, MERGES)
    return along, level


@triton.jit
def project(
    x_at, dy_at, scale_at, saved_at, work_at, dx_at,
    segments, reduced, each, tiles, step, per_group, chunk, chunks, length, divisor, modulus,
    KEPT: tl.constexpr, WIDE: tl.constexpr, GROUPS: tl.constexpr, MERGES: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, WHOLE: tl.constexpr, AFFINE: tl.constexpr,
    REMOVES_MEAN: tl.constexpr, REMOVES_SCALE: tl.constexpr,
):  # fmt: skip
    """dx = rstd * (g - mean(g) - h * mean(g * h)) where each segment has one scale."""
    last = tl.num_programs(0) - 1 - tl.program_id(0)
    tile, rest = last % tiles, last // tiles
    c, outer = rest % chunks, rest // chunks
    begin, end, s, inside, owner = segments_of(tile, segments, each, step, per_group, KEPT, COLUMNS, WHOLE)
    g, at, there, _part = groups_of(outer, begin, end, segments, each, KEPT, GROUPS, COLUMNS)
    power, high, low, factor = _centre(saved_at, at, there)
    power = spread(power, owner, GROUPS, MERGES)
    high = spread(high, owner, GROUPS, MERGES)
    low = spread(low, owner, GROUPS, MERGES)
    factor = spread(factor, owner, GROUPS, MERGES)
    along, level = _means(
        work_at, g, at, there, reduced, each, per_group, chunks, length, owner,
        KEPT, GROUPS, MERGES, BLOCK, COLUMNS, REMOVES_MEAN, REMOVES_SCALE,
    )  # fmt: skip
    if AFFINE == "kept" and scale_at is not None:
        scale = tl.load(scale_at + (s // divisor) % modulus, mask=inside, other=0.0).to(tl.float32)
    else:
        scale = tl.zeros([KEPT], tl.float32) + 1.0
    end = tl.minimum(c * chunk + chunk, reduced)
    for start in range(c * chunk, end, WIDE):
        q = start + tl.arange(0, WIDE)
        mask = inside[:, None] & (q < end)[None, :]
        place = places(outer, s, q, segments, reduced, COLUMNS)
        x = tl.load(x_at + place, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_at + place, mask=mask, other=0.0).to(tl.float32)
        taken = normalized(x, power, high, low, factor) * along[:, None] + level[:, None]
        dx = (dy * scale[:, None] - taken) * factor[:, None] * power[:, None]
        tl.store(dx_at + place, dx.to(dx_at.dtype.element_ty), mask=mask)


@triton.jit
def project_shared(
    x_at, dy_at, scale_at, saved_at, work_at, dx_at, sums_at,
    segments, reduced, outers, tiles, stretches, programs, chunks, length, sums_length,
    KEPT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    REMOVES_MEAN: tl.constexpr, REMOVES_SCALE: tl.constexpr,
):  # fmt: skip
    """dx where each element of a segment has its scale: a program takes WIDE of them in many segments, and their sums.

    One of `stretches` of the reduced elements, in every so-maniest of the tiles, which `programs` share.
    """
    q = (tl.program_id(0) % stretches) * WIDE + tl.arange(0, WIDE)
    first = tl.program_id(0) // stretches
    known = q < reduced
    scale = tl.zeros([WIDE], tl.float32) + 1.0
    if scale_at is not None:
        scale = tl.load(scale_at + q, mask=known, other=0.0).to(tl.float32)
    dscale = tl.zeros([KEPT, WIDE], tl.float32)
    doffset = tl.zeros([KEPT, WIDE], tl.float32)
    for index in range(first, outers * tiles, programs):
        outer, tile = index // tiles, index % tiles
        s = tile * KEPT + tl.arange(0, KEPT)
        inside = s < segments
        at = outer * segments + s
        power, high, low, factor = _centre(saved_at, at, inside)
        along, level = _means(
            work_at, s, at, inside, reduced, 1, 1, chunks, length, s,
            KEPT, KEPT, False, BLOCK, False, REMOVES_MEAN, REMOVES_SCALE,
        )  # fmt: skip
        mask = inside[:, None] & known[None, :]
        place = places(outer, s, q, segments, reduced, COLUMNS)
        x = tl.load(x_at + place, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_at + place, mask=mask, other=0.0).to(tl.float32)
        h = normalized(x, power, high, low, factor)
        dscale += dy * h
        doffset += dy
        dx = (dy * scale[None, :] - h * along[:, None] - level[:, None]) * factor[:, None] * power[:, None]
        tl.store(dx_at + place, dx.to(dx_at.dtype.element_ty), mask=mask)
    if sums_at is not None:
        at = sums_at + first.to(tl.int64) * reduced + q
        tl.store(at, tl.sum(dscale, 0), mask=known)
        tl.store(at + sums_length, tl.sum(doffset, 0), mask=known)


@triton.jit
def gather(
    sums_at, dscale_at, doffset_at, before, channels, behind, length,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dscale and doffset: sums of [before, channels, behind] over all but the channels, in double."""
    channel = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    known = channel < channels
    one = tl.zeros([BLOCK, WIDE], tl.float64)
    other = tl.zeros([BLOCK, WIDE], tl.float64)
    for start in range(0, before * behind, BLOCK):
        i = start + tl.arange(0, BLOCK)
        at = (i // behind).to(tl.int64) * channels * behind + i % behind
        at = sums_at + at[:, None] + channel[None, :] * behind
        mask = (i < before * behind)[:, None] & known[None, :]
        if dscale_at is not None:
            one += tl.load(at, mask=mask, other=0.0).to(tl.float64)
        if doffset_at is not None:
            other += tl.load(at + length, mask=mask, other=0.0).to(tl.float64)
    if dscale_at is not None:
        tl.store(dscale_at + channel, tl.sum(one, 0).to(tl.float32).to(dscale_at.dtype.element_ty), mask=known)
    if doffset_at is not None:
        tl.store(doffset_at + channel, tl.sum(other, 0).to(tl.float32).to(doffset_at.dtype.element_ty), mask=known)
