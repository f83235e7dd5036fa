"""What the CPU kernels cost in instructions for each element, which unlike time is the same on a busy machine.

    python benchmarks/instructions.py

counts with valgrind, on AVX2 since valgrind does not know AVX-512, and writes results/instructions.json.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path

import click
from common import ROOT, save

KERNELS = ROOT / "src/anynorm/kernels/cpu"
BOTH, SCALE = 3, 2  # ANYNORM_REMOVES_*


@dataclass(frozen=True)
class Shape:
    name: str
    runs: str  # a letter each: k kept, r reduced, K and R with scale and offset
    extents: tuple[int, ...]
    removes: int = BOTH


SHAPES = (
    Shape("layer norm 256x768", "kR", (256, 768)),
    Shape("layer norm 1024x64", "kR", (1024, 64)),
    Shape("RMS norm 256x768", "kR", (256, 768), SCALE),
    Shape("group norm 4x56x56x64, channels last, 32 groups", "krKR", (4, 56 * 56, 32, 2)),
    Shape("group norm 32x26x26x10, channels last, 5 groups", "krKR", (32, 26 * 26, 5, 2)),
    Shape("group norm 8x1280x8x8, channels first, 32 groups", "kKRr", (8, 32, 40, 64)),
    Shape("group norm 32x512x7x7, channels first, 32 groups", "kKRr", (32, 32, 16, 49)),
    Shape("instance norm 4x32x64x64, channels first", "kKr", (4, 32, 64 * 64)),
    Shape("layer norm over the channels of 4x64x56x56", "kRk", (4, 64, 56 * 56)),
    Shape("layer norm over the channels of 32x512x7x7", "kRk", (32, 512, 7 * 7)),
    Shape("layer norm of the tutorial, 32x26x26x10", "kRk", (32, 26, 26 * 10)),
)


def build(folder: str) -> Path:
    program = Path(folder) / "instructions"
    link = [f"-L{KERNELS}", "-lanynorm_cpu", f"-Wl,-rpath,{KERNELS}"]
    source = ROOT / "benchmarks/instructions.cpp"
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++17", "-O1", f"-I{KERNELS}", source, "-o", program, *link], check=True)
    return program


def count(program: Path, direction: str, repeats: int, shape: Shape) -> int:
    bits = [sum(1 << i for i, run in enumerate(shape.runs) if run in which) for which in ("rR", "KR")]
    words = [direction, repeats, shape.removes, *bits, *shape.extents]
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program]
    done = subprocess.run([*valgrind, *map(str, words)], stderr=subprocess.PIPE, text=True, check=False)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not collected:
        raise SystemExit(done.stderr)
    return int(collected[1])


@click.command(help=__doc__)
def main() -> None:
    rows = []
    version = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        for shape in SHAPES:
            row: dict[str, str | float] = {"name": shape.name, "isa": "avx2", "dtype": "float32", "counter": version}
            for direction in ("forward", "backward"):
                one, two = (count(program, direction, repeats, shape) for repeats in (1, 2))
                row[direction] = round((two - one) / prod(shape.extents), 3)
            rows.append(row)
            print(f"{shape.name:<48} {row['forward']:6.2f} forward {row['backward']:6.2f} backward")
    print(save("instructions", rows))


if __name__ == "__main__":
    main()
