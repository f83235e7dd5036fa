"""The GPU kernels' speed: every goal's arrays through anynorm, torch eager and compiled, and each peer found installed.

\b
    make gpu                                             # the tests that need a GPU, then all of this
    .venv/bin/python benchmarks/gpu.py --goal "group"    # the goals whose text contains this
    .venv/bin/python benchmarks/gpu.py --list            # the goals and their arrays
    .venv/bin/python benchmarks/gpu.py --rehearse        # all code once on the CPU with tiny arrays; measures nothing
    .venv/bin/python benchmarks/gpu.py --readme          # table and chart from the saved rows

Contenders take turns, with the caches emptied before each call, and the least time of each counts; the roof is the
fastest copy of the same tensor in the same run. Beside what is fused stands the same as two operations of anynorm's and
torch's ("apart"). Liger, QuACK, Apex and torchnorm are timed where they can be imported.

\b
A row of benchmarks/results/gpu.json:
    ms        the least time of each contender by the GPU's clock, or of the whole call where the goal says so
    share     of the copy's rate, counting the goal's passes over the tensor
    ahead     torch's own time over anynorm's
    met       whether the goal is: the share, the ratio and, where there is one, the time
    kernel    what anynorm.kernels.select answers
    disagree  who computes something else than anynorm, by more than rounding
    raises    how a contender failed
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import gpu_cases
import torch
import torch._functorch.config
from common import save
from gpu_cases import GOALS, Goal
from gpu_pages import page, show
from measure import TOLERANCES, tried
from rich.console import Console
from rich.progress import track
from shapes import BACKWARD, BOTH, FORWARD, Case

from anynorm.kernels.select import select

Timed = Callable[[], Any]
# Larger than any cache of a GPU.
_FLUSH = 2**28


class Clock:
    """Times on one device."""

    def __init__(self, device: str, wall: bool) -> None:
        self.events = device == "cuda" and not wall
        self.flush = torch.empty(_FLUSH if self.events else 1, dtype=torch.int8, device=device)
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def once(self, function: Timed) -> float:
        """Seconds of one call."""
        if not self.events:
            self.wait()
            start = time.perf_counter()
            function()
            self.wait()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        start.record()
        function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def least(self, functions: dict[str, Timed], seconds: float) -> dict[str, float]:
        """The least ms of each, in turns of one call."""
        for function in functions.values():
            self.once(function)
        best = dict.fromkeys(functions, float("inf"))
        end = time.perf_counter() + seconds * len(functions)
        while True:
            for name, function in functions.items():
                best[name] = min(best[name], self.once(function) * 1e3)
            if time.perf_counter() > end:
                return best


def measure(goal: Goal, case: Case, device: str, seconds: float) -> dict[str, Any]:
    """One row."""
    given = _arrays(goal, case, device)
    ready: dict[str, Timed] = {}
    raises, results = {}, {}
    for name, make in gpu_cases.contenders(goal, case).items():
        timed = tried(lambda make=make: _timed(goal, make(), *given))
        out = timed if isinstance(timed, str) else tried(timed)
        if isinstance(out, str):
            raises[name] = out
        else:
            ready[name], results[name] = timed, _first(out)
    if "anynorm" not in ready:
        raise SystemExit(f"anynorm fails in {goal.text}, {case.name}: {raises['anynorm']}")
    own = results["anynorm"].float()
    size = own.abs().max()
    differences = {name: float((own - y.float()).abs().max() / size) for name, y in results.items()}
    del results, own
    x = given[0]
    to = torch.empty_like(x)
    copies = {"copy": lambda: to.copy_(x), "copy, cloned": x.clone}
    ms = Clock(device, goal.wall).least({**ready, **copies}, seconds)
    copy = min(ms.pop(name) for name in copies)
    torch_s = min((ms[name] for name in gpu_cases.torch_peers(case) if name in ms), default=None)
    row = {
        "goal": goal.text,
        "case": case.name,
        "pass": goal.which,
        "around": goal.around,
        "dtype": case.dtype,
        "MB": case.nbytes / 1e6,
        "kernel": select(case.plan, "torch", device, case.dtype).kernel,
        "ms": {**ms, "copy": copy},
        "share": goal.passes / 2 * copy / ms["anynorm"],
        "ahead": None if torch_s is None else torch_s / ms["anynorm"],
        "differences": differences,
        "disagree": [name for name, d in differences.items() if not d <= TOLERANCES[case.dtype]],
        "raises": raises,
    }
    return {**row, "met": goal.is_met(row)}


def _arrays(goal: Goal, case: Case, device: str) -> list[Any]:
    """x, dy, scale, offset and the residual, as torch's users hold them."""
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator(device).manual_seed(0)
    x, dy, residual = (torch.randn(case.shape, generator=generator, device=device).to(dtype) for _ in range(3))
    if case.family.moved:
        x, dy = x.movedim(-1, 1), dy.movedim(-1, 1)
    scale, offset = (torch.rand(case.channels, generator=generator, device=device).to(dtype) + 0.5 for _ in range(2))
    return [x, dy, scale, None if case.family.entry == "rms" else offset, residual if goal.around == "add" else None]


