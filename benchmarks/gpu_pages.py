"""The GPU benchmark's table, chart and README part; where nothing was measured they say so."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ROOT, markdown, put_into_readmes, saved
from gpu_cases import GOALS, Goal
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from anynorm.figures.save import save as save_figure

CHART = ROOT / "docs" / "gpu.png"
Row = dict[str, Any]

# Sentences, which no formatter breaks.
# ruff: noqa: E501
_WORDS = {
    "en": {
        "none": "For NVIDIA GPUs there are kernels in Triton for torch (`ANYNORM_KERNEL=triton`) and in Pallas for JAX "
        "(`ANYNORM_KERNEL=pallas`). They are tested in interpreters and compiled, and have not run on a GPU yet: so they "
        "serve only where they are asked for, and their speed is not measured. Those in Triton compute `activation`, "
        "`residual` and `modulation` along with the norm, in the same launches, forward and backward. `make gpu` tests "
        "and measures them.\n",
        "header": ("on a GPU", "of the copy's rate", "goal", "times torch's speed", "goal"),
        "chart": "Share of the copy's rate and times faster than torch on a GPU, for each goal",
        "where": "{gpu}, {date}, commit {commit}; torch {torch}. All rows: "
        "[benchmarks/results/gpu.json](benchmarks/results/gpu.json).\n",
    },
    "ko": {
        "none": "NVIDIA GPU용 커널은 torch에는 Triton(`ANYNORM_KERNEL=triton`), JAX에는 Pallas(`ANYNORM_KERNEL=pallas`)로 "
        "있습니다. 인터프리터로 시험하고 컴파일도 했지만 아직 GPU에서 실행해 보지 않았습니다. 그래서 요청할 때만 쓰이며, 속도도 "
        "측정하지 않았습니다. Triton 커널은 `activation`, `residual`, `modulation`까지 정규화와 한 번에, 순전파와 역전파 모두 "
        "같은 실행 안에서 계산합니다. `make gpu`로 시험하고 측정합니다.\n",
        "header": ("GPU에서", "복사 속도에 대한 비율", "목표", "torch보다 빠른 정도", "목표"),
        "chart": "목표마다 GPU에서 복사 속도에 대한 비율과 torch보다 몇 배 빠른지",
        "where": "{gpu}, {date}, 커밋 {commit}; torch {torch}. 모든 측정값: "
        "[benchmarks/results/gpu.json](benchmarks/results/gpu.json).\n",
    },
}


def show(console: Console, rows: Sequence[Row]) -> None:
    """A table of all rows, and below it how contenders failed or differ."""
    made = Table(title="Least ms; the share is of the copy's rate", header_style="bold", pad_edge=False)
    names = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    made.add_column("array", no_wrap=True)
    made.add_column("kernel")
    for name in ("share", "goal", "× torch", "goal", "met", *(name.replace(", ", "\n") for name in names)):
        made.add_column(name, justify="right")
    for goal in GOALS:
        mine = [row for row in rows if row["goal"] == goal.text]
        if mine:
            made.add_row(f"[bold]{goal.text}[/bold]")
        for row in mine:
            ms = (f"{row['ms'][name]:.3f}" if name in row["ms"] else "–" for name in names)
            made.add_row(f"  {row['case']}", row["kernel"], *_numbers(goal, [row]), "yes" if row["met"] else "no", *ms)
    console.print(made)
    failed: dict[str, dict[str, None]] = {}
    for row in rows:
        for name in row["disagree"]:
            failed.setdefault(f"{name} differs from anynorm", {})[f"{row['case']}, {row['pass']}"] = None
        for name, why in row["raises"].items():
            failed.setdefault(f"{name} raises {why}", {})[f"{row['case']}, {row['pass']}"] = None
    for what, cases in failed.items():
        console.print(f"{what}: {'; '.join(cases)}", style="dim", highlight=False, markup=False)


def _numbers(goal: Goal, rows: Sequence[Row]) -> list[str]:
    """The least share (the longest time, where that has the goal) and the least ratio of some rows, each with its goal."""
    ahead = [row["ahead"] for row in rows if row["ahead"] is not None]
    first = [f"{min(row['share'] for row in rows):.2f}", "" if goal.share is None else f"{goal.share:.2f}"]
    if goal.most is not None:
        first = [f"{max(row['ms']['anynorm'] for row in rows):.3f} ms", f"{goal.most:.3f} ms"]
    return [
        *first,
        f"{min(ahead):.2f}" if ahead else "–",
        f"{goal.ahead:.2f}",
    ]


def page() -> None:
    """The part of both READMEs, and the chart where there is something to draw."""
    data = saved("gpu")
    if data is not None:
        _draw(data["rows"], CHART)
    put_into_readmes("gpu", {language: _part(data, words) for language, words in _WORDS.items()})


def _part(data: dict[str, Any] | None, words: dict[str, Any]) -> str:
    if data is None:
        return str(words["none"])
    lines = [[goal.text, *_numbers(goal, rows)] for goal in GOALS if (rows := _of(goal, data["rows"]))]
    where = {**data["machine"], "date": data["date"], "commit": data["commit"], "torch": data["versions"]["torch"]}
    chart = f"![{words['chart']}](docs/gpu.png)\n"
    return "\n".join([chart, markdown(words["header"], lines), words["where"].format(**where)])


def _of(goal: Goal, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["goal"] == goal.text]


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Two bars a goal: the share of the copy's rate, and the speed beside torch's, each with a tick at its goal."""
    goals = [goal for goal in GOALS if _of(goal, rows)]
    figure = Figure(figsize=(8, 0.9 + 0.34 * len(goals)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, title, value, wanted in (
        (left, "of the copy's rate", lambda row: row["share"], lambda goal: goal.share),
        (right, "times torch's speed", lambda row: row["ahead"] or 0, lambda goal: goal.ahead),
    ):
        means = [statistics.geometric_mean(max(1e-6, value(row)) for row in _of(goal, rows)) for goal in goals]
        axes.barh(range(len(goals)), means, color="#2a68ad", height=0.6)
        for y, goal in enumerate(goals):
            if wanted(goal) is not None:
                axes.plot([wanted(goal)] * 2, [y - 0.4, y + 0.4], color="#d9822b", linewidth=2)
        axes.set_title(title, fontsize=10, weight="bold")
        axes.spines[["top", "right"]].set_visible(False)
    right.set_xscale("log")
    left.set_yticks(range(len(goals)), [goal.text for goal in goals], fontsize=8.5)
    left.invert_yaxis()
    save_figure(figure, path)
