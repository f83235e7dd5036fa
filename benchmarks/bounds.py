"""What bounds the speed: each goal that is missed, and each row that misses it, with what the row's floors would reach.

    python benchmarks/bounds.py                   # from the saved rows
    python benchmarks/bounds.py --goal "layer"    # rows of the goals whose text contains this

Every float32 row on one thread has floors of its own, timed in turn with it: what a framework takes for each byte once
in its simplest operations, in torch in an autograd function written in Python and in Keras on torch in a layer around
that ("through"), loops that move the bytes of two passes ("passes") and of one ("bytes"), and anynorm's kernel on
arrays that are there already ("kernel"). "bound" is an estimate: "through" and what "passes" takes beyond "bytes". A
goal is out of reach by it in a row that would miss the goal even so; where anynorm is ahead of it, it proves nothing
and stands for anynorm's own time. "both" is the kernel and what "through" takes beyond "bytes": what is left of
anynorm's time is its own code between the framework and the kernel.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

import click
from common import saved
from goals import Goal, Outcome, Row, goals, outcomes, own, usual
from measure import OWN
from rich.console import Console
from rich.table import Table
from shapes import BY_NAME

_FLOORS = ("kernel", "through", "both", "passes", "bytes")


def floors_of(row: Row) -> dict[str, float]:
    """ms of the row's floors; "bound" and "both" are anynorm's own time where it is ahead of them."""
    floors, mine = row.get("floors"), own(row)
    if not floors or mine is None:
        return {}
    once, twice = sorted((floors["bytes"], floors["passes"]))
    estimate = max(twice, floors.get("through", 0) + twice - once)
    both = floors["kernel"] + max(0, floors.get("through", 0) - floors["bytes"])
    return {**floors, "bytes": once, "passes": twice, "bound": min(mine, estimate), "both": min(mine, both)}


def is_proven(row: Row) -> bool:
    """Whether anynorm is behind the estimate; one that it is ahead of proves nothing."""
    return floors_of(row).get("bound", math.inf) < (own(row) or 0)


def if_it_took(row: Row, floor: str) -> Row:
    """The row as if anynorm took a floor's time; as it is where it has no such floor."""
    taken = floors_of(row).get(floor)
    return row if taken is None else {**row, "ms": {**row["ms"], **{name: taken for name in OWN if name in row["ms"]}}}


def misses(goal: Goal, value: float | None) -> bool:
    return value is not None and (value > goal.number if goal.at_most else value < goal.number)


def missed(rows: Sequence[Row], cache: int) -> Iterator[tuple[Goal, Row]]:
    """Each row with floors that misses a goal."""
    for goal in goals(cache):
        for row in rows:
            if row.get("floors") and goal.about(row) and misses(goal, goal.value(row)):
                yield goal, row


# What would have to be faster for a row to reach its goal, the hardest first.
_REASONS = {
    "bytes": "the memory: each byte once is too slow",
    "passes": "the memory: two passes are too slow",
    "through": "the framework: each byte once within it is too slow",
    "bound": "the framework and a second pass together",
    "kernel": "the kernel's own work",
    "both": "the kernel and the framework together",
}


def verdict(goal: Goal, row: Row) -> str:
    """What bounds a row, in words."""
    floors, mine = floors_of(row), own(row) or 0
    for floor, reason in _REASONS.items():
        # The last one is no guess: where anynorm is ahead of it nothing is left between them.
        is_ahead = floor != "both" and floors.get(floor, math.inf) >= mine
        if not is_ahead and misses(goal, goal.value(if_it_took(row, floor))):
            return reason
    return "anynorm between framework and kernel"


def _of_goals(rows: Sequence[Row], cache: int) -> Table:
    table = Table(title="Goals: what was reached, and what would be by the floors alone", header_style="bold")
    table.add_column("goal")
    for name in ("number", "rows", "missed", "out of reach", "mean", "by estimate", "worst", "by estimate"):
        table.add_column(name, justify="right")
    bound = [if_it_took(row, "bound") for row in rows]
    for reached, possible in zip(outcomes(rows, cache), outcomes(bound, cache), strict=True):
        if reached.verdict in ("missed", "on average"):
            about = [(row, best) for row, best in zip(rows, bound, strict=True) if reached.goal.about(row)]
            counts = _counts(reached, about)
            numbers = (f"{n:.2f}" for n in (reached.mean, possible.mean, reached.worst, possible.worst))
            sign = "≤" if reached.goal.at_most else "≥"
            table.add_row(reached.goal.text, f"{sign} {reached.goal.number:g}", str(reached.count), *counts, *numbers)
    return table


