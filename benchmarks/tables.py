"""The rows as people read them: tables in the terminal, and the READMEs' part, which no hand writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chart
from common import ROOT, markdown, put_into_readmes, saved
from goals import MODES, Outcome, Row, copies, headline, outcomes, own, peers, ratio, usual
from rich.console import Console
from rich.table import Table
from shapes import BACKWARD, BOTH, CASES, FORWARD

CHART = ROOT / "docs" / "speed.png"
_SHORT = {FORWARD: "fwd", BACKWARD: "bwd", BOTH: "both"}
_COLUMNS = (
    *((mode, which) for mode in ("TensorFlow graph", "TensorFlow XLA", "JAX jit") for which in (FORWARD, BOTH)),
    *(("torch", which) for which in (FORWARD, BACKWARD, BOTH)),
    ("Keras/torch", BOTH),
)
_VERDICTS = {"reached": "green", "on average": "yellow", "missed": "red", "not measured": "dim"}


def show(console: Console, rows: Sequence[Row], cache: int, goals: bool) -> None:
    """Everything that a run found."""
    console.print(_by_case(rows))
    rest = [r for r in rows if (r["mode"], r["pass"]) not in _COLUMNS or not usual(r)]
    if rest:
        console.print(_others(rest))
    for line in _troubles(rows):
        console.print(line, highlight=False, markup=False)
    if goals:
        console.print(_of_goals(outcomes(rows, cache)))


def _cell(row: Row | None) -> str:
    """The ratio, red where a peer is faster."""
    if row is None:
        return ""
    value = ratio(row)
    if value is None:
        return "–"
    text = f"{value:.1f}" if value < 99.5 else f"{value:.0f}"
    return f"[red]{value:.2f}[/red]" if value < 1 else text


def _by_case(rows: Sequence[Row]) -> Table:
    title = "Times faster than the best peer, one thread; on torch in copies of the tensor, and what is kept"
    table = Table(title=title, header_style="bold", pad_edge=False)
    table.add_column("case", no_wrap=True)
    measured = {(row["mode"], row["pass"]) for row in rows}
    columns = [column for column in _COLUMNS if column in measured]
    for mode, which in columns:
        table.add_column(f"{mode.replace('TensorFlow ', 'TF ')}\n{_SHORT[which]}", justify="right")
    for name in ("copies\nboth", "keeps\ntensors", "torch\nkeeps", "GB/s\nboth", "ms\nboth"):
        table.add_column(name, justify="right", style="dim")
    for case in CASES:
        mine = {(r["mode"], r["pass"]): r for r in rows if r["case"] == case.name and usual(r)}
        if not mine:
            continue
        both = mine.get(("torch", BOTH))
        table.add_row(case.name, *(_cell(mine.get(column)) for column in columns), *_details(both))
    return table


def _details(row: Row | None) -> list[str]:
    if row is None or own(row) is None:
        return [""] * 5
    kept = row["kept"]
    return [
        f"{copies(row):.1f}",
        *(f"{kept[name]:.2f}" if isinstance(kept.get(name), float) else "–" for name in ("anynorm", "torch")),
        f"{row['GB/s']['anynorm']:.1f}",
        f"{own(row):.3g}",
    ]


def _others(rows: Sequence[Row]) -> Table:
    table = Table(title="Other modes, all threads, and fresh outputs", header_style="bold", pad_edge=False)
    for name in ("case", "mode", "pass", "threads", "output"):
        table.add_column(name, no_wrap=name == "case")
    for name in ("ms", "best peer's", "times faster", "over one thread"):
        table.add_column(name, justify="right")
    for row in rows:
        theirs, mine = peers(row), own(row)
        table.add_row(
            row["case"], row["mode"], row["pass"], str(row["threads"]), row["output"],
            "–" if mine is None else f"{mine:.3g}",
            f"{min(theirs.values()):.3g}" if theirs else "–",
            _cell(row),
            f"{row['scaling']:.2f}" if row.get("scaling") else "",
        )  # fmt: skip
    return table


def _troubles(rows: Sequence[Row]) -> list[str]:
    """Peers that fail, each reason once with the cases it is about, and peers that compute something else."""
    raised: dict[str, dict[str, None]] = {}
    found = []
    for row in rows:
        for name, why in row["raises"].items():
            raised.setdefault(f"{row['mode']}: {name} raises {why}", {})[row["case"]] = None
        for name in row["disagree"]:
            where = f"{row['mode']}: {name}'s {row['pass']}"
            found.append(f"{where} differs from anynorm's by {row['differences'][name]:.1e} in {row['case']}")
    return [f"{what}: {'; '.join(cases)}" for what, cases in raised.items()] + found


def _of_goals(made: Sequence[Outcome]) -> Table:
    table = Table(title="Goals: times faster, or as said; forward + backward, one thread, or as said")
    for name in ("goal", "number", "mean", "worst", "", "worst case", "rows"):
        table.add_column(name, justify="right" if name in ("number", "mean", "worst", "rows") else "left")
    for outcome in made:
        colour = _VERDICTS[outcome.verdict]
        numbers = ["" if n is None else f"{n:.2f}" for n in (outcome.mean, outcome.worst)]
        sign = "≤" if outcome.goal.at_most else "≥"
        verdict = f"[{colour}]{outcome.verdict}[/{colour}]"
        goal = outcome.goal
        table.add_row(goal.text, f"{sign} {goal.number:g}", *numbers, verdict, outcome.case, str(outcome.count))
    reached = sum(outcome.verdict == "reached" for outcome in made)
    table.caption = f"{reached} of {len(made)} reached; on average: by the geometric mean, but not in every row"
    return table


def write_readmes() -> None:
    """Draw the chart and write the part of both READMEs, from what was saved."""
    data = saved("speed")
    if data is None:
        raise SystemExit("there are no rows yet: make bench")
    chart.draw(data, CHART)
    put_into_readmes("speed", {language: _page(data, saved("fit"), language) for language in ("en", "ko")})


_WORDS = {
    "en": {
        "chart": "Times faster than the best peer, for each case and framework",
        "header": ("normalization", "array", *MODES, "copies"),
        "where": "{cpu}, one of {cores} cores, {system}, {date}, commit {commit}; {versions}.",
        "mean": "Geometric means over all float32 cases above 2,000 elements: {means}. All rows: "
        "[benchmarks/results/speed.json](benchmarks/results/speed.json).",
        "fit": ("a training step of the tutorial's model", "without", "with anynorm's", "with Keras's", "adds"),
        "adds": "{ours:+.2f} ms, Keras's {theirs:+.2f} ms",
        "norms": {"group": "group", "instance": "instance", "layer": "layer", "batch": "batch"},
    },
    "ko": {
        "chart": "경우와 프레임워크마다, 가장 빠른 상대보다 몇 배 빠른지",
        "header": ("정규화", "배열", *MODES, "복사"),
        "where": "{cpu}, {cores}코어 중 하나, {system}, {date}, 커밋 {commit}; {versions}.",
        "mean": "원소가 2,000개를 넘는 모든 float32 경우의 기하평균은 {means}입니다. 모든 측정값: "
        "[benchmarks/results/speed.json](benchmarks/results/speed.json).",
        "fit": ("튜토리얼 모델의 학습 한 스텝", "정규화 없이", "anynorm", "Keras", "정규화가 더하는 시간"),
        "adds": "{ours:+.2f} ms, Keras는 {theirs:+.2f} ms",
        "norms": {"group": "그룹", "instance": "인스턴스", "layer": "레이어", "batch": "배치"},
    },
}


def _page(data: dict[str, Any], fit: dict[str, Any] | None, language: str) -> str:
    words, rows = _WORDS[language], data["rows"]
    lines = []
    for case in (c for c in CASES if c.telling):
        torch = next(
            (r for r in rows if r["case"] == case.name and r["mode"] == "torch" and r["pass"] == BOTH and usual(r)),
            None,
        )
        title = case.family.name if language == "en" else case.family.korean
        values = [_times(headline(rows, case, framework)) for framework in MODES]
        in_copies = None if torch is None else copies(torch)
        lines.append([title, case.size, *values, "–" if in_copies is None else f"{in_copies:.1f}"])
    means = {o.goal.text: o for o in outcomes(rows, data["machine"]["cache"]) if o.goal.mean}
    named = ", ".join(f"{_frameworks(text)} {o.mean:.1f}×" for text, o in means.items() if o.mean is not None)
    parts = [
        f"![{words['chart']}](docs/speed.png)\n",
        markdown(words["header"], lines),
        words["mean"].format(means=named) + "\n",
    ]
    if fit is not None:
        parts.append(markdown(words["fit"], _fit_lines(fit["rows"], words)))
    # Both where they were measured apart.
    places = dict.fromkeys(_where(measured, words) + "\n" for measured in (data, fit) if measured is not None)
    return "\n".join([*parts, *places])


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}×" if value < 9.95 else f"{value:.0f}×"


def _frameworks(text: str) -> str:
    return text.removeprefix("geometric mean on ").split(",")[0].replace(" and ", "/")


def _fit_lines(rows: Sequence[Row], words: dict[str, Any]) -> list[list[str]]:
    lines = []
    for row in rows:
        ms = row["ms"]
        adds = words["adds"].format(ours=ms["anynorm"] - ms["none"], theirs=ms["Keras"] - ms["none"])
        title = f"{words['norms'][row['norm']]}, {row['framework']}"
        lines.append([title, *(f"{ms[name]:.2f} ms" for name in ("none", "anynorm", "Keras")), adds])
    return lines


def _where(data: dict[str, Any], words: dict[str, Any]) -> str:
    names = {
        "tensorflow-cpu": "TensorFlow",
        "tensorflow": "TensorFlow",
        "jax": "JAX",
        "keras": "Keras",
        "flax": "Flax",
        "numpy": "NumPy",
    }
    kept = {names.get(name, name): v for name, v in data["versions"].items() if name not in ("python", "anynorm")}
    versions = ", ".join(f"{name} {version.split('+')[0]}" for name, version in kept.items())
    return words["where"].format(**data["machine"], date=data["date"], commit=data["commit"], versions=versions)
