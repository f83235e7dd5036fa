"""Speed of anynorm's layers beside Keras's own, for every case of the table that has a shape for it.

    make bench                              # run, print, write benchmarks/results/speed.json
    make bench ARGS="--backend jax --case group"

Both layers run in one process, one after the other, many times; a row holds the least time of each, one thread. Quote
ratios: the times hold for this machine and this hour. A copy is one `memcpy` of the tensor into memory in use.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import BACKENDS, ROOT, run_worker, save
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(ROOT / "tests"))

Timed = Callable[[], Any]
FORWARD, BOTH = "forward", "forward + backward"


def least(functions: dict[str, Timed], seconds: float) -> dict[str, float]:
    """The least time of each, in ms, taken in turn until the time is up."""
    functions = {name: function for name, function in functions.items() if _runs(function)}
    best = dict.fromkeys(functions, float("inf"))
    end = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < end or rounds < 5:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
        rounds += 1
    return {name: value * 1e3 for name, value in best.items()}


def _runs(function: Timed) -> bool:
    """Warm up; false where a peer cannot do the case at all, as Keras on torch cannot normalize over axis 1."""
    try:
        function()
    except RuntimeError as error:
        print(f"    raises: {str(error).splitlines()[0]}", file=sys.stderr)
        return False
    return True


def worker(words: str, seconds: float) -> list[dict[str, Any]]:
    import keras
    from cases import SPEED_CASES

    import anynorm.keras

    backend = keras.backend.backend()
    modes = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[backend]()
    rows = []
    for case in SPEED_CASES:
        if words not in case.name:
            continue
        kind, arguments = case.keras
        x, dy = (np.random.default_rng(i).normal(size=case.speed).astype(np.float32) for i in (0, 1))
        training = {"training": True} if kind == "BatchNormalization" else {}
        layers = {}
        for name, module in (("anynorm", anynorm.keras), ("keras", keras.layers)):
            layers[name] = getattr(module, kind)(**arguments)
            layers[name].build(case.speed)
        out = np.empty_like(x)
        for mode, prepare in modes.items():
            ready = {name: prepare(layer, x, dy, training) for name, layer in layers.items()}
            for which in (FORWARD, BOTH):
                timed = {name: functions[which] for name, functions in ready.items()}
                ms = least({**timed, "copy": lambda x=x, out=out: np.copyto(out, x)}, seconds)
                rows.append({"case": case.name, "shape": case.speed, "mode": mode, "pass": which, "ms": ms})
                print(f"{mode}, {case.name}, {which}: {_faster(ms)}", file=sys.stderr)
    return rows


def _tensorflow() -> dict[str, Callable[..., dict[str, Timed]]]:
    import tensorflow as tf

    def prepare(compiled: bool) -> Callable[..., dict[str, Timed]]:
        def of(layer: Any, x: Any, dy: Any, training: dict[str, bool]) -> dict[str, Timed]:
            x, dy = tf.constant(x), tf.constant(dy)

            @tf.function(jit_compile=compiled)
            def forward(x: Any) -> Any:
                return layer(x, **training)

            @tf.function(jit_compile=compiled)
            def both(x: Any, dy: Any) -> Any:
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = layer(x, **training)
                return y, tape.gradient(y, [x, *layer.trainable_variables], dy)

            return {FORWARD: lambda: forward(x), BOTH: lambda: both(x, dy)}

        return of

    return {"TensorFlow graph": prepare(False), "TensorFlow XLA": prepare(True)}


def _jax() -> dict[str, Callable[..., dict[str, Timed]]]:
    import jax

    def of(layer: Any, x: Any, dy: Any, training: dict[str, bool]) -> dict[str, Timed]:
        x, dy = jax.numpy.asarray(x), jax.numpy.asarray(dy)
        weights = [v.value for v in layer.trainable_variables]
        rest = [v.value for v in layer.non_trainable_variables]

        def call(x: Any, weights: Any) -> Any:
            return layer.stateless_call(weights, rest, x, **training)

        @jax.jit
        def both(x: Any, weights: Any, dy: Any) -> Any:
            y, vjp, state = jax.vjp(call, x, weights, has_aux=True)
            return y, vjp(dy), state

        forward = jax.jit(call)
        return {
            FORWARD: lambda: jax.block_until_ready(forward(x, weights)),
            BOTH: lambda: jax.block_until_ready(both(x, weights, dy)),
        }

    return {"JAX jit": of}


def _torch() -> dict[str, Callable[..., dict[str, Timed]]]:
    import torch

    torch.set_num_threads(1)

    def of(layer: Any, x: Any, dy: Any, training: dict[str, bool]) -> dict[str, Timed]:
        x, dy = torch.tensor(x), torch.tensor(dy)
        leaf = x.clone().requires_grad_()
        weights = [v.value for v in layer.trainable_variables]

        def forward() -> Any:
            with torch.no_grad():
                return layer(x, **training)

        def both() -> Any:
            y = layer(leaf, **training)
            return y, torch.autograd.grad(y, [leaf, *weights], dy)

        return {FORWARD: forward, BOTH: both}

    return {"torch eager": of}


@click.command(help=__doc__)
@click.option(
    "--backend", "backends", type=click.Choice(BACKENDS), multiple=True, help="Only this one; may be repeated."
)
@click.option("--case", "words", default="", help="Only the cases whose name contains this.")
@click.option("--seconds", default=1.0, show_default=True, help="Time for each comparison.")
@click.option("--worker", "is_worker", is_flag=True, hidden=True)
def main(backends: tuple[str, ...], words: str, seconds: float, is_worker: bool) -> None:
    if is_worker:
        warnings.simplefilter("ignore")
        print(json.dumps(worker(words, seconds)))
        return
    rows: list[dict[str, Any]] = []
    for backend in backends or BACKENDS:
        options = ("--case", words, "--seconds", str(seconds))
        rows += run_worker(os.path.abspath(__file__), backend, *options)
    console = Console(width=max(140, Console().width))
    console.print(_table(rows))
    if words or backends:
        console.print("a part of the table: not written to benchmarks/results")
        return
    path: Path = save("speed", rows)
    console.print(f"rows: {path}")


def _faster(ms: dict[str, float]) -> str:
    return f"{ms['keras'] / ms['anynorm']:.2f}×" if "keras" in ms else "Keras raises"


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Times faster than Keras's own layer (copies of the tensor)", header_style="bold")
    columns = list(dict.fromkeys((row["mode"], row["pass"]) for row in rows))
    table.add_column("case")
    for mode, which in columns:
        table.add_column(f"{mode}\n{which}", justify="right")
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = []
        for column in columns:
            found = [r["ms"] for r in rows if r["case"] == case and (r["mode"], r["pass"]) == column]
            cells += [f"{_faster(ms)} ({ms['anynorm'] / ms['copy']:.1f})" for ms in found]
        table.add_row(case, *cells)
    return table


if __name__ == "__main__":
    main()
