"""The GPU benchmark where there is no GPU: it says so, and its code runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured():
    done = run()
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr


def test_a_rehearsal():
    done = run("--rehearse", "--json", "--goal", "add +")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["case"] for row in rows] == ["layer, last axis 4×32 bfloat16", "RMS, last axis 4×32 bfloat16"]
    for row in rows:
        assert row["differences"]["torch"] < 0.02
        assert {"anynorm", "anynorm, apart"} <= set(row["ms"])
        assert not row["raises"]
        assert not row["disagree"]


def test_a_goal_in_time_is_judged(monkeypatch):
    """The pair of group normalization and SiLU, in 260 µs at most."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    goal = next(goal for goal in importlib.import_module("gpu_cases").GOALS if goal.around == "silu")
    assert goal.cases[0].shape == (1, 128, 20, 256, 256)
    for ms, ahead, met in ((0.26, 15.0, True), (0.261, 15.0, False), (0.2, 14.0, False), (0.2, None, True)):
        assert goal.is_met({"ms": {"anynorm": ms}, "share": 0.1, "ahead": ahead}) == met
    done = run("--rehearse", "--json", "--goal", goal.text)
    (row,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert row["met"] in (True, False)
    assert not row["disagree"]


# The table: of the copy's rate with how many passes, and how far ahead of torch.
TABLE = {
    "layer, RMS forward, rows of 1K to 32K": (2, 0.95, 1.3),
    "layer, RMS forward, rows of 256": (2, 0.65, 1.3),
    "layer, RMS forward, rows of 64K and more": (2, 0.80, 1.3),
    "layer, RMS backward, rows of 1K to 8K": (3, 0.80, 1.6),
    "group NCHW forward, few groups": (3, 0.90, 8),
    "group NCHW forward, groups up to 100 KB": (2, 0.85, 3),
    "group NHWC forward": (3, 0.85, 3),
    "group NHWC backward": (5, 0.75, 3),
    "instance NHWC forward": (3, 0.85, 3),
    "instance NHWC backward": (5, 0.75, 3),
    "instance NCHW forward, groups up to 100 KB": (2, 0.85, 3),
    "instance NCHW forward, larger groups": (3, 0.90, 3),
    "group + SiLU, 260 µs at most": (3, None, 15),
    "add + RMS, add + layer": (4, 0.90, 2.5),
    "1 MB and less, time of a call": (5, None, 1 / 1.2),
}


def test_every_array_is_of_the_size_that_its_goal_is_for(monkeypatch):
    """Groups beyond 100 KB are read twice, and so they are in what they are compared with."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    goals = importlib.import_module("gpu_cases").GOALS
    assert {goal.text: (goal.passes, goal.share, goal.ahead) for goal in goals} == TABLE
    for goal in goals:
        assert goal.wall == goal.text.startswith("1 MB")
        for case in goal.cases:
            assert case.nbytes <= 2**20 if goal.wall else case.nbytes >= 64e6, case.name
            groups, row, text = case.plan.groups, case.shape[-1], goal.text
            if "NCHW forward" in text:
                assert (case.nbytes / groups <= 100 * 1024) == (goal.passes == 2), case.name
            if "few groups" in text:
                assert groups <= 64, case.name
            assert "1K to 32K" not in text or 2**10 <= row <= 2**15, case.name
            assert "1K to 8K" not in text or 2**10 <= row <= 2**13, case.name
            assert "rows of 256" not in text or row == 256, case.name
            assert "64K and more" not in text or row >= 2**16, case.name
