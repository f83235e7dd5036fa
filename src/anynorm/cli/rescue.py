"""`anynorm rescue`."""

from __future__ import annotations

from pathlib import Path

import click

from ..files import check_place, replacing
from .common import import_keras, reported


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="NEW.keras")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.json", help="Write the report as JSON too.")
@click.option("--unsafe", is_flag=True, help="Run code that the file contains: Lambda layers. Only if you trust it.")
def rescue(old: Path, output: Path, report: Path | None, unsafe: bool) -> None:
    """Turn a model that Keras 2 saved, with TensorFlow Addons or without, into a Keras 3 file.

    OLD is a .h5, .hdf5 or .keras file or a SavedModel folder; TensorFlow Addons is not needed. The new file gives the
    same outputs on every backend, and opens where `import anynorm.keras` stands before `keras.saving.load_model`. The
    report names every layer, what it became and what was changed; if a layer cannot be taken over, nothing is written.
    A file that has the new name is replaced, but not OLD itself.

    \b
      anynorm rescue old.h5 -o new.keras
      anynorm rescue saved_model/ -o new.keras --report report.json
    """
    with reported():
        # Before the work rather than behind it.
        if not old.exists():
            raise FileNotFoundError(2, "no such file", str(old))
        for path in (output, report):
            if path is not None:
                check_place(path)
        if report is not None and report.resolve() == output.resolve():
            raise ValueError("the report would be written over the model: give it another name")

        from rich.console import Console
        from rich.progress import Progress

        import_keras()
        from ..rescue import convert

        console = Console()
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("reading weights", total=None)
            made = convert(
                old, output, unsafe=unsafe, progress=lambda done, total: bar.update(task, completed=done, total=total)
            )
        console.print(str(made), highlight=False, markup=False, soft_wrap=True)
        if report is not None:
            with replacing(report) as temporary:
                temporary.write_text(made.json() + "\n")
        console.print(f"wrote {output}", highlight=False, markup=False, soft_wrap=True)
