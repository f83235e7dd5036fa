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
