"""What every benchmark needs: where it ran, its rows on disk, its tables in the terminal and in the README."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BACKENDS = ("tensorflow", "jax", "torch")
_PACKAGES = ("keras", "tensorflow-cpu", "tensorflow", "jax", "torch", "flax", "numpy")


def provenance() -> dict[str, Any]:
    """Machine, versions, date and commit: what a number means nothing without."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        model = re.search(r"model name\s*: (.*)", text)
        flags = [f for f in ("avx2", "avx512f", "amx_tile") if re.search(rf"\b{f}\b", text)]
        cpu = f"{model[1] if model else cpu} ({', '.join(flags)})"
    commit = _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "src") else "")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), "anynorm": version("anynorm"), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def run_worker(script: str, backend: str, *words: str, threads: int = 1) -> list[dict[str, Any]]:
    """Run `script --worker` with one Keras backend in a process of its own, and read its rows."""
    single = {name: str(threads) for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")}
    # Freed memory stays with the process, as it does in a training loop. Without this, glibc gives back every large
    # output at once, and the page faults of the next one cost as much as the normalization.
    kept = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", **single, **kept}
    if threads == 1:
        env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    done = subprocess.run(
        [sys.executable, script, "--worker", *words], env=env, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{Path(script).name} failed on {backend} with exit code {done.returncode}")
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def save(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Write the rows with their provenance, whole or not at all."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**provenance(), "rows": list(rows)}, indent=1) + "\n")
    part.replace(path)
    return path


def put_into_readmes(marker: str, table: str) -> None:
    """Replace what stands between `<!-- marker -->` and `<!-- /marker -->` in README.md and README.ko.md."""
    for path in (ROOT / "README.md", ROOT / "README.ko.md"):
        text = path.read_text()
        new = re.sub(
            rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", lambda m: m[1] + table + m[2], text, flags=re.DOTALL
        )
        if new != text:
            path.write_text(new)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(header), " | ".join("---" for _ in header), *(" | ".join(row) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)
