"""What no normalization can be faster than, timed in the same process and in turn with those that are compared.

"bytes" and "passes" move an array's bytes and compute next to nothing: each byte once, and as the statistics need it (a
slab is read for its sums, then read again and stored); each through the caches and past them, of which the faster way
counts. "kernel" is anynorm's on arrays that are there already. What a framework takes for each byte once, "through", is
in its own peers_*.py.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from shapes import BACKWARD, BOTH, EPS, FORWARD, Case

Timed = Any
_SOURCE = Path(__file__).with_suffix(".cpp")
_COMPILER = os.environ.get("CXX", "c++")
# Not -ffast-math: linked with it, a library turns denormals to zero in all of the process.
_LOOSE = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
_FLAGS = ("-std=c++17", "-O3", "-march=native", *_LOOSE, "-funroll-loops", "-shared", "-fPIC")
# Behind the name of a floor: the other way to the same.
PAST = ", past the caches"
# Pages, as frameworks' large arrays begin at one.
_ALIGNMENT = 4096


def can_be_timed() -> bool:
    """Whether the kernels are here, and a compiler for the loops."""
    from anynorm.kernels import cpu

    return cpu.library() is not None and shutil.which(_COMPILER) is not None


@cache
def loops() -> ctypes.CDLL:
    """Those of floors.cpp, compiled for this machine."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "floors.so"
        subprocess.run([_COMPILER, *_FLAGS, _SOURCE, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def slab_of(case: Case) -> int:
    """Elements that are read, in the order of memory, before the first of them can be stored.

    Kept runs behind the only reduced one can be cut into tiles that a cache holds: of one cache line here. Where kept
    runs lie between reduced ones it is all of these, though a channel at a time would do.
    """
    runs = case.plan.runs
    reduced = [i for i, run in enumerate(runs) if run.reduced]
    if len(reduced) == 1 and reduced[0] < len(runs) - 1:
        return runs[reduced[0]].known * 16
    return math.prod(run.known for run in runs[reduced[0] :])


def alone(
    case: Case, x: np.ndarray, dy: np.ndarray, scale: np.ndarray, offset: np.ndarray | None
) -> dict[str, Mapping[str, Timed]]:
    """The passes of "bytes", "passes" and "kernel", without a framework; of float32."""
    x, dy, scale, offset = (None if a is None else _aligned(a) for a in (x, dy, scale, offset))
    y, dx = _aligned(x), _aligned(x)
    arrays = [a.ctypes.data for a in (x, y, dy, dx)]
    slabs = {"bytes": 0, "passes": slab_of(case)}
    moving = {
        f"{name}{PAST if past else ''}": _moving(*arrays, x.size, slab, past)
        for name, slab in slabs.items()
        for past in (False, True)
    }
    return {**moving, "kernel": _kernel(case, x, dy, scale, offset, y, dx)}


def _aligned(a: np.ndarray) -> np.ndarray:
    room = np.empty(a.nbytes + _ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % _ALIGNMENT
    out = room[begin : begin + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def _moving(x: int, y: int, dy: int, dx: int, n: int, slab: int, past: bool) -> Mapping[str, Timed]:
    at_x, at_y, at_dy, at_dx = (ctypes.c_void_p(a) for a in (x, y, dy, dx))
    sizes = ctypes.c_int64(n), ctypes.c_int64(slab), ctypes.c_int(past)
    return _passes(
        lambda: loops().forward(at_x, at_y, *sizes),
        lambda: loops().backward(at_x, at_dy, at_dx, *sizes),
    )


def _kernel(case: Case, x: Any, dy: Any, scale: Any, offset: Any, y: Any, dx: Any) -> Mapping[str, Timed]:
    from anynorm.kernels.cpu import calls, problem

    kept = np.empty((case.plan.groups or 0, 2))
    sums = [None if a is None else np.empty_like(a) for a in (scale, offset)]
    names = ("float32" if a is not None else None for a in (scale, offset))
    told = problem(case.plan, "float32", *names, EPS, 1)
    # Addresses do not keep their arrays; these lists do, in the functions below.
    forth, back = [x, scale, offset, y, None, None, kept], [x, dy, scale, kept, dx, *sums]
    at_forth, at_back = ([None if a is None else a.ctypes.data for a in arrays] for arrays in (forth, back))
    return _passes(
        lambda: (calls.forward(told, *at_forth), forth)[0],
        lambda: (calls.backward(told, *at_back), back)[0],
    )


def _passes(forward: Timed, backward: Timed) -> Mapping[str, Timed]:
    def both() -> None:
        forward()
        backward()

    return {FORWARD: forward, BACKWARD: backward, BOTH: both}
