"""The Triton kernels for torch tensors: at most two launches forward and three backward, no autograd.

Nothing here waits for the device or depends on values, so that all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch

from ...plan import Plan
from ...precision import FORMATS, largest_exponent
from ..torch_memory import as_lies, dense, like, room_for_moments, room_for_saved, small, statistic
from . import held, split, split_gradient
from .table import Device, Geometry, Held, Split, gathered, geometry
from .table import held as held_table
from .table import split as split_table

Array = Any

# Triton is about to turn it off; on it is a rounding less, and nothing here counts on that rounding.
_OPTIONS = {"enable_fp_fusion": True}

# Programs for each processor, where each sums over many segments.
_PROGRAMS = 4


def forward(
    x: Array,
    scale: Array | None,
    offset: Array | None,
    plan: Plan,
    eps: float,
    out: Array | None = None,
    *,
    statistics: bool = True,
    gradient: bool = True,
) -> tuple[Array, Array | None, Array | None, Array | None]:
    """y (in `out`, if that is given), mean and variance over the kept runs, and what the gradient needs.

    What is not asked for is None.
    """
    x, (scale, offset) = dense(x, plan), _smalls(scale, offset, x, plan)
    mean, variance = room_for_moments(x, plan) if statistics else (None, None)
    saved = room_for_saved(x, plan) if gradient else None
    y = torch.empty_like(x) if out is None else out
    _forward(x, y, scale, offset, mean, variance, saved, plan, eps)
    return y, mean, variance, saved


def moments(x: Array, plan: Plan) -> tuple[Array, Array]:
    """Mean and variance over the kept runs."""
    x = dense(x, plan)
    mean, variance = room_for_moments(x, plan)
    _forward(x, None, None, None, mean, variance, None, plan, 0.0)
    return mean, variance


def _forward(
    x: Array,
    y: Array | None,
    scale: Array | None,
    offset: Array | None,
    mean: Array | None,
    variance: Array | None,
    saved: Array | None,
    plan: Plan,
    eps: float,
) -> None:
    g = _geometry(plan)
    removes = {"REMOVES_MEAN": plan.removes_mean, "REMOVES_SCALE": plan.removes_scale}
    top, root, constant = _eps(eps, plan.removes_scale)
    tiles = held_table(g, x.element_size(), False, _device(x.device))
    with _on(x.device):
        if tiles is not None:
            segments = g.segments // g.each
            across = -(-segments // tiles.kept)
            held.forward[(g.outer * across,)](
                x, y, scale, offset, mean, variance, saved, segments, g.count, across, g.divisor, g.modulus, g.each,
                root, constant, top, **_parts(g, tiles), AFFINE="stretches" if g.each > 1 else g.affine,
                num_warps=tiles.warps, **removes, **_OPTIONS,
            )  # fmt: skip
            return
        cut = split_table(g)
        length = g.groups * cut.chunks * cut.per_group
        work = x.new_empty(2 * length, dtype=torch.float64)
        split.statistics[(g.outer * cut.chunks * cut.tiles,)](
            x, work, *_cut(g, cut), length, top, **_tile(g, cut), REMOVES_MEAN=plan.removes_mean,
            num_warps=cut.warps, **_OPTIONS,
        )  # fmt: skip
        split.apply[(g.outer * (1 if y is None else cut.chunks) * cut.tiles,)](
            x, y, scale, offset, work, mean, variance, saved, *_cut(g, cut), length, g.divisor, g.modulus, root,
            **_tile(g, cut), BLOCK=cut.block, AFFINE=g.affine, num_warps=cut.warps, **removes, **_OPTIONS,
        )  # fmt: skip


def apply(
    x: Array,
    mean: Array,
    variance: Array,
    scale: Array | None,
    offset: Array | None,
    plan: Plan,
    eps: float,
    *,
    gradient: bool = False,
) -> tuple[Array, Array | None]:
    """y from statistics made elsewhere, over the kept axes as users have them, and what the gradient needs."""
    x, (scale, offset) = dense(x, plan), _smalls(scale, offset, x, plan)
    mean, variance = statistic(mean, x, plan), statistic(variance, x, plan)
    y, g = torch.empty_like(x), _geometry(plan)
    saved = room_for_saved(x, plan) if gradient else None
    cut = split_table(g)
    with _on(x.device):
        split.apply[(g.outer * cut.chunks * cut.tiles,)](
            x, y, scale, offset, None, mean, variance, saved, *_cut(g, cut), 0, g.divisor, g.modulus, eps**0.5,
            **_tile(g, cut), BLOCK=cut.block, AFFINE=g.affine, REMOVES_MEAN=True, REMOVES_SCALE=True,
            num_warps=cut.warps, **_OPTIONS,
        )  # fmt: skip
    return y, saved


def backward(
    x: Array, dy: Array, scale: Array | None, offset: Array | None, saved: Array, plan: Plan, eps: float
) -> tuple[Array, Array | None, Array | None]:
    """dx, dscale and doffset; None for what was not given."""
    x, like_scale, like_offset = dense(x, plan), scale, offset
    scale, offset = _smalls(scale, offset, x, plan)
    dy = as_lies(dy, x)
    dscale, doffset = (None if a is None else torch.empty_like(a) for a in (scale, offset))
    dx = torch.empty_like(x)
    g = _geometry(plan)
    removes = {"REMOVES_MEAN": plan.removes_mean, "REMOVES_SCALE": plan.removes_scale}
    tiles = held_table(g, x.element_size(), True, _device(x.device))
    given = scale is not None or offset is not None
    with _on(x.device):
        if tiles is None:
            sums = _backward_split(x, dy, scale, saved, dx, g, removes, given)
        else:
            sums = _backward_held(x, dy, scale, saved, dx, g, tiles, removes)
        if sums is not None and given:
            length = sums.numel() // 2
            before, channels, behind, wide, block = gathered(g, length)
            split_gradient.gather[(-(-channels // wide),)](
                sums, dscale, doffset, before, channels, behind, length, WIDE=wide, BLOCK=block, num_warps=4, **_OPTIONS
            )
    return dx, like(dscale, like_scale, plan.affine), like(doffset, like_offset, plan.affine)


def _backward_held(
    x: Array,
    dy: Array,
    scale: Array | None,
    saved: Array,
    dx: Array,
    g: Geometry,
    tiles: Held,
    removes: dict[str, bool],
) -> Array:
    """dx; and the sums that scale's and offset's gradients are gathered from."""
    across = -(-g.segments // tiles.kept)
    total = g.outer * across
    programs = min(tiles.programs, total) or total
    length = programs * g.reduced if tiles.programs else g.groups
    sums = x.new_empty(2 * length, dtype=torch.float32)
    held.backward[(programs,)](
        x, dy, scale, saved, dx, sums, g.segments, g.reduced, across, total, programs, length, g.divisor, g.modulus,
        **_parts(g, tiles), AFFINE=g.affine, SHARED=tiles.programs > 0, num_warps=tiles.warps, **removes, **_OPTIONS,
    )  # fmt: skip
    return sums


def _backward_split(
    x: Array,
    dy: Array,
    scale: Array | None,
    saved: Array,
    dx: Array,
    g: Geometry,
    removes: dict[str, bool],
    given: bool,
) -> Array | None:
    """dx; and the sums that scale's and offset's gradients are gathered from, if one of them is given."""
    cut = split_table(g)
    parts = cut.chunks * cut.per_group
    work = x.new_empty(2 * g.groups * parts, dtype=torch.float32)
    shared = given and g.affine == "reduced"
    sums = None
    if given and not shared:
        of_chunk = cut.per_group * g.groups if g.alike else g.outer * g.segments
        sums = x.new_empty(2 * cut.chunks * of_chunk, dtype=torch.float32)
    split_gradient.sums[(g.outer * cut.chunks * cut.tiles,)](
        x, dy, scale, saved, work, sums, *_cut(g, cut), g.outer, g.groups * parts,
        0 if sums is None else sums.numel() // 2, g.divisor, g.modulus,
        **_tile(g, cut), AFFINE=g.affine, PER_GROUP=g.alike, num_warps=cut.warps, **_OPTIONS,
    )  # fmt: skip
    if not shared:
        split_gradient.project[(g.outer * cut.chunks * cut.tiles,)](
            x, dy, scale, saved, work, dx, *_cut(g, cut), g.groups * parts, g.divisor, g.modulus,
            **_tile(g, cut), BLOCK=cut.block, AFFINE=g.affine, num_warps=cut.warps, **removes, **_OPTIONS,
        )  # fmt: skip
        return sums
    stretches = -(-g.reduced // cut.wide)
    programs = min(g.outer * cut.tiles, -(-_PROGRAMS * _device(x.device).processors // stretches))
    sums = x.new_empty(2 * programs * g.reduced, dtype=torch.float32)
    split_gradient.project_shared[(stretches * programs,)](
        x, dy, scale, saved, work, dx, sums, g.segments, g.reduced, g.outer, cut.tiles, stretches, programs, cut.chunks,
        g.groups * parts, programs * g.reduced, KEPT=cut.kept, WIDE=cut.wide, BLOCK=cut.block, COLUMNS=g.columns,
        num_warps=cut.warps, **removes, **_OPTIONS,
    )  # fmt: skip
    return sums


def _smalls(scale: Array | None, offset: Array | None, x: Array, plan: Plan) -> tuple[Array | None, Array | None]:
    for values in (scale, offset):
        if values is not None and values.device != x.device:
            raise ValueError(f"x is on {x.device}, and scale or offset on {values.device}: move them to one device")
    return small(scale, x, plan), small(offset, x, plan)


def _parts(g: Geometry, tiles: Held) -> dict[str, Any]:
    return {
        "PARTS": tiles.parts, "FULL": sum(tiles.parts) == g.count, "KEPT": tiles.kept, "COLUMNS": g.columns,
    }  # fmt: skip


def _cut(g: Geometry, cut: Split) -> tuple[int, ...]:
    return g.segments, g.reduced, g.each, cut.tiles, cut.step, cut.per_group, cut.chunk, cut.chunks


def _tile(g: Geometry, cut: Split) -> dict[str, Any]:
    return {
        "KEPT": cut.kept, "WIDE": cut.wide, "GROUPS": cut.groups, "MERGES": g.each > 1, "COLUMNS": g.columns,
        "WHOLE": cut.per_group == 1,
    }  # fmt: skip


def _geometry(plan: Plan) -> Geometry:
    found = geometry(plan)
    if found is None:
        raise ValueError(f"the Triton kernels have no loops for runs of this order, {plan}; select would have said so")
    return found


@lru_cache(maxsize=1024)
def _eps(eps: float, removes_scale: bool) -> tuple[int, float, float]:
    """The largest exponent that x may be scaled by, sqrt(eps), and rstd of a constant group (0 where that has none)."""
    top = largest_exponent(eps if removes_scale else 0.0, FORMATS["float32"])
    return top, eps**0.5, 0.0 if eps == 0 else min(eps**-0.5, 3.0e38)


@lru_cache(maxsize=64)
def _device(device: torch.device) -> Device:
    if device.type != "cuda":
        return Device(2, 0)  # the interpreter's
    found = torch.cuda.get_device_properties(device)
    return Device(found.multi_processor_count, found.major)


def _on(device: torch.device) -> Any:
    """Triton launches on the current device, which may be another than the tensors'."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
