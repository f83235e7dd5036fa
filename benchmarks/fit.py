"""A training step of the tutorial's model: without normalization, with anynorm's layers and with Keras's own.

\b
    make bench                                              # runs this behind benchmarks/speed.py
    .venv/bin/python benchmarks/fit.py --framework jax      # a part: printed, not saved

Each framework has processes of its own on one thread, several since where a model's weights come to lie in memory
costs more or less all through a process. In each the models train in turn, a short epoch each, many times; a row holds
the least time of a step for each, and what normalization adds to the model without. "parameters" is the model without
normalization that trains a scale and an offset all the same: how far from nothing what that adds is, so far are the
other differences to be trusted.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from typing import Any

import click
from common import run_worker, save, use_one_core
from rich.console import Console
from rich.table import Table

FRAMEWORKS = {"tensorflow": "TensorFlow", "jax": "JAX"}
NORMS = ("group", "instance", "layer", "batch")
_STEPS = 20


def worker(rounds: int) -> list[dict[str, Any]]:
    """A row for each norm, in this process with its Keras backend."""
    import keras
    import numpy as np

    from anynorm.cli import tutorial

    class Epoch(keras.callbacks.Callback):
        """Times an epoch's steps alone: behind them `fit` waits until tf.data's tuning wakes up, whose naps double."""

        def on_epoch_begin(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, *_: Any) -> None:
            # JAX may still be at work, and only here would say that a step failed.
            weights = [np.asarray(weight) for weight in self.model.get_weights()]
            self.took = time.perf_counter() - self.start
            if not all(np.isfinite(weight).all() for weight in weights):
                raise FloatingPointError("training gave weights that are not finite")

    # What is in the images does not matter to the time.
    x = np.random.default_rng(0).uniform(size=(_STEPS * tutorial.BATCH, 28, 28)).astype(np.float32)
    y = np.zeros(len(x), np.int32)
    models = {("none", "none"): tutorial.network([]), ("none", "parameters"): tutorial.network([_idle()])}
    for norm in NORMS:
        models[norm, "anynorm"] = tutorial.network(tutorial.layers(norm))
        models[norm, "Keras"] = tutorial.network([_of_keras(norm)])
    best = dict.fromkeys(models, float("inf"))
    # The first round compiles.
    for done in range(rounds + 1):
        for name, model in models.items():
            epoch = Epoch()
            model.fit(x, y, batch_size=tutorial.BATCH, shuffle=False, verbose=0, callbacks=[epoch])
            if done:
                best[name] = min(best[name], epoch.took / _STEPS * 1e3)
    alone = {name: best["none", name] for name in ("none", "parameters")}
    return [{"norm": norm, "ms": alone | {name: best[norm, name] for name in ("anynorm", "Keras")}} for norm in NORMS]


def _measured(backend: str, processes: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of one framework, the best of all processes."""
    runs = [run_worker(os.path.abspath(__file__), backend, "--rounds", str(rounds)) for _ in range(processes)]
    about = {"framework": FRAMEWORKS[backend], "threads": 1, "steps": _STEPS, "rounds": rounds, "processes": processes}
    rows = []
    for of_norm in zip(*runs, strict=True):
        ms = {name: min(row["ms"][name] for row in of_norm) for name in of_norm[0]["ms"]}
        adds = {name: value - ms["none"] for name, value in ms.items() if name != "none"}
        rows.append({**about, "norm": of_norm[0]["norm"], "ms": ms, "adds": adds})
    return rows


def _of_keras(norm: str) -> Any:
    """Keras's layer with the tutorial's arguments; instance normalization is its group normalization, as it says."""
    import keras

    return {
        "group": lambda: keras.layers.GroupNormalization(groups=5, axis=3),
        "instance": lambda: keras.layers.GroupNormalization(groups=-1, axis=3),
        "layer": lambda: keras.layers.LayerNormalization(axis=1),
        "batch": lambda: keras.layers.BatchNormalization(axis=3),
    }[norm]()


def _idle() -> Any:
    """A layer with a scale and an offset that the optimizer moves and nothing else uses."""
    import keras

    class Idle(keras.layers.Layer):
        def build(self, shape: tuple[int | None, ...]) -> None:
            self.scale, self.offset = (self.add_weight(shape=shape[-1:]) for _ in range(2))

        def call(self, x: Any) -> Any:
            self.add_loss(keras.ops.sum(self.scale) + keras.ops.sum(self.offset))
            return x

    return Idle()


@click.command(help=__doc__)
@click.option("--framework", "frameworks", type=click.Choice(list(FRAMEWORKS)), multiple=True, help="Only this one.")
@click.option("--processes", default=4, show_default=True, type=click.IntRange(1), help="For each framework.")
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(1), help="Epochs of each model in each.")
@click.option("--worker", "is_worker", is_flag=True, hidden=True)
def main(frameworks: tuple[str, ...], processes: int, rounds: int, is_worker: bool) -> None:
    if is_worker:
        warnings.simplefilter("ignore")
        use_one_core()
        for row in worker(rounds):
            print(json.dumps(row))
        return
    console = Console(width=max(110, Console().width))
    rows: list[dict[str, Any]] = []
    for backend in frameworks or FRAMEWORKS:
        with console.status(f"training on {FRAMEWORKS[backend]}"):
            rows += _measured(backend, processes, rounds)
    console.print(_table(rows))
    if frameworks:
        console.print("a part of the table: not saved")
        return
    console.print(f"rows: {save('fit', rows)}")
    from tables import write_readmes

    write_readmes()


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="ms a training step of the tutorial's model, and what normalization adds", header_style="bold")
    for name in ("framework", "norm"):
        table.add_column(name)
    for name in ("without", "anynorm", "Keras", "parameters add", "anynorm adds", "Keras adds", "Keras's over ours"):
        table.add_column(name, justify="right")
    for row in rows:
        ms, adds = row["ms"], row["adds"]
        added = [adds[name] for name in ("parameters", "anynorm", "Keras")]
        values = [ms["none"], ms["anynorm"], ms["Keras"], *added, ms["Keras"] / ms["anynorm"]]
        table.add_row(row["framework"], row["norm"], *(f"{value:.2f}" for value in values))
    return table


if __name__ == "__main__":
    sys.exit(main())
