"""What every benchmark needs: where it ran, its workers, its rows on disk, its tables in the READMEs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
READMES = {"en": ROOT / "README.md", "ko": ROOT / "README.ko.md"}
BACKENDS = ("tensorflow", "jax", "torch")
_PACKAGES = ("keras", "tensorflow-cpu", "tensorflow", "jax", "torch", "triton", "flax", "numpy")


class WorkerDiedError(Exception):
    """A worker ended before its time; the message says how."""


def provenance(machine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Machine, versions, date and commit: what a number means nothing without; `machine` adds to it."""
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
        "machine": {"cpu": cpu, "cores": cores(), "cache": _cache(), "system": platform.system(), **(machine or {})},
        "versions": {"python": platform.python_version(), "anynorm": version("anynorm"), **_versions()},
    }


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _cache() -> int:
    """Bytes that this process finds in the caches: the largest pair of arrays that is copied at half the best rate.

    Measured, since what the system calls the last cache may be cut into parts, or be others' too; it is no larger.
    """
    rates = {}
    for size in (2**n * step for n in range(19, 25) for step in (4, 6)):
        pair = np.ones((2, size // 16))
        took = min(_seconds(lambda pair=pair: np.copyto(pair[1], pair[0])) for _ in range(12))
        rates[size] = size / took
    found = max(size for size, rate in rates.items() if rate >= max(rates.values()) / 2)
    return min([found, *_caches()[-1:]])


def _caches() -> list[int]:
    """Bytes of each of the first core's caches, the least first; nothing where the system does not tell."""
    units = {"K": 2**10, "M": 2**20}
    told = (file.read_text().strip() for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return sorted(int(size[:-1]) * units[size[-1]] for size in told if size[-1:] in units)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


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


def same_since(commit: str, *paths: str) -> bool:
    """Whether nothing under these paths has changed since a commit, as `provenance` names it."""
    words = ["git", "diff", "--quiet", commit, "--", *paths]
    return subprocess.run(words, cwd=ROOT, capture_output=True, check=False).returncode == 0


def stream(script: str, backend: str, *words: str, threads: int = 1, fresh: bool = False) -> Iterator[dict[str, Any]]:
    """Run `script --worker` with one Keras backend in a process of its own, and give its rows as they come.

    Args:
        threads: for every framework. One thread is also one core, whatever pools a framework makes.
        fresh: leave the allocator as it is. Otherwise freed memory stays with the process, as it does in a training
            loop: glibc gives large outputs back at once, and the page faults of the next one cost as much as the
            normalization. All threads share one arena for that: what other arenas have too much of they give back
            whatever the threshold, and TensorFlow's operations run on threads of its own.

    Raises:
        WorkerDiedError: after the rows that came.
    """
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", **dict.fromkeys(names, str(threads))}
    if not fresh:
        env |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    if threads == 1:
        env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    # The frameworks' own messages would tear a progress bar; they are shown where they explain a death.
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        command = [sys.executable, script, "--worker", *words]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            for line in process.stdout or ():
                if line.startswith("{"):
                    yield json.loads(line)
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
        if code:
            errors.seek(0)
            last = [line.strip() for line in errors if line.strip()][-1:]
            raise WorkerDiedError(f"exit code {code}{': ' if last else ''}{''.join(last)[:300]}")


def use_one_core() -> None:
    """Keep this process to one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def run_worker(script: str, backend: str, *words: str) -> list[dict[str, Any]]:
    """All rows of one worker; the benchmark ends where the worker dies."""
    try:
        return list(stream(script, backend, *words))
    except WorkerDiedError as error:
        raise SystemExit(f"{Path(script).name} failed on {backend}: {error}") from None


def save(name: str, rows: Sequence[dict[str, Any]], machine: Mapping[str, Any] | None = None) -> Path:
    """Write the rows with their provenance, whole or not at all."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps(provenance(machine), indent=1).removesuffix("\n}")
    part.write_text(f'{head},\n "rows": [\n{lines}\n]\n}}\n')
    part.replace(path)
    return path


def saved(name: str) -> dict[str, Any] | None:
    """What `save` wrote, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def put_into_readmes(marker: str, texts: str | Mapping[str, str]) -> None:
    """Replace what stands between `<!-- marker -->` and `<!-- /marker -->` in README.md and README.ko.md.

    Args:
        texts: the same for both, or one each for "en" and "ko".
    """
    for language, path in READMES.items():
        new = texts if isinstance(texts, str) else texts[language]
        text = path.read_text()
        pattern = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
        changed = re.sub(pattern, lambda m, new=new: m[1] + new + m[2], text, flags=re.DOTALL)
        if changed != text:
            path.write_text(changed)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(header), " | ".join("---" for _ in header), *(" | ".join(row) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)
