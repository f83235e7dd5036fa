"""`anynorm inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import choose_backend, hushed, reported

if TYPE_CHECKING:
    from rich.console import Console

    from ..surgery import Facts

# So many names stand before a doubt that several norms share.
_NAMED = 4


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Samples in a batch that it is trained with.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def inspect(model: Path, batch: int | None, as_json: bool) -> None:
    """List the norms of a saved model: sentence, input shape, eps, numbers, and what is doubtful.

    MODEL is what Keras reads (.keras, .h5), a file or folder that `anynorm rescue` reads, a state dictionary that
    torch.save wrote, or a .safetensors file. Nothing in a file is run: of a Keras model with Lambda layers, and of a
    torch model saved whole, it says so and stops.

    A file of tensors has no classes, so that a norm of it is known by its running statistics, or by a weight over one
    axis. Doubts are statistics over few elements or over one, groups of one channel, an eps that is large for the
    running variance, a running variance of zero or one that was never updated, batches below 8 (with --batch), and
    numbers that are not finite.

    \b
      anynorm inspect model.keras
      anynorm inspect model.keras --batch 4
      anynorm inspect weights.pt --json
    """
    with reported():
        choose_backend()
        from ..surgery import inspect as facts_of

        with hushed():
            found = facts_of(model, batch=batch)
        if as_json:
            click.echo(json.dumps([asdict(facts) for facts in found], indent=1, ensure_ascii=False))
        else:
            from rich.console import Console

            _print(Console(), model, found)


def _print(console: Console, model: Path, found: list[Facts]) -> None:
    from rich.table import Table
    from rich.text import Text

    doubtful = [facts for facts in found if facts.doubts]
    norms = f"{len(found)} norm{'s' * (len(found) != 1)}, {len(doubtful)} with doubts"
    table = Table(title=Text(f"{model.name}: {norms if found else 'no norms'}"), title_justify="left")
    for heading, words in (
        ("name", {"overflow": "fold"}),
        ("class", {"overflow": "fold"}),
        ("sentence", {"no_wrap": True}),
    ):
        table.add_column(heading, **words)
    table.add_column("input", no_wrap=True)
    for heading in ("eps", "numbers"):
        table.add_column(heading, justify="right")
    for facts in found:
        shapes = "\n".join(_shape(shape) for shape in facts.shapes)
        eps = "?" if facts.eps is None else f"{facts.eps:g}"
        layer = f"? ({facts.kind})" if facts.layer == "?" else facts.layer
        cells: tuple[Any, ...] = (facts.name, layer, facts.sentence or "?", shapes or "?")
        table.add_row(*(Text(cell) for cell in cells), eps, f"{facts.numbers:,}")
    if found:
        console.print(table)
    else:
        console.print(table.title)
    names: dict[str, list[str]] = {}
    for facts in doubtful:
        for doubt in facts.doubts:
            names.setdefault(doubt, []).append(facts.name)
    for doubt, of in names.items():
        rest = f" and {len(of) - _NAMED} more" if len(of) > _NAMED else ""
        console.print(Text.assemble((", ".join(of[:_NAMED]) + rest, "bold"), ": ", doubt))


def _shape(shape: tuple[int | None, ...]) -> str:
    return " × ".join("?" if length is None else str(length) for length in shape)
