"""`anynorm figure`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import lengths, reported


@click.command()
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--shape", multiple=True, metavar="n=4,c=6,h=3,w=3", help="Lengths by axis name; c counts all channels.")
@click.option("--size", multiple=True, metavar="g=3", help="Length of an axis in parentheses, wherever it occurs.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write a .png, .svg or .pdf.")
def figure(patterns: tuple[str, ...], shape: tuple[str, ...], size: tuple[str, ...], output: Path | None) -> None:
    """Draw which cells of an N × C × (H, W) cube share one mean and variance.

    Each PATTERN is a sentence, or one of the names of norms (batch, layer, instance, group, layer_last, rms,
    weight_standardization, …). Sizes may stand behind it, as in "group g=3". Without any, the four norms of
    Figure 2 of the paper "Group Normalization" (arXiv:1803.08494) are drawn. Without -o the drawing is text.

    \b
      anynorm figure                                    batch, layer, instance, group
      anynorm figure "n [h] w c" rms                    a sentence and a name
      anynorm figure "group g=2" "group g=3" -o g.png
      anynorm figure group --size g=4 --shape c=8,h=2,w=2 -o group.svg
      anynorm figure "n t [c]" --shape t=5

    Axes called n, b, batch or o lie along N; c, channel(s), i and axes in parentheses along C; h, w, t and the rest
    along the third direction, flattened. An axis by another name takes the place that is still empty, the first
    one N, the last one C. "..." stands for those of n, c, h, w that the sentence does not name, or for the axes that
    --shape names instead. Axes without a length have 4 along N, 6 along C, 3 along the rest and 2 for groups.
    """
    with reported():
        from ..figures.cells import TUTORIAL, cubes

        if output is not None:
            from ..figures.save import checked_suffix

            checked_suffix(output)
        made = cubes(patterns or TUTORIAL, lengths(shape, "--shape"), lengths(size, "--size"))
        from rich.console import Console

        console = Console()
        if output is None:
            from ..figures.text import ASCII_MARKS, MARKS, side_by_side

            marks = MARKS if console.encoding.startswith("utf") else ASCII_MARKS
            console.print(side_by_side(made, console.width, marks))
        else:
            from ..figures.draw import draw
            from ..figures.save import save

            save(draw(made), output)
            console.print(f"wrote {output}", highlight=False, markup=False, soft_wrap=True)
