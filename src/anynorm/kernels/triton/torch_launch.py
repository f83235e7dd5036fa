"""What the launches of the Triton kernels are told of plans and tensors."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch

from ...plan import Plan
from ...precision import FORMATS, largest_exponent
from ..torch_memory import small
from .table import Held, Split
from .views import Geometry

Array = Any


def small_pair(scale: Array | None, offset: Array | None, x: Array, plan: Plan) -> tuple[Array | None, Array | None]:
    for values in (scale, offset):
        if values is not None and values.device != x.device:
            raise ValueError(f"x is on {x.device}, and scale or offset on {values.device}: move them to one device")
    return small(scale, x, plan), small(offset, x, plan)


def nothing_of(*results: Array | None) -> None:
    """Zeros: what there is to say of an array without elements, for which nothing is launched."""
    for values in results:
        if values is not None:
            values.zero_()


def of_parts(g: Geometry, tiles: Held) -> dict[str, Any]:
    return {"PARTS": tiles.parts, "FULL": tiles.full, "KEPT": tiles.kept, "COLUMNS": g.columns}


def of_chunks(g: Geometry, cut: Split) -> tuple[int, ...]:
    return g.segments, g.reduced, g.each, cut.tiles, cut.step, cut.per_group, cut.chunk, cut.chunks


def of_tile(g: Geometry, cut: Split) -> dict[str, Any]:
    return {
        "KEPT": cut.kept, "WIDE": cut.wide, "GROUPS": cut.groups, "MERGES": g.each > 1, "COLUMNS": g.columns,
        "WHOLE": cut.per_group == 1,
    }  # fmt: skip


@lru_cache(maxsize=1024)
def scaling(eps: float, removes_scale: bool) -> tuple[int, float, float]:
    """The largest exponent that x may be scaled by, sqrt(eps), and rstd of a constant group (0 where that has none)."""
    top = largest_exponent(eps if removes_scale else 0.0, FORMATS["float32"])
    return top, eps**0.5, 0.0 if eps == 0 else min(eps**-0.5, 3.0e38)


def on(device: torch.device) -> Any:
    """Triton launches on the current device, which may be another than the tensors'."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
