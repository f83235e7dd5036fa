"""`anynorm doctor`."""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from .common import DISTRIBUTIONS, configured_backend, installed, keras_file, lengths, reported

if TYPE_CHECKING:
    from rich.console import Console

    from ..plan import Plan

_ARRAYS = ("numpy", "torch", "jax", "tensorflow")
_DEVICES = ("cpu", "cuda", "rocm", "mps", "xpu", "tpu")
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
@click.option("--device", type=click.Choice(_DEVICES), default="cpu", show_default=True, help="Where the array is.")
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
            kernel = None
            if versions[name] is None:
                why = f"{name} is not installed"
            else:
                try:
                    choice = select(made, name, device, dtype)
                    kernel, why = choice.kernel, choice.why
                except ValueError as refused:  # the kernel that ANYNORM_KERNEL asks for
                    why = str(refused)
            kernels.append({"framework": name, "kernel": kernel, "why": why})
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
    chosen = configured_backend()
    return "tensorflow (the default)" if chosen is None else f"{chosen} ({keras_file()})"


def _cpu_kernels() -> dict[str, Any]:
    """The instruction set and the doors of the CPU kernels, or why there are none."""
    from ..kernels import cpu

    if cpu.library() is None:
        return {"isa": None, "doors": [], "why": cpu.why_not()}
    doors = [name for name in _DOORS if cpu.door(name)]
    missing = [why for name, why in _DOORS.items() if name not in doors]
    return {"isa": cpu.isa(), "doors": doors, "why": "; ".join(missing)}


def _gpu_kernels() -> dict[str, str]:
    """For each way to a GPU the reason why it is closed; empty where it is open."""
    from ..kernels import triton

    return {"triton": triton.why_not()}


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
    for name, why in report["gpu_kernels"].items():
        found.add_row("GPU kernels", Text(f"{name}: {why or 'ready'}"))
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
