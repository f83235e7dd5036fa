"""Speed of anynorm and of its peers, for every case of benchmarks/shapes.py.

\b
    make bench                                      # all: rows, tables, chart, READMEs; leave the machine alone
    make bench ARGS="--case 'group, NHWC 16x56'"    # the cases whose name contains this
    make bench ARGS="--framework torch --rounds 5"  # one framework, with more patience
    make bench ARGS="--more"                        # another run, or a part, joined to the saved rows
    make bench ARGS="--list"                        # the cases
    make bench ARGS="--readme"                      # tables, chart and READMEs from the saved rows

Each framework runs in processes of its own, on one thread and on all. In a process, anynorm, its peers and a copy of
the tensor take turns on one comparison, and the least time of each is kept: quote the ratios, not the times. All is
done in rounds, since a machine that others use too is slow for minutes, or for hours: then run it again later, with
--more. The least time of all rounds counts. A peer that fails, or that computes something else, is said to. A part of
the table is printed and not saved, but for --more.

\b
A row of benchmarks/results/speed.json:
    ms           the least time of a call, for each contender; "copy" is one copy of the tensor into memory in use
    floors       ms of what only moves the bytes and of the kernel alone, as floors.py says; float32, one thread,
                 where there is a C++ compiler
    rounds       how many the row is the best of
    GB/s         of anynorm: what must cross the memory at least (forward 2 tensors, backward 3, both 5), over ms
    kept         tensors that stay between forward and backward beyond the input
    kernel, why  what anynorm.kernels.select answers for this array
    output       "reused": freed memory stays with the process, as in training; "fresh": as the system's allocator does
    scaling      anynorm's time on one thread over its time on all
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click
import shapes
from common import BACKENDS, WorkerDiedError, cores, provenance, same_since, save, saved, stream, use_one_core
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# What a row depends on besides anynorm itself.
_CODE = tuple(f"benchmarks/{name}" for name in ("shapes.py", "measure.py", "common.py", "floors.*", "peers_*.py"))


@click.command(help=__doc__)
@click.option("--framework", "frameworks", type=click.Choice(BACKENDS), multiple=True, help="One; may be repeated.")
@click.option("--case", "words", default="", help="Only the cases whose name contains this.")
@click.option("--seconds", default=0.1, show_default=True, help="Time for each contender in a round.")
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1), help="How often all is measured.")
@click.option("--more", is_flag=True, help="Join the saved rows, measured with the same code and versions.")
@click.option("--list", "listing", is_flag=True, help="Name the cases and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows, one a line, and not the tables.")
@click.option("--readme", is_flag=True, help="From the saved rows: print, draw, write the READMEs. Measures nothing.")
@click.option("--worker", hidden=True)
def main(
    frameworks: tuple[str, ...],
    words: str,
    seconds: float,
    rounds: int,
    more: bool,
    listing: bool,
    as_json: bool,
    readme: bool,
    worker: str | None,
) -> None:
    if worker is not None:
        _work(**json.loads(worker))
        return
    if listing:
        for case in shapes.CASES:
            click.echo(case.name)
        return
    from goals import with_scaling
    from tables import show, write_readmes

    console = Console(width=max(190, Console().width))
    if readme:
        data = saved("speed") or provenance() | {"rows": []}
        show(console, data["rows"], data["machine"]["cache"], goals=True)
        write_readmes()
        return
    # As people type it.
    words = re.sub(r"(?<=\d)x(?=\d)", "×", words)
    planned = list(shapes.workers(frameworks or BACKENDS, words, cores()))
    if not any(one.comparisons for one in planned):
        raise click.BadParameter(f'no case has "{words}" in its name; see --list', param_hint="--case")
    before = _joinable() if more else None
    rows = with_scaling(_measured(planned, seconds, rounds, before["rows"] if before else []))
    # Which rows lie beyond the cache is not to change with a few more rounds.
    cache = (before or provenance())["machine"]["cache"]
    whole = more or not (words or frameworks)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
    else:
        show(console, rows, cache, goals=whole)
    if not whole:
        click.echo("a part of the table: not saved", err=True)
        return
    click.echo(f"rows: {save('speed', rows, {'cache': cache})}", err=True)
    write_readmes()


def _joinable() -> dict[str, Any]:
    """What was saved, where more rounds can be joined to its rows."""
    data, now = saved("speed"), provenance()
    if data is None:
        raise click.UsageError("there are no rows to join: leave out --more")
    for word in ("versions", "machine"):
        # The size of the cache is measured each time.
        then, current = ({k: v for k, v in told[word].items() if k != "cache"} for told in (data, now))
        if then != current:
            raise click.UsageError(f"the saved rows are of other {word}, {then}: leave out --more")
    if not same_since(data["commit"], "src", *_CODE):
        raise click.UsageError(f"the saved rows are of other code, commit {data['commit']}: leave out --more")
    return data


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[word] for word in ("case", "mode", "pass", "threads", "output"))


def _measured(
    planned: list[shapes.Worker], seconds: float, rounds: int, before: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of all workers, the best of all rounds and of those before, with a bar of progress."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found = {_key(row): row for row in before}
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=rounds * sum(len(worker.comparisons) for worker in planned))
        for worker in planned * rounds:
            for row in _rows(worker, seconds):
                threads = "one thread" if worker.threads == 1 else f"{worker.threads} threads"
                progress.update(task, advance=1, description=f"{row['mode']}, {threads}: {row['case']}")
                key = _key(row)
                row["rounds"] = int(bool(row["ms"]))
                found[key] = _best(found[key], row) if key in found else row
    return list(found.values())


def _best(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two rows of one comparison: the least times, and all failures; a round without a time is none."""
    if not (one["ms"] and other["ms"]):
        best = {**(other if other["ms"] else one)}
    else:
        best = {**one, **other, "rounds": one["rounds"] + other["rounds"]}
        for word, pick in (("ms", min), ("floors", min), ("GB/s", max)):
            values = one.get(word, {}), other.get(word, {})
            best[word] = {name: pick(v[name] for v in values if name in v) for name in {**values[0], **values[1]}}
    best["raises"] = {**one["raises"], **other["raises"]}
    best["disagree"] = sorted({*one["disagree"], *other["disagree"]})
    return best


