"""The gradient of groups cut into chunks: each chunk's sums, then dx; at last, of all sums, those of what is small."""

import triton
import triton.language as tl

from .epilogue import affine, before_activation
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
    x_at, dy_at, scale_at, offset_at, shift_at, gain_at, saved_at, work_at, sums_at,
    segments, reduced, each, tiles, step, per_group, chunk, chunks, outers, length, sums_length, divisor, modulus,
    span, row,
    KEPT: tl.constexpr, WIDE: tl.constexpr, GROUPS: tl.constexpr, MERGES: tl.constexpr, COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr, AFFINE: tl.constexpr, ACTIVATION: tl.constexpr, PER_GROUP: tl.constexpr,
):  # fmt: skip
    """Of each chunk the sums of g * h and of g = dm * scale, and those of dm * h and dm, for what is small.

    dm is the gradient before the activation. The latter two a segment, or a group where the whole of a group has one
    scale (PER_GROUP).
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
    if AFFINE == "kept":
        a, known = ((s // divisor) % modulus)[:, None], inside[:, None]
        scale, offset = affine(scale_at, offset_at, shift_at, gain_at, a, outer, span, row, known)
    dm_h = tl.zeros([KEPT, WIDE], tl.float32)
    dm_1 = tl.zeros([KEPT, WIDE], tl.float32)
    one = tl.zeros([KEPT], tl.float32)
    other = tl.zeros([KEPT], tl.float32)
    end = tl.minimum(c * chunk + chunk, reduced)
    for start in range(c * chunk, end, WIDE):
        q = start + tl.arange(0, WIDE)
        mask = inside[:, None] & (q < end)[None, :]
        place = places(outer, s, q, segments, reduced, COLUMNS)
        x = tl.load(x_at + place, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_at + place, mask=mask, other=0.0).to(tl.float32)
        h = normalized(x, power, high, low, factor)
        if AFFINE == "reduced":
            a, known = q[None, :], (q < end)[None, :]
            scale, offset = affine(scale_at, offset_at, shift_at, gain_at, a, outer, span, row, known)
        dm = before_activation(dy, h, scale, offset, mask, ACTIVATION)
        if AFFINE == "reduced":
            # Added up at once: beside a scale for each element, sums of each would be spilled.
            g_1 = dm * scale
            one += tl.sum(g_1 * h, 1)
            other += tl.sum(g_1, 1)
        else:
            dm_h += dm * h
            dm_1 += dm
    if AFFINE == "kept":
        one = tl.sum(dm_h, 1)
        other = tl.sum(dm_1, 1)
    if sums_at is not None and not PER_GROUP:
        place = sums_at + (c * outers + outer).to(tl.int64) * segments + s
        tl.store(place, one, mask=inside)
        tl.store(place + sums_length, other, mask=inside)
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
    if AFFINE == "kept":
        of_segment = tl.sum(scale, 1)
        one *= of_segment
        other *= of_segment
    one = merged(one, owner, GROUPS, MERGES)
    other = merged(other, owner, GROUPS, MERGES)
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
    x_at, dy_at, dtotal_at, scale_at, offset_at, shift_at, gain_at, saved_at, work_at, dx_at,
    segments, reduced, each, tiles, step, per_group, chunk, chunks, length, divisor, modulus, span, row,
    KEPT: tl.constexpr, WIDE: tl.constexpr, GROUPS: tl.constexpr, MERGES: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, WHOLE: tl.constexpr, ACTIVATION: tl.constexpr,
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
    a, known = ((s // divisor) % modulus)[:, None], inside[:, None]
    scale, offset = affine(scale_at, offset_at, shift_at, gain_at, a, outer, span, row, known)
    end = tl.minimum(c * chunk + chunk, reduced)
    for start in range(c * chunk, end, WIDE):
        q = start + tl.arange(0, WIDE)
        mask = inside[:, None] & (q < end)[None, :]
        place = places(outer, s, q, segments, reduced, COLUMNS)
        x = tl.load(x_at + place, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_at + place, mask=mask, other=0.0).to(tl.float32)
        h = normalized(x, power, high, low, factor)
        dm = before_activation(dy, h, scale, offset, mask, ACTIVATION)
        dx = (dm * scale - (h * along[:, None] + level[:, None])) * factor[:, None] * power[:, None]
        if dtotal_at is not None:
            dx += tl.load(dtotal_at + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_at + place, dx.to(dx_at.dtype.element_ty), mask=mask)


@triton.jit
def project_shared(
    x_at, dy_at, dtotal_at, scale_at, offset_at, shift_at, gain_at, saved_at, work_at, dx_at, sums_at,
    segments, reduced, tiles, stretches, together, programs, chunks, length, sums_length, span, row,
    KEPT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr,
    REMOVES_MEAN: tl.constexpr, REMOVES_SCALE: tl.constexpr,
):  # fmt: skip
    """dx where each element of a segment has its scale: a program takes WIDE of them in many segments, and their sums.

    One of `stretches` of the reduced elements, in every so-maniest of the tiles: `programs` share `together` of them.
    """
    q = (tl.program_id(0) % stretches) * WIDE + tl.arange(0, WIDE)
    first = tl.program_id(0) // stretches
    known = (q < reduced)[None, :]
    begin = first // programs * together
    # All tiles of a program have one shift and gain: those of one sample, if there are any.
    scale, offset = affine(scale_at, offset_at, shift_at, gain_at, q[None, :], begin // tiles, span, row, known)
    dscale = tl.zeros([KEPT, WIDE], tl.float32)
    doffset = tl.zeros([KEPT, WIDE], tl.float32)
    for index in range(begin + first % programs, begin + together, programs):
        outer, tile = index // tiles, index % tiles
        s = tile * KEPT + tl.arange(0, KEPT)
        inside = s < segments
        at = outer * segments + s
        power, high, low, factor = _centre(saved_at, at, inside)
        along, level = _means(
            work_at, s, at, inside, reduced, 1, 1, chunks, length, s,
            KEPT, KEPT, False, BLOCK, False, REMOVES_MEAN, REMOVES_SCALE,
        )  # fmt: skip
        mask = inside[:, None] & known
        place = places(outer, s, q, segments, reduced, COLUMNS)
        x = tl.load(x_at + place, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_at + place, mask=mask, other=0.0).to(tl.float32)
        h = normalized(x, power, high, low, factor)
        dm = before_activation(dy, h, scale, offset, mask, ACTIVATION)
        dscale += dm * h
        doffset += dm
        dx = (dm * scale - h * along[:, None] - level[:, None]) * factor[:, None] * power[:, None]
        if dtotal_at is not None:
            dx += tl.load(dtotal_at + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_at + place, dx.to(dx_at.dtype.element_ty), mask=mask)
    if sums_at is not None:
        at = sums_at + first.to(tl.int64) * reduced + q
        tl.store(at, tl.sum(dscale, 0), mask=q < reduced)
        tl.store(at + sums_length, tl.sum(doffset, 0), mask=q < reduced)


@triton.jit
def gather(
    sums_at, scale_at, offset_at, gain_at, dscale_at, doffset_at, dshift_at, dgain_at,
    lead, samples, within, channels, behind, length, row,
    WIDE: tl.constexpr, SAMPLES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of scale, offset, shift and gain, in double, from sums of [lead, samples, within, channels, behind].

    Of each sample, over all but the channels: d = sum(h * dm) and e = sum(dm). Then dgain = d * scale + e * offset,
    dshift = e, and over the samples dscale = sum(d * (1 + gain)), doffset = sum(e * (1 + gain)).
    """
    channel = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    known = channel < channels
    dscale = tl.zeros([WIDE], tl.float64)
    doffset = tl.zeros([WIDE], tl.float64)
    for sample in range(0, samples, SAMPLES):
        n = sample + tl.arange(0, SAMPLES)
        d = tl.zeros([SAMPLES, BLOCK, WIDE], tl.float64)
        e = tl.zeros([SAMPLES, BLOCK, WIDE], tl.float64)
        for start in range(0, lead * within * behind, BLOCK):
            i = start + tl.arange(0, BLOCK)
            matrix = (i // (within * behind)).to(tl.int64)[None, :] * samples + n[:, None]
            at = (matrix * within + (i // behind % within)[None, :]) * channels * behind + (i % behind)[None, :]
            at = sums_at + at[:, :, None] + channel[None, None, :] * behind
            mask = ((n < samples)[:, None] & (i < lead * within * behind)[None, :])[:, :, None] & known[None, None, :]
            d += tl.load(at, mask=mask, other=0.0).to(tl.float64)
            e += tl.load(at + length, mask=mask, other=0.0).to(tl.float64)
        d = tl.sum(d, 1)
        e = tl.sum(e, 1)
        if gain_at is not None:
            there = (n < samples)[:, None] & known[None, :]
            gain = tl.load(gain_at + n.to(tl.int64)[:, None] * row + channel[None, :], mask=there, other=0.0)
            scale, offset = affine(scale_at, offset_at, None, None, channel, 0, 1, 0, known)
            dgain = d * scale[None, :] + e * offset[None, :]
            at = n.to(tl.int64)[:, None] * channels + channel[None, :]
            tl.store(dshift_at + at, e.to(tl.float32).to(dshift_at.dtype.element_ty), mask=there)
            tl.store(dgain_at + at, dgain.to(tl.float32).to(dgain_at.dtype.element_ty), mask=there)
            d *= gain.to(tl.float64) + 1.0
            e *= gain.to(tl.float64) + 1.0
        dscale += tl.sum(d, 0)
        doffset += tl.sum(e, 0)
    if dscale_at is not None:
        tl.store(dscale_at + channel, dscale.to(tl.float32).to(dscale_at.dtype.element_ty), mask=known)
    if doffset_at is not None:
        tl.store(doffset_at + channel, doffset.to(tl.float32).to(doffset_at.dtype.element_ty), mask=known)
