"""What bounds the speed: the memory, the kernel and the framework apart, for every float32 case.

    python benchmarks/bounds.py

times on one thread, in one process and in turn: a copy of the tensor; loops that move its bytes and compute next to
nothing, each byte once ("bytes") and as the statistics need it ("passes": a slab is read for its sums, then read again
and stored); the loops of each byte once again, within an autograd function as Python writes one ("through"); the kernel
on arrays of its own; anynorm; torch. On TensorFlow and JAX, in processes of their own, "through" is each byte once in
the framework's own simplest operations (x + x, and dy * x for a gradient). A copy is timed on all threads too. Nothing
can be ahead of a peer by more than its time over that of the bytes, nothing of two passes by more than its time over
that of the passes, and nothing within a framework by more than its time over that of "through". Writes
results/bounds.json and prints what was missed in results/speed.json with what bounds it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from common import ROOT, cores, save, saved, stream, use_one_core
from goals import Goal, Row, goals, own, peers
from measure import Timed, least
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shapes import BACKWARD, BOTH, BY_NAME, CASES, EPS, FORWARD, Case

_SOURCE = ROOT / "benchmarks/bounds.cpp"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffast-math", "-funroll-loops", "-shared", "-fPIC")
_PASSES = (FORWARD, BACKWARD, BOTH)
_MODES = {"tensorflow": ("TensorFlow graph", "TensorFlow XLA"), "jax": ("JAX jit",)}
_OTHERS = tuple(mode for modes in _MODES.values() for mode in modes)
_CASES = tuple(case for case in CASES if case.dtype == "float32" and not case.small)


def slab_of(case: Case) -> int:
    """Elements that lie together and have to be read before the first of them can be stored.

    Kept runs behind the only reduced one can be cut into tiles that a cache holds: of one cache line here.
    """
    runs = case.plan.runs
    reduced = [i for i, run in enumerate(runs) if run.reduced]
    if len(reduced) == 1 and reduced[0] < len(runs) - 1:
        return runs[reduced[0]].known * 16
    return math.prod(run.known for run in runs[reduced[0] :])


def _work(backend: str, **told: Any) -> None:
    """In a process of its own: a row a line."""
    for row in {"torch": _on_torch, "copy": _copies}.get(backend, _within)(**told):
        print(json.dumps(row, ensure_ascii=False), flush=True)


def _copies(threads: int, seconds: float, cases: list[str]) -> Iterator[Row]:
    import peers_torch

    if threads == 1:
        use_one_core()
    peers_torch.start(threads)
    key = "one thread" if threads == 1 else "all threads"
    for name in cases:
        yield {"case": name, key: least({"copy": peers_torch.copy(BY_NAME[name].arrays()[0], "float32")}, seconds / 2)}


def _within(framework: str, seconds: float, cases: list[str]) -> Iterator[Row]:
    peers = importlib.import_module(f"peers_{framework}")
    use_one_core()
    peers.start(1)
    for name in cases:
        x, dy, *small = BY_NAME[name].arrays()
        copy = peers.copy(x, "float32")
        row: dict[str, Any] = {"case": name}
        for mode in _MODES[framework]:
            passes = peers.through(mode, x, dy, [a for a in small if a is not None])
            row[mode] = {which: least({"through": timed, "copy": copy}, seconds / 2) for which, timed in passes.items()}
        yield row


def _on_torch(library: str, seconds: float, cases: list[str]) -> Iterator[Row]:
    import peers_torch

    use_one_core()
    peers_torch.start(1)
    loops = ctypes.CDLL(library)
    for name in cases:
        case = BY_NAME[name]
        arrays = case.arrays()
        timed = {"bytes": _moving(loops, arrays[0], 0), "passes": _moving(loops, arrays[0], slab_of(case))}
        timed["through"] = _through(loops, *arrays)
        timed["kernel"] = _kernel(case, *arrays)
        timed |= {who: make().passes for who, make in peers_torch.contenders(case, "torch", *arrays).items()}
        row: dict[str, Any] = {"case": name, "slab": slab_of(case)}
        for which in _PASSES:
            functions = {who: passes[which] for who, passes in timed.items()}
            row[which] = least({**functions, "copy": peers_torch.copy(arrays[0], case.dtype)}, seconds)
        yield row


def _moving(loops: ctypes.CDLL, x: Any, slab: int) -> Mapping[str, Timed]:
    """The loops of bounds.cpp over arrays that are there already."""
    import torch

    x = torch.tensor(x)
    arrays = [x, *(torch.randn_like(x) for _ in range(3))]
    at_x, at_y, at_dy, at_dx = (ctypes.c_void_p(a.data_ptr()) for a in arrays)
    sizes = ctypes.c_int64(x.numel()), ctypes.c_int64(slab)

    def forward() -> Any:
        loops.forward(at_x, at_y, *sizes)
        return arrays

    def backward() -> Any:
        loops.backward(at_x, at_dy, at_dx, *sizes)

    def both() -> None:
        forward()
        backward()

    return {FORWARD: forward, BACKWARD: backward, BOTH: both}


def _through(loops: ctypes.CDLL, x: Any, dy: Any, scale: Any, offset: Any) -> Mapping[str, Timed]:
    """The loops of each byte once where torch's users meet them: results made anew, and a gradient of autograd's."""
    import torch

    leaf, w, b = (None if a is None else torch.tensor(a).requires_grad_() for a in (x, scale, offset))
    leaves, dy = [a for a in (leaf, w, b) if a is not None], torch.tensor(dy)
    sizes = ctypes.c_int64(leaf.numel()), ctypes.c_int64(0)

    def moved(x: Any) -> Any:
        y = torch.empty_like(x)
        loops.forward(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), *sizes)
        return y

    class Moving(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, *others: Any) -> Any:
            ctx.save_for_backward(x, *others)
            return moved(x)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, *others = ctx.saved_tensors
            dx, *more = (torch.empty_like(a) for a in (x, *others))
            loops.backward(*(ctypes.c_void_p(a.data_ptr()) for a in (x, dy, dx)), *sizes)
            return dx, *more

    def forward() -> Any:
        with torch.no_grad():
            return moved(leaf)

    before = Moving.apply(*leaves)

    def backward() -> Any:
        return torch.autograd.grad(before, leaves, dy, retain_graph=True)

    def both() -> Any:
        y = Moving.apply(*leaves)
        return y, torch.autograd.grad(y, leaves, dy)

    return {FORWARD: forward, BACKWARD: backward, BOTH: both}


def _kernel(case: Case, x: Any, dy: Any, scale: Any, offset: Any) -> Mapping[str, Timed]:
    """The kernel on arrays that are there already: no framework, and no allocator to choose other memory each time."""
    import torch

    from anynorm.kernels.cpu import calls, problem
    from anynorm.kernels.torch_memory import room_for_saved

    x, dy, scale, offset = (None if a is None else torch.tensor(a) for a in (x, dy, scale, offset))
    y, dx = torch.empty_like(x), torch.empty_like(x)
    kept = room_for_saved(x, case.plan)
    sums = [None if a is None else torch.empty_like(a) for a in (scale, offset)]
    names = ("float32" if a is not None else None for a in (scale, offset))
    told = problem(case.plan, "float32", *names, EPS, 1)
    # Addresses do not keep their tensors; these lists do, in the functions below.
    forth, back = [x, scale, offset, y, None, None, kept], [x, dy, scale, kept, dx, *sums]
    at_forth, at_back = ([None if a is None else a.data_ptr() for a in arrays] for arrays in (forth, back))

    def forward() -> Any:
        calls.forward(told, *at_forth)
        return forth

    def backward() -> Any:
        calls.backward(told, *at_back)
        return back

    def both() -> None:
        forward()
        backward()

    return {FORWARD: forward, BACKWARD: backward, BOTH: both}


def _measured(cases: Sequence[Case], seconds: float) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "bounds.so"
        subprocess.run([os.environ.get("CXX", "c++"), *_FLAGS, _SOURCE, "-o", library], check=True)
        names = [case.name for case in cases]
        found: dict[str, Row] = {name: {} for name in names}
        workers: list[tuple[str, int, dict[str, Any]]] = [
            ("torch", 1, {"library": str(library)}),
            *((framework, 1, {"framework": framework}) for framework in _MODES),
            *(("copy", threads, {"threads": threads}) for threads in (1, cores())),
        ]
        rows = (row for worker in workers for row in _rows_of(*worker, seconds=seconds, cases=names))
        for row in track(rows, "cases", total=len(cases) * len(workers), console=Console(stderr=True)):
            found[row["case"]] |= row
    return list(found.values())


def _rows_of(backend: str, threads: int, more: dict[str, Any], **told: Any) -> Iterator[Row]:
    framework = backend if backend in _MODES else "torch"
    return stream(
        os.path.abspath(__file__), framework, json.dumps({"backend": backend, **more, **told}), threads=threads
    )


def missed(speed: Sequence[Row], cache: int, bounds: Mapping[str, Row]) -> Iterator[tuple[Goal, Row, str, list[float]]]:
    """Each row that misses a goal of being ahead: the goal, the row, the peer, and how far ahead of that peer are
    anynorm, the kernel alone, the bytes through the framework, the passes and the bytes.

    The peer's time and anynorm's are in copies of their own process; a copy is what processes have in common.
    """
    for goal in goals(cache):
        for row in speed:
            value = goal.value(row) if goal.about(row) and not goal.at_most and row["threads"] == 1 else None
            bound = bounds.get(row["case"], {}).get(row["pass"])
            if value is None or value >= goal.number or bound is None:
                continue
            peer = min(peers(row), key=lambda who, row=row, value=value: abs(peers(row)[who] / own(row, who) - value))
            theirs = peers(row)[peer] / row["ms"]["copy"]
            kernel, passes, moved = (theirs * bound["copy"] / bound[who] for who in ("kernel", "passes", "bytes"))
            within = bounds[row["case"]][row["mode"]][row["pass"]] if row["mode"] in _OTHERS else bound
            yield goal, row, peer, [value, kernel, theirs * within["copy"] / within["through"], passes, moved]


def verdict(goal: float, kernel: float, through: float, passes: float, moved: float) -> str:
    """What bounds a row, in words."""
    if moved < goal:
        return "the memory: each byte once is too slow"
    if passes < goal:
        return "the memory: two passes are too slow"
    if through < goal:
        return "the framework: each byte once within it is too slow"
    return "the framework around the kernel" if kernel >= goal else "the kernel's own work"


def _show(console: Console, rows: Sequence[Row]) -> None:
    table = Table(title="Times in copies of the tensor, one thread", header_style="bold", pad_edge=False)
    table.add_column("case", no_wrap=True)
    table.add_column("pass")
    names = ("bytes", "passes", "through", "kernel", "anynorm", "torch", "F.group_norm(G=C)")
    for name in ("copy, µs", *names, *(f"through {mode}" for mode in _OTHERS)):
        table.add_column(name, justify="right")
    for row in rows:
        for which in _PASSES:
            within = (row[mode].get(which, {}) for mode in _OTHERS)
            cells = [*((row[which], name) for name in names), *((times, "through") for times in within)]
            ratios = (f"{times[name] / times['copy']:.2f}" if name in times else "" for times, name in cells)
            table.add_row(row["case"], which, f"{row[which]['copy'] * 1e3:.0f}", *ratios)
    console.print(table)
    speed = saved("speed")
    if not speed:
        return
    table = Table(title="All threads over one: times faster", header_style="bold", pad_edge=False)
    table.add_column("case", no_wrap=True)
    for name in ("a copy", "anynorm, least", "anynorm, most"):
        table.add_column(name, justify="right")
    for row in rows:
        ours = [r["scaling"] for r in speed["rows"] if r["case"] == row["case"] and "scaling" in r]
        if ours:
            copied = row["one thread"]["copy"] / row["all threads"]["copy"]
            table.add_row(row["case"], *(f"{n:.2f}" for n in (copied, min(ours), max(ours))))
    console.print(table)
    table = Table(title="Rows that miss a goal: times ahead of the peer", header_style="bold", pad_edge=False)
    for name in ("goal", "case", "mode, peer"):
        table.add_column(name)
    for name in ("goal", "reached", "kernel", "through", "passes", "bytes"):
        table.add_column(name, justify="right")
    table.add_column("what bounds it")
    by_case = {row["case"]: row for row in rows}
    for goal, row, peer, ahead in missed(speed["rows"], speed["machine"]["cache"], by_case):
        case = BY_NAME[row["case"]].size
        numbers = (f"{n:.2f}" for n in ahead)
        why = verdict(goal.number, *ahead[1:])
        table.add_row(goal.text, case, f"{row['mode']}, {peer}", f"{goal.number:g}", *numbers, why)
    console.print(table)


@click.command(help=__doc__)
@click.option("--case", "words", default="", help="Only cases with these words in their name; nothing is saved.")
@click.option("--seconds", default=1.5, show_default=True, help="For each pass of each case.")
@click.option("--saved", "again", is_flag=True, help="Measure nothing: print what was saved.")
@click.option("--worker", hidden=True)
def main(words: str, seconds: float, again: bool, worker: str | None) -> None:
    if worker is not None:
        _work(**json.loads(worker))
        return
    console = Console(width=max(190, Console().width))
    words = re.sub(r"(?<=\d)x(?=\d)", "×", words)
    cases = [case for case in _CASES if words in case.name]
    if not cases:
        raise click.BadParameter(f'no case has "{words}" in its name', param_hint="--case")
    if again:
        _show(console, (saved("bounds") or {"rows": []})["rows"])
        return
    rows = _measured(cases, seconds)
    _show(console, rows)
    if not words:
        click.echo(f"rows: {save('bounds', rows)}", err=True)


if __name__ == "__main__":
    main()