def _rows(worker: shapes.Worker, seconds: float) -> Iterator[dict[str, Any]]:
    """The rows of one worker; where it dies, a row says so, and another one goes on behind.

    Of two that die without a row the second shows that there is nothing to go on with: the framework is missing.
    """
    left, barren = worker.comparisons, 0
    while left:
        before = len(left)
        told = json.dumps({**dataclasses.asdict(worker), "comparisons": left, "seconds": seconds})
        try:
            for row in stream(
                os.path.abspath(__file__), worker.framework, told, threads=worker.threads, fresh=worker.fresh
            ):
                left = left[1:]
                yield row
        except WorkerDiedError as death:
            barren = barren + 1 if len(left) == before else 0
            over = len(left) if barren > 1 else 1
            yield from (_dead(worker, comparison, str(death)) for comparison in left[:over])
            left = left[over:]


def _dead(worker: shapes.Worker, comparison: tuple[str, str, str], how: str) -> dict[str, Any]:
    name, mode, which = comparison
    about = shapes.BY_NAME[name].row(worker, mode, which)
    return {**about, "ms": {}, "kept": {}, "differences": {}, "disagree": [], "raises": {"the process": how}}


def _work(seconds: float, comparisons: list[list[str]], **worker: Any) -> None:
    """In a process of its own: a row a line."""
    warnings.simplefilter("ignore")
    if worker["threads"] == 1:
        use_one_core()
    import measure

    told = shapes.Worker(**worker, comparisons=tuple((case, mode, which) for case, mode, which in comparisons))
    for row in measure.rows(told, seconds):
        print(json.dumps(row, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(main())
