"""The kernels as JAX calls them: custom calls of the handlers in doors/jax.cpp.

The arrays that lie as x does have the user's shape in a call, all others that of the runs.

`jax.export` refuses programs with custom calls, whose compatibility XLA does not promise; ops/jax_primitives.py has
composed written in their place, unless it is this kernel that was asked for.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np

from ...plan import Plan, Run
from ...precision import statistics_dtype
from . import door, supports

Array = Any
Values = dict[str, Array]
Words = dict[str, Any]


class Handler(NamedTuple):
    """A handler's symbol, and its arguments and results: those that are always there, and those that may be."""

    symbol: str
    arguments: tuple[str, ...]
    more_arguments: tuple[str, ...]
    results: tuple[str, ...]
    more_results: tuple[str, ...]


FORWARD = Handler("AnynormForward", ("x",), ("scale", "offset"), ("y",), ("mean", "variance", "saved"))
BACKWARD = Handler("AnynormBackward", ("x", "dy", "saved"), ("scale",), ("dx",), ("dscale", "doffset"))
MOMENTS = Handler("AnynormMoments", ("x",), (), ("mean", "variance"), ())
# Those that lie as x does.
_WHOLE = ("x", "y", "dy", "dx")


@lru_cache(maxsize=1)
def _register() -> bool:
    """Make the handlers known to XLA; whether there are any."""
    file = door("jax")
    if file is None:
        return False
    library = ctypes.CDLL(str(file))
    for handler in (FORWARD, BACKWARD, MOMENTS):
        jax.ffi.register_ffi_target(handler.symbol, jax.ffi.pycapsule(getattr(library, handler.symbol)), platform="cpu")
    return True


class Told(NamedTuple):
    """What a handler is told: in words, and by the shape of the arrays that lie as x does.

    XLA's loops before and behind a call run over the shape that it has, and slowly over groups of a few channels.
    """

    words: Words
    shape: tuple[int, ...]


def told(plan: Plan, eps: float, shape: tuple[int, ...]) -> Told | None:
    """What a handler is told of an array of that plan and shape; None where no kernel can run."""
    merged = _merged(plan)
    if plan.empty or any(run.extent is None for run in plan.runs) or not supports(merged) or not _register():
        return None
    words = {
        "extents": np.array([run.known for run in merged.runs], np.int64),
        "reduced": np.int64(sum(run.reduced << i for i, run in enumerate(merged.runs))),
        "affine": np.int64(sum(run.affine << i for i, run in enumerate(merged.runs))),
        "removes": np.int64(plan.removes_mean | plan.removes_scale << 1),
        "threads": np.int64(_threads()),
        "eps": np.float64(eps),
    }
    return Told(words, shape)


def _threads() -> int:
    """1 where the user wants one thread to compute, else 0, which leaves it to XLA's pool (NPROC sets its size).

    The flag does not make XLA's pool smaller: it is for the operations that would use it.
    """
    return int("--xla_cpu_multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", "").split())


def _merged(plan: Plan) -> Plan:
    """The same with neighbours of equal labels, which batching makes, as one run."""
    runs = []
    for (reduced, affine), same in groupby(plan.runs, key=lambda run: (run.reduced, run.affine)):
        runs.append(Run(prod(run.known for run in same), reduced, affine))
    return replace(plan, runs=tuple(runs))


def call(handler: Handler, told: Told, given: Values, wanted: Values) -> list[Array]:
    """The results named in `wanted`, which says their shapes and types."""
    names = [*handler.arguments, *(name for name in handler.more_arguments if name in given)]
    out = [jax.ShapeDtypeStruct(told.shape, a.dtype) if name in _WHOLE else a for name, a in wanted.items()]
    results: list[Array] = jax.ffi.ffi_call(handler.symbol, out)(
        *(given[name].reshape(told.shape) if name in _WHOLE else given[name] for name in names),
        given=_bits(handler.more_arguments, given),
        wanted=_bits(handler.more_results, wanted),
        **told.words,
    )
    return [a.reshape(like.shape) for a, like in zip(results, wanted.values(), strict=True)]


def _bits(names: tuple[str, ...], there: Values) -> Any:
    return np.int64(sum(1 << i for i, name in enumerate(names) if name in there))


def push(told: Told, given: Values, wanted: Values) -> list[Array]:
    """The derivative of y along (t, t_scale, t_offset), by the symmetric projection that the gradient makes too.

    rstd * (t - mean(t) - h * mean(t * h)) * scale + h * t_scale + t_offset
    """
    x, out = given["x"], wanted["out"]
    work = statistics_dtype(str(x.dtype))
    (pushed,) = call(BACKWARD, told, {"x": x, "dy": given["t"], "saved": given["saved"]}, {"dx": out})
    pushed = pushed.astype(work)
    if "scale" in given:
        pushed = pushed * given["scale"].astype(work)
    if "t_scale" in given:
        (h,) = call(FORWARD, told, {"x": x}, {"y": out})
        pushed = pushed + h.astype(work) * given["t_scale"].astype(work)
    if "t_offset" in given:
        pushed = pushed + given["t_offset"].astype(work)
    return [pushed.astype(out.dtype)]


RUN: dict[str, Callable[[Told, Values, Values], list[Array]]] = {
    "forward": partial(call, FORWARD),
    "push": push,
    "pull": partial(call, BACKWARD),
    "moments": partial(call, MOMENTS),
}