def _counts(outcome: Outcome, about: Sequence[tuple[Row, Row]]) -> tuple[str, str]:
    """How many rows miss a goal, and how many of these are out of reach; a goal of a mean has no rows that miss it."""
    goal = outcome.goal
    if goal.mean or not any(floors_of(row) for row, _ in about):
        return "–", "–"
    lost = [(row, best) for row, best in about if misses(goal, goal.value(row))]
    return str(len(lost)), str(sum(is_proven(row) and misses(goal, goal.value(best)) for row, best in lost))


def _of_rows(rows: Sequence[Row], cache: int, words: str) -> Table:
    table = Table(title="Rows that miss a goal: what anynorm and each floor reach", header_style="bold", pad_edge=False)
    for name in ("goal", "case", "mode"):
        table.add_column(name)
    for name in ("number", "reached", "bound", *_FLOORS):
        table.add_column(name, justify="right")
    table.add_column("what bounds it")
    for goal, row in missed(rows, cache):
        if words in goal.text:
            scenes = [row, *(if_it_took(row, floor) for floor in ("bound", *_FLOORS))]
            numbers = (f"{goal.value(scene):.2f}" for scene in scenes)
            case = f"{BY_NAME[row['case']].size}, {row['pass']}"
            table.add_row(goal.text, case, row["mode"], f"{goal.number:g}", *numbers, verdict(goal, row))
    return table


def _of_parts(rows: Sequence[Row]) -> Table:
    """Whose the time is, as shares of anynorm's own: of the kernel, of the framework, and of what is between them."""
    table = Table(title="Parts of anynorm's time: medians of all rows", header_style="bold", pad_edge=False)
    table.add_column("mode, pass", no_wrap=True)
    for name in ("rows", "kernel", "framework", "between them", "at most", "in"):
        table.add_column(name, justify="right")
    shares: dict[str, list[tuple[float, float, float, str]]] = {}
    for row in rows:
        floors, mine = floors_of(row), own(row)
        if "through" in floors and mine is not None:
            kernel, framework = floors["kernel"] / mine, (floors["through"] - floors["bytes"]) / mine
            of_mode = shares.setdefault(f"{row['mode']}, {row['pass']}", [])
            of_mode.append((kernel, framework, 1 - kernel - framework, row["case"]))
    for name, of_mode in shares.items():
        medians = (statistics.median(part[i] for part in of_mode) for i in range(3))
        _, _, most, case = max(of_mode, key=lambda part: part[2])
        table.add_row(name, str(len(of_mode)), *(f"{share:.2f}" for share in (*medians, most)), case)
    return table


def _of_threads(rows: Sequence[Row]) -> Table:
    """The rows of several threads whose array is copied on one thread too."""
    table = Table(title="All threads over one: times faster", header_style="bold", pad_edge=False)
    for name in ("case", "mode, pass"):
        table.add_column(name, no_wrap=True)
    for name in ("anynorm", "a copy of the tensor"):
        table.add_column(name, justify="right")
    words = ("case", "mode", "pass")
    copied = {tuple(r[w] for w in words): r["ms"]["copy"] for r in rows if usual(r) and "copy" in r["ms"]}
    gains = []
    for row in rows:
        one = copied.get(tuple(row[w] for w in words))
        if "scaling" in row and one is not None:
            gains.append((row["scaling"], one / row["ms"]["copy"]))
            table.add_row(row["case"], f"{row['mode']}, {row['pass']}", *(f"{gain:.2f}" for gain in gains[-1]))
    if gains:
        means = (statistics.geometric_mean(column) for column in zip(*gains, strict=True))
        table.add_row("geometric mean", "", *(f"{mean:.2f}" for mean in means), style="bold")
    return table


@click.command(help=__doc__)
@click.option("--goal", "words", default="", help="Only the rows of goals with these words.")
def main(words: str) -> None:
    data = saved("speed")
    if data is None:
        raise click.UsageError("there are no rows yet: make bench")
    rows, cache = data["rows"], data["machine"]["cache"]
    console = Console(width=max(200, Console().width))
    console.print(_of_goals(rows, cache))
    with_floors = [row for row in rows if floors_of(row)]
    ahead = sum(not is_proven(row) for row in with_floors)
    console.print(f"{ahead} of {len(with_floors)} rows are ahead of their estimate\n")
    console.print(_of_rows(rows, cache, words))
    console.print(_of_parts(with_floors))
    console.print(_of_threads(rows))


if __name__ == "__main__":
    main()
