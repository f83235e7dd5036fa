"""`anynorm doctor`."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from .common import DISTRIBUTIONS, installed, lengths, reported

if TYPE_CHECKING:
    from rich.console import Console

    from ..plan import Plan

_ARRAYS = ("numpy", "torch", "jax", "tensorflow")
# How the frameworks that ctypes cannot serve reach the CPU kernels, and what to do where a door is missing.
_DOORS = {
    "jax": "no door for jax: reinstall anynorm where jaxlib, whose headers it needs, can be had",
    "tensorflow": "no door for tensorflow: reinstall anynorm",
}
_LEGEND = "runs, outermost first: [shared by a statistic], * carries scale and offset"


@click.command()
@click.option("--pattern", default="n [...] (g [c]) g=32", show_default=True, help="A sentence or a norm's name.")
@click.option("--size", multiple=True, metavar="g=32", help="Length of an axis in parentheses.")
@click.option("--shape", default="16,56,56,64", show_default=True, help="The array's dimensions, outermost first.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--framework", type=click.Choice(_ARRAYS), help="One framework only.  [default: all that are installed]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, tpu, …")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def doctor(
    pattern: str, size: tuple[str, ...], shape: str, dtype: str, framework: str | None, device: str, as_json: bool
) -> None:
    """Say what is installed, and which kernel would serve an array, and why. Imports no framework.

    \b
      anynorm doctor
      anynorm doctor --pattern "... [c]" --shape 8,128,768 --dtype bfloat16 --framework torch
      anynorm doctor --pattern group --size g=8 --shape 32,28,28,64 --json
    """
    with reported():
        from ..kernels.select import select

        made = _plan(pattern, size, shape)
        versions = {name: installed(names) for name, names in DISTRIBUTIONS.items()}
        kernels = []
        for name in _ARRAYS if framework is None else (framework,):
            if versions[name] is None:
                kernels.append({"framework": name, "kernel": None, "why": f"{name} is not installed"})
            else:
                choice = select(made, name, device, dtype)
                kernels.append({"framework": name, "kernel": choice.kernel, "why": choice.why})
        report = {
            "anynorm": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "frameworks": versions,
            "keras_backend": _keras_backend() if versions["keras"] else None,
            "cpu_kernels": _cpu_kernels(),
            "gpu_kernels": _gpu_kernels(),
            "pattern": pattern,
            "shape": _dimensions(shape),
            "dtype": dtype,
            "device": device,
            "plan": str(made),
            "statistics": made.groups,
            "elements_each": made.count,
            "kernels": kernels,
        }
        if as_json:
            click.echo(json.dumps(report, indent=2, ensure_ascii=False))
        else:
            from rich.console import Console

            _print(Console(), report)


def _plan(pattern: str, size: tuple[str, ...], shape: str) -> Plan:
    from ..figures import words
    from ..plan import plan

    text, sizes = words.split(pattern)
    return plan(words.spec(text, sizes | lengths(size, "--size")), _dimensions(shape))


def _dimensions(shape: str) -> tuple[int, ...]:
    words = shape.strip("()[] ").split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise click.BadParameter(f'"{shape}" is not a list of lengths, as in 16,56,56,64', param_hint="--shape")
    return tuple(int(word) for word in words)


def _keras_backend() -> str:
    """The backend that `import keras` would choose: the environment's, the configuration file's or TensorFlow."""
    if chosen := os.environ.get("KERAS_BACKEND"):
        return f"{chosen} (KERAS_BACKEND)"
    file = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"), "keras.json")
    try:
        return f"{json.loads(file.read_text())['backend']} ({file})"
    except (OSError, ValueError, KeyError):
        return "tensorflow (the default)"


def _cpu_kernels() -> dict[str, Any]:
    """The instruction set and the doors of the CPU kernels, or why there are none."""
    from ..kernels import cpu

    if cpu.library() is None:
        return {"isa": None, "doors": [], "why": cpu.why_not()}
    doors = [name for name in _DOORS if cpu.door(name)]
    missing = [why for name, why in _DOORS.items() if name not in doors]
    return {"isa": cpu.isa(), "doors": doors, "why": "; ".join(missing)}


def _gpu_kernels() -> dict[str, Any]:
    """Whether Triton can run its kernels for torch here, or why not."""
    from ..kernels import triton

    why = triton.why_not()
    return {"triton": not why, "why": why}


def _print(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    found = Table(title=f"anynorm {report['anynorm']}", title_justify="left", show_header=False)
    found.add_column(style="bold")
    found.add_column(overflow="fold")
    found.add_row("python", f"{report['python']} ({sys.implementation.name})")
    found.add_row("platform", f"{report['platform']}, {report['cpus']} CPUs")
    for name, version in report["frameworks"].items():
        found.add_row(name, Text("not installed", style="bright_black") if version is None else version)
    if report["keras_backend"]:
        found.add_row("keras backend", Text(report["keras_backend"]))
    kernels = report["cpu_kernels"]
    doors = f"{kernels['isa']}; doors for {', '.join(kernels['doors']) or 'no framework'}" if kernels["isa"] else "none"
    found.add_row("CPU kernels", Text(f"{doors}: {kernels['why']}" if kernels["why"] else doors))
    gpu = report["gpu_kernels"]
    found.add_row("GPU kernels", Text("triton, for torch" if gpu["triton"] else f"none: {gpu['why']}"))
    console.print(found)
    question = f"{report['pattern']}  {report['shape']}  {report['dtype']} on {report['device']}"
    chosen = Table(title=Text(question), title_justify="left")
    for heading in ("framework", "kernel", "why"):
        chosen.add_column(heading, overflow="fold")
    for row in report["kernels"]:
        chosen.add_row(row["framework"], row["kernel"] or "-", Text(row["why"]))
    console.print(chosen)
    console.print(Text.assemble("plan: ", (report["plan"], "bold"), f"   {report['statistics']} statistics"))
    console.print(Text(_LEGEND, style="bright_black"))
