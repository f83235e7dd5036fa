"""Timing in a worker: those of one comparison in turn, the least time of each, and whether they agree."""

from __future__ import annotations

import gc
import importlib
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from floors import PAST, alone, can_be_timed
from shapes import BACKWARD, BOTH, BY_NAME, FORWARD, Case, Worker

from anynorm.kernels.select import select

Timed = Callable[[], Any]
OWN = ("anynorm", "anynorm.keras")
# Long enough for the clock's own time not to count.
_SAMPLE = 2e-4
# Turns take the contenders through the same weather; the slowest gets at least three.
_TURNS, _FEWEST = 10, 3
_FLOOR = "floor: "
# Largest difference in units of the largest value, so that equal work is timed; accuracy has a benchmark of its own.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
# Arrays that must cross the memory at least: x and y; x, dy and dx; all of these.
TRAFFIC = {FORWARD: 2, BACKWARD: 3, BOTH: 5}


@dataclass(frozen=True)
class Contender:
    """One implementation, ready to run.

    Attributes:
        passes: what to time. A forward pass gives y, a backward one dx and more, both passes the two.
        kept: bytes that stay between forward and backward beyond x, scale and offset; None where nobody can say.
    """

    passes: Mapping[str, Timed]
    kept: Callable[[], int] | None = None


def copy_of(array: np.ndarray) -> Timed:
    """One copy of an array into memory in use.

    As numbers: the C library's copy of bytes takes ten times as long where the two lie a little apart within a page.
    """
    bits = array.view(f"u{array.itemsize}")
    out = np.empty_like(bits)
    return lambda: np.positive(bits, out=out)


def least(functions: Mapping[str, Timed], seconds: float) -> dict[str, float]:
    """The least time of each in ms, all having run before.

    Each gets `seconds` in slices of equal length, in turn, so that a fast one is measured more often than a slow one
    and finds the caches as it leaves them itself; what is faster than the clock is measured many calls at a time.
    """
    calls = {name: _calls(function) for name, function in functions.items()}
    best = dict.fromkeys(functions, float("inf"))
    end = time.perf_counter() + seconds * len(functions)
    gc.collect()
    gc.disable()
    try:
        for turn in range(_TURNS):
            if turn >= _FEWEST and time.perf_counter() > end:
                break
            for name, function in functions.items():
                until = time.perf_counter() + seconds / _TURNS
                best[name] = min(best[name], _slice(function, calls[name], until))
    finally:
        gc.enable()
    return {name: value * 1e3 for name, value in best.items()}


def _calls(function: Timed) -> int:
    """How many calls make a sample."""
    start = time.perf_counter()
    function()
    return max(1, math.ceil(_SAMPLE / (time.perf_counter() - start)))


def _slice(function: Timed, calls: int, until: float) -> float:
    """The least seconds of a call, sampled until the time is up, at least once."""
    best = float("inf")
    while True:
        repeat = itertools.repeat(None, calls)
        start = time.perf_counter()
        for _ in repeat:
            function()
        now = time.perf_counter()
        best = min(best, (now - start) / calls)
        if now >= until:
            return best


def rows(worker: Worker, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each of the worker's comparisons, in their order."""
    peers = importlib.import_module(f"peers_{worker.framework}")
    peers.start(worker.threads)
    for name, of_case in itertools.groupby(worker.comparisons, key=lambda comparison: comparison[0]):
        case = BY_NAME[name]
        arrays = case.arrays()
        copy = peers.copy(arrays[0], case.dtype)
        choice = select(case.plan, worker.framework, "cpu", case.dtype)
        has_floors = worker.threads == 1 and not worker.fresh and case.dtype == "float32" and not case.small
        has_floors = has_floors and can_be_timed()
        of_case_alone = alone(case, *arrays) if has_floors else {}
        for mode, of_mode in itertools.groupby(of_case, key=lambda comparison: comparison[1]):
            prepared = {name: tried(make) for name, make in peers.contenders(case, mode, *arrays).items()}
            floors = {**of_case_alone, "through": peers.through(mode, *arrays)} if has_floors else {}
            for _, _, which in of_mode:
                timed = {name: passes[which] for name, passes in floors.items() if which in passes}
                measured = _compared(case, which, prepared, timed, copy, peers.numpy, seconds)
                yield {
                    **case.row(worker, mode, which),
                    "kernel": choice.kernel,
                    "why": choice.why,
                    **measured,
                }


def tried(function: Callable[[], Any]) -> Any:
    """What it gives, or in words how it fails: a peer may fail in any way, and that it does is a result."""
    try:
        return function()
    except Exception as error:
        # Keras says in the first line which layer, and in the next what is wrong, in bold.
        plain = re.sub(r"\x1b\[\d*m", "", str(error))
        lines = [line.strip() for line in plain.splitlines() if line.strip()]
        return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"


def _compared(
    case: Case,
    which: str,
    prepared: Mapping[str, Contender | str],
    floors: Mapping[str, Timed],
    copy: Timed,
    numpy: Callable[..., Any],
    seconds: float,
) -> dict[str, Any]:
    raises = {name: made for name, made in prepared.items() if isinstance(made, str)}
    ready, results = {}, {}
    for name, made in prepared.items():
        if isinstance(made, str):
            continue
        out = tried(made.passes[which])
        if isinstance(out, str):
            raises[name] = out
        else:
            ready[name] = made.passes[which]
            results[name] = [numpy(a) for a in _compared_arrays(which, out)]
            del out
    own = next((results[name] for name in OWN if name in results), None)
    differences = {name: _difference(own, theirs) for name, theirs in results.items() if own is not None}
    del results, own
    beside = {f"{_FLOOR}{name}": timed for name, timed in floors.items()}
    for timed in beside.values():
        timed()
    times = least({**ready, "copy": copy, **beside}, seconds)
    ms = {name: value for name, value in times.items() if name not in beside}
    of_floors: dict[str, float] = {}
    for name in beside:
        short = name.removeprefix(_FLOOR).removesuffix(PAST)
        of_floors[short] = min(of_floors.get(short, math.inf), times[name])
    kept = {name: prepared[name].kept for name in ready} if which == BOTH else {}
    in_tensors = {name: tried(count) for name, count in kept.items() if count is not None}
    return {
        "ms": ms,
        "floors": of_floors,
        "GB/s": {name: TRAFFIC[which] * case.nbytes / 1e6 / value for name, value in ms.items() if name in OWN},
        "kept": {name: n if isinstance(n, str) else n / case.nbytes for name, n in in_tensors.items()},
        "differences": differences,
        "disagree": [name for name, d in differences.items() if not d <= TOLERANCES[case.dtype]],
        "raises": raises,
    }


def _compared_arrays(which: str, out: Any) -> list[Any]:
    """y, dx or both of what a pass gives."""
    if which == FORWARD:
        return [out]
    return [out[0]] if which == BACKWARD else [out[0], out[1][0]]


def _difference(own: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest, in units of anynorm's largest value."""
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(own, theirs, strict=True))