def _timed(goal: Goal, function: Callable[..., Any], x: Any, dy: Any, scale: Any, offset: Any, residual: Any) -> Timed:
    rest = [a for a in (residual,) if a is not None]
    leaf, w, b = (None if a is None else a.detach().requires_grad_() for a in (x, scale, offset))
    leaves = [a for a in (leaf, w, b) if a is not None]
    if goal.which == FORWARD:

        def forward() -> Any:
            with torch.no_grad():
                return function(x, scale, offset, *rest)

        return forward
    if goal.which == BOTH:
        return lambda: torch.autograd.grad(function(leaf, w, b, *rest), leaves, dy)
    y = function(leaf, w, b, *rest)
    assert goal.which == BACKWARD
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple | list) else out


def tiny(case: Case) -> Case:
    """The same kind of array, so small that a processor is done at once."""
    place = case.family.channels % len(case.shape)
    shape = tuple(32 if d == place else min(n, 4) for d, n in enumerate(case.shape))
    return dataclasses.replace(case, shape=shape)


@click.command(help=__doc__)
@click.option("--goal", "words", default="", help="Only the goals whose text contains this.")
@click.option("--seconds", default=0.5, show_default=True, help="For each contender of each array.")
@click.option("--list", "listing", is_flag=True, help="Name the goals and arrays and stop.")
@click.option("--rehearse", is_flag=True, help="Run everything once on the CPU with tiny arrays; saves nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows, one a line, and not the table.")
@click.option("--readme", is_flag=True, help="From the saved rows: the READMEs' table and the chart. Measures nothing.")
def main(words: str, seconds: float, listing: bool, rehearse: bool, as_json: bool, readme: bool) -> None:
    # Taken where they are asked for only, until this has run.
    os.environ.setdefault("ANYNORM_KERNEL", "composed" if rehearse else "triton")
    # A backward pass that was compiled is timed many times on one forward pass.
    torch._functorch.config.donated_buffer = False
    console = Console(width=max(160, Console().width))
    if readme:
        return page()
    chosen = [(goal, case) for goal in GOALS if words in goal.text for case in goal.cases]
    if not chosen:
        raise click.BadParameter(f"no goal's text contains {words!r}; --list names them", param_hint="--goal")
    if listing:
        for goal, case in chosen:
            console.print(f"{goal.text}: {case.name}, {case.nbytes / 1e6:.0f} MB", highlight=False)
        return None
    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here, so nothing can be measured; --rehearse runs the code without")
    rows = []
    for goal, case in track(chosen, "rehearsing" if rehearse else "measuring", console=Console(stderr=True)):
        case, device = (tiny(case), "cpu") if rehearse else (case, "cuda")
        rows.append(measure(goal, case, device, 0.0 if rehearse else seconds))
        if as_json:
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if not as_json:
        show(console, rows)
    if rehearse or words:
        console.print("a rehearsal: not saved" if rehearse else "a part of the table: not saved", style="dim")
        return None
    name = torch.cuda.get_device_name()
    console.print(f"rows: {save('gpu', rows, {'gpu': name, 'driver': torch.version.cuda})}")
    return page()


if __name__ == "__main__":
    sys.exit(main())
