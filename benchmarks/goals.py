"""What the rows say: ratios to the best peer, their means, and the goals with what was reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from measure import OWN
from shapes import BACKWARD, BOTH, BY_NAME, FORWARD, Case

Row = dict[str, Any]
# The modes in which a framework is used; eager Keras and torch.compile are slower, and would only flatter.
MODES = {
    "TensorFlow": ("TensorFlow graph", "TensorFlow XLA"),
    "JAX": ("JAX jit",),
    "torch": ("torch",),
}
_USED = tuple(mode for modes in MODES.values() for mode in modes)
_KERAS = ("TensorFlow graph", "TensorFlow XLA", "JAX jit", "Keras/torch")


def case_of(row: Row) -> Case:
    return BY_NAME[row["case"]]


def own(row: Row, peer: str = "") -> float | None:
    """ms of anynorm in the peer's place: its layer beside Keras's, `anynorm.normalize` beside functions."""
    ms = row.get("ms", {})
    names = OWN[::-1] if peer == "Keras" else OWN
    return next((ms[name] for name in names if name in ms), None)


def peers(row: Row) -> dict[str, float]:
    """ms of all that is not anynorm."""
    return {name: ms for name, ms in row.get("ms", {}).items() if name not in (*OWN, "copy")}


def ratio(row: Row, peer: str | None = None) -> float | None:
    """How many times the peer's time is anynorm's; of the peer that leaves the least, without a name."""
    found = [
        ms / mine for name, ms in peers(row).items() if peer in (None, name) and (mine := own(row, name)) is not None
    ]
    return min(found, default=None)


def copies(row: Row) -> float | None:
    """anynorm's time in copies of the tensor."""
    mine = own(row)
    return None if mine is None else mine / row["ms"]["copy"]


def usual(row: Row) -> bool:
    """One thread and outputs in memory that was in use before."""
    return row["threads"] == 1 and row["output"] == "reused"


def headline(rows: Iterable[Row], case: Case, framework: str, which: str = BOTH) -> float | None:
    """The best peer in the framework's best mode over anynorm in its best: how it looks to who may choose."""
    found = [
        r for r in rows if r["case"] == case.name and r["mode"] in MODES[framework] and r["pass"] == which and usual(r)
    ]
    theirs = [ms for row in found for ms in peers(row).values()]
    ours = [ms for row in found for name, ms in row.get("ms", {}).items() if name in OWN]
    return min(theirs) / min(ours) if theirs and ours else None


@dataclass(frozen=True)
class Goal:
    """A number to reach, in every row it is about.

    Attributes:
        at_least: the number; `at_most` turns it round.
        value: of a row; None where the row has none.
        about: whether a row counts.
        mean: the geometric mean has to reach it, not each row.
    """

    text: str
    number: float
    value: Callable[[Row], float | None]
    about: Callable[[Row], bool]
    at_most: bool = False
    mean: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a goal: the mean and the worst of the rows' values, and which row that is; None without a row."""

    goal: Goal
    mean: float | None
    worst: float | None
    case: str
    count: int

    @property
    def verdict(self) -> str:
        if self.mean is None or self.worst is None:
            return "not measured"
        reached = [value <= self.goal.number if self.goal.at_most else value >= self.goal.number
                   for value in (self.worst, self.mean)]  # fmt: skip
        if self.goal.mean:
            return "reached" if reached[1] else "missed"
        return "reached" if reached[0] else "on average" if reached[1] else "missed"


def _goal(
    text: str, number: float, family: str, which: str, modes: str | Sequence[str], peer: str | None, positions: int = 0
) -> Goal:
    """Times faster than a peer, in float32 and above the small cases."""
    names = (modes,) if isinstance(modes, str) else modes
    return Goal(
        text,
        number,
        lambda row: ratio(row, peer),
        lambda row: (
            usual(row)
            and case_of(row).family.name == family
            and row["pass"] == which
            and row["mode"] in names
            and row["dtype"] == "float32"
            and not case_of(row).small
            and case_of(row).positions >= positions
        ),
    )


def _in_copies(row: Row, in_cache: bool, cache: int) -> bool:
    """Whether a row's x, y, dy and dx all fit the cache, or not even a tensor and its copy do."""
    case = case_of(row)
    both = (
        usual(row) and row["mode"] == "torch" and row["pass"] == BOTH and not case.small and row["dtype"] == "float32"
    )
    return both and (4 * case.nbytes <= cache if in_cache else 2 * case.nbytes > cache)


def goals(cache: int) -> list[Goal]:
    """All goals; `cache` is the size of the largest cache in bytes."""
    gn, gn1, norm1 = "group, NHWC", "group, NCHW", "instance, NCHW"
    graph, xla, jit = "TensorFlow graph", "TensorFlow XLA", "JAX jit"
    layer, over, rms = "layer, last axis", "layer, channels of NCHW", "RMS, last axis"
    every = lambda row: usual(row) and not case_of(row).small  # noqa: E731
    return [
        _goal("group NHWC, 1,024 pixels and more: Keras/TensorFlow graph", 10, gn, BOTH, graph, "Keras", 1024),
        _goal("group NHWC, 1,024 pixels and more: Keras/TensorFlow XLA", 5, gn, BOTH, xla, "Keras", 1024),
        _goal("group NHWC, 1,024 pixels and more: Keras/JAX", 8, gn, BOTH, jit, "Keras", 1024),
        _goal("group NHWC, 1,024 pixels and more: torch", 5, gn, BOTH, "torch", "torch", 1024),
        Goal(
            "group NHWC, the tutorial's 32×26×26×10: best peer", 3, ratio,
            lambda r: usual(r) and r["mode"] in _USED and r["pass"] == BOTH and r["case"].endswith("26×26×10 g5"),
        ),
        _goal("group NCHW forward: torch", 1.4, gn1, FORWARD, "torch", "torch"),
        _goal("group NCHW backward: torch", 1.2, gn1, BACKWARD, "torch", "torch"),
        _goal("instance NHWC: Keras on every backend", 6, "instance, NHWC", BOTH, _KERAS, "Keras"),
        _goal("instance NHWC: F.instance_norm", 10, "instance, NHWC", BOTH, "torch", "torch"),
        _goal("instance NCHW forward: F.instance_norm", 5, norm1, FORWARD, "torch", "torch"),
        _goal("instance NCHW forward: F.group_norm(G=C)", 1.3, norm1, FORWARD, "torch", "F.group_norm(G=C)"),
        _goal("layer forward: torch", 1.3, layer, FORWARD, "torch", "torch"),
        _goal("layer backward: torch", 1.5, layer, BACKWARD, "torch", "torch"),
        _goal("layer: Keras/TensorFlow graph", 6, layer, BOTH, graph, "Keras"),
        _goal("layer: Keras/TensorFlow XLA", 3, layer, BOTH, xla, "Keras"),
        _goal("layer: Keras/JAX", 6, layer, BOTH, jit, "Keras"),
        Goal(
            "layer forward, bfloat16: torch", 1.6, ratio,
            lambda r: usual(r) and r["mode"] == "torch" and r["pass"] == FORWARD and r["dtype"] == "bfloat16",
        ),
        _goal("layer, channels of NCHW, forward: torch", 2, over, FORWARD, "torch", "torch"),
        _goal("layer, channels of NCHW, backward: torch", 3, over, BACKWARD, "torch", "torch"),
        _goal("RMS forward: torch", 2.5, rms, FORWARD, "torch", "torch"),
        _goal("RMS backward: torch", 3, rms, BACKWARD, "torch", "torch"),
        _goal("batch NHWC: torch", 1.5, "batch, NHWC", BOTH, "torch", "torch"),
        _goal("batch NCHW: torch", 1.5, "batch, NCHW", BOTH, "torch", "torch"),
        _goal("batch NHWC: Keras on every backend", 2, "batch, NHWC", BOTH, _KERAS, "Keras"),
        _goal("batch NCHW: Keras on every backend", 2, "batch, NCHW", BOTH, _KERAS, "Keras"),
        Goal(
            "2,000 elements and fewer, torch eager: in its times", 3, lambda r: own(r) / min(peers(r).values()),
            lambda r: usual(r) and r["mode"] == "torch" and case_of(r).small and ratio(r) is not None, at_most=True,
        ),
        Goal(
            "beyond the cache: in copies", 4, copies, lambda r: _in_copies(r, False, cache), at_most=True,
        ),
        Goal(
            "within the cache: in copies", 7, copies, lambda r: _in_copies(r, True, cache), at_most=True,
        ),
        Goal(
            "above 2,000 elements, each pass: best peer", 1, ratio,
            lambda r: every(r) and r["mode"] in (*_USED, "Keras/torch"),
        ),
        Goal(
            "1 MiB and more: threads over one", 1.6, lambda r: r.get("scaling"),
            lambda r: r["threads"] > 1,
        ),
    ]  # fmt: skip


def outcomes(rows: Sequence[Row], cache: int) -> list[Outcome]:
    made = [_outcome(goal, [(goal.value(r), _named(r)) for r in rows if goal.about(r)]) for goal in goals(cache)]
    cases = [case for case in BY_NAME.values() if not case.small and case.dtype == "float32"]
    for frameworks, number in ((("TensorFlow", "JAX"), 5), (("torch",), 3)):
        text = f"geometric mean on {' and '.join(frameworks)}, float32: best peer"
        goal = Goal(text, number, ratio, usual, mean=True)
        values = [(headline(rows, case, f), f"{case.name}, {f}") for case in cases for f in frameworks]
        made.append(_outcome(goal, values))
    return made


def _outcome(goal: Goal, values: Iterable[tuple[float | None, str]]) -> Outcome:
    found = [(value, name) for value, name in values if value is not None]
    if not found:
        return Outcome(goal, None, None, "", 0)
    worst, name = (max if goal.at_most else min)(found)
    return Outcome(goal, statistics.geometric_mean(value for value, _ in found), worst, name, len(found))


def _named(row: Row) -> str:
    return f"{row['case']}, {row['mode']}, {row['pass']}"


def with_scaling(rows: Sequence[Row]) -> list[Row]:
    """The rows of several threads with how many times faster they are than anynorm's own on one."""
    ones = {_named(row): own(row) for row in rows if usual(row)}
    out = []
    for row in rows:
        one, many = ones.get(_named(row)), own(row)
        out.append({**row, "scaling": one / many} if row["threads"] > 1 and one and many else row)
    return out
