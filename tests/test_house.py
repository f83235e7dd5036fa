"""The house rules: one direction of imports, no framework before its arrays, examples that run, small files."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import anynorm

ROOT = Path(__file__).parent.parent
SOURCE = Path(anynorm.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
FRAMEWORKS = ("torch", "jax", "tensorflow", "keras", "flax")
HEAVY = (*FRAMEWORKS, "torch._dynamo", "triton", "h5py", "matplotlib", "click", "rich", "mlxtend")

# What each part of the package may import of the others.
MAY_IMPORT = {
    "files": set(),
    "pattern": set(),
    "precision": set(),
    "reference": set(),
    "spec": {"pattern"},
    "plan": {"pattern", "spec"},
    "catalogue": {"pattern", "spec"},
    "kernels": {"plan", "precision"},
    "ops": {"kernels", "plan", "precision", "spec"},
    "__init__": {"ops", "pattern", "spec"},
    "keras": {"ops", "catalogue", "pattern", "plan", "precision", "spec"},
    "torch": {"ops", "catalogue", "pattern", "precision", "spec"},
    "nnx": {"ops", "catalogue", "pattern", "plan", "precision", "spec"},
    "convert": {"keras", "torch", "nnx", "ops", "catalogue", "plan", "spec"},
    "rescue": {"files", "keras"},
    "surgery": {"convert", "files", "keras", "rescue", "torch", "ops", "catalogue"},
    "figures": {"files", "catalogue", "pattern", "plan", "spec"},
    "__main__": {"cli"},
    "cli": {"__init__", "files", "figures", "surgery", "keras", "kernels", "pattern", "plan", "rescue", "spec"},
}

files = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))


def part_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(code: str, package: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """The other parts of anynorm, and the other top-level packages, that a module of `package` imports anywhere."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = list(package[: len(package) - node.level + 1]) if node.level else []
            start += node.module.split(".") if node.module else []
            names = [start] if len(start) > 1 or not node.level else [[*start, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] != "anynorm":
                outside.add(name[0])
            elif len(name) == 1 or name[1].startswith("__"):
                inside.add("__init__")
            else:
                inside.add(name[1])
    return inside - {package[1] if len(package) > 1 else ""}, outside


def of_file(file: Path) -> tuple[set[str], set[str]]:
    package = ("anynorm", *file.relative_to(SOURCE).parts[:-1])
    return imports(file.read_text(), package)


@files
def test_imports_go_one_way(file):
    assert of_file(file)[0] <= MAY_IMPORT[part_of(file)]


def test_parts_are_in_an_order():
    """Nothing may import, however indirectly, what imports it."""
    order: list[str] = []
    left = dict(MAY_IMPORT)
    while left:
        ready = [part for part, needs in left.items() if needs <= set(order)]
        assert ready, f"these import each other: {sorted(left)}"
        order += ready
        for part in ready:
            del left[part]
    assert {part_of(file) for file in FILES} == set(order)


@files
def test_frameworks_are_imported_where_the_file_name_says_so(file):
    found = of_file(file)[1] & set(FRAMEWORKS)
    part = part_of(file)
    if part in ("ops", "kernels"):
        assert found <= {file.stem.split("_")[0]}
    elif part == "torch":
        assert found <= {"torch"}
    elif part in ("keras", "rescue", "cli"):
        assert found <= {"keras"}
    elif part == "nnx":
        assert found <= {"flax", "jax"}
    elif part == "convert":
        assert found <= {"torch": {"torch"}, "keras": {"keras"}, "nnx": {"flax", "jax"}}.get(file.stem, set())
    elif part == "surgery":
        assert found <= {"torch": {"torch"}, "keras": {"keras"}}.get(file.stem.split("_")[0], set())
    else:
        assert not found


def test_the_import_reader_sees_every_form():
    code = """
import torch.nn as nn, os
from .. import ops
from ..plan import plan
from . import layout
from anynorm.kernels import select
def f():
    import anynorm
    from jax import lax
    from ..keras.base import x
"""
    inside, outside = imports(code, ("anynorm", "figures"))
    assert inside == {"ops", "plan", "kernels", "__init__", "keras"}
    assert outside == {"torch", "os", "jax"}
    assert imports("from .ops import moments\nfrom . import plan", ("anynorm",))[0] == {"ops", "plan"}


def named_frameworks(code: str) -> list[int]:
    """Lines that compare something with the name of a framework, or match it."""
    names = {"numpy", "torch", "jax", "tensorflow"}
    lines = []
    for node in ast.walk(ast.parse(code)):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        sides += [node.value] if isinstance(node, ast.MatchValue) else []
        sides += [e for side in sides if isinstance(side, ast.Tuple | ast.List | ast.Set) for e in side.elts]
        if any(isinstance(side, ast.Constant) and side.value in names for side in sides):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "file", [f for f in FILES if part_of(f) not in ("keras", "cli")], ids=lambda file: str(file.relative_to(SOURCE))
)
def test_no_branch_on_a_framework_s_name(file):
    if file.relative_to(SOURCE).as_posix() != "kernels/select.py":
        assert named_frameworks(file.read_text()) == []


def test_the_branch_reader_sees_branches():
    assert named_frameworks('if backend() == "torch":\n    pass\nx = name in ("jax", "numpy")') == [1, 3]
    assert named_frameworks('match name:\n    case "torch":\n        pass') == [2]
    assert named_frameworks('x = {"torch": 1}["torch"]\ny = select(plan, "torch").kernel == "native"') == []


def imported_by(code: str) -> set[str]:
    """Which heavy packages a process has imported after `code`."""
    code += f"\nimport sys\nprint('|', *(name for name in {HEAVY!r} if name in sys.modules))"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.rsplit("|", 1)[1].split())


@pytest.mark.parametrize(
    ("code", "imported"),
    [
        ("import anynorm", set()),
        ("import anynorm, numpy; anynorm.normalize(numpy.ones((2, 3)), '[n] c')", set()),
        ("import anynorm.catalogue, anynorm.plan, anynorm.reference, anynorm.kernels.select, anynorm.cli", set()),
        ("import anynorm, torch; anynorm.normalize(torch.ones(2, 3), '[n] c')", {"torch"}),
        ("import anynorm.torch as a, torch; a.LayerNorm(3)(torch.ones(2, 3))", {"torch"}),
        ("import anynorm, jax; anynorm.normalize(jax.numpy.ones((2, 3)), '[n] c')", {"jax"}),
        # Flax itself prints with rich.
        ("import anynorm.nnx as a, flax.nnx as n; a.LayerNorm(3, rngs=n.Rngs(0))", {"jax", "flax", "rich"}),
        ("import anynorm.convert, anynorm.surgery", set()),
        (
            "import torch, anynorm.surgery as s; s.fold(torch.nn.Sequential(torch.nn.Linear(3, 6)))",
            {"torch"},
        ),
        # The detector can fail: it sees what is imported in a roundabout way.
        ("import anynorm, importlib; importlib.import_module('anynorm.ops.torch')", {"torch"}),
    ],
)
def test_imports_are_lazy(code, imported):
    assert imported_by(code) == imported


def test_keras_layers_import_no_other_framework():
    """Than Keras imports by itself under the same backend."""
    use = "keras.layers.{0}()(keras.ops.ones((2, 3)))"
    alone = imported_by("import keras; " + use.format("LayerNormalization"))
    ours = imported_by("import keras, anynorm.keras as a; a.LayerNormalization()(keras.ops.ones((2, 3)))")
    assert ours == alone
    assert "torch" not in ours


def test_import_takes_less_than_a_fifth_of_a_second():
    code = "import numpy, time; t = time.perf_counter(); import anynorm; print(time.perf_counter() - t)"
    run = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(3)]
    assert min(float(r.stdout) for r in run) < 0.2


@pytest.mark.parametrize(
    "module",
    [
        "anynorm",
        "anynorm.keras",
        "anynorm.torch",
        "anynorm.torch.functional",
        "anynorm.nnx",
        "anynorm.convert",
        "anynorm.surgery",
        "anynorm.rescue",
    ],
)
def test_every_public_name_has_a_docstring_with_an_example(module):
    public = importlib.import_module(module)
    assert public.__all__ == sorted(public.__all__)
    for name in public.__all__:
        assert ">>>" in (getattr(public, name).__doc__ or ""), f"{module}.{name}"


@files
def test_files_are_small_and_say_what_they_are_for(file):
    code = file.read_text()
    assert len(code.splitlines()) < 320
    assert ast.get_docstring(ast.parse(code))


def blocks(name: str) -> list[str]:
    """The Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


def test_code_in_the_readme_runs():
    """All blocks, in order, as one program."""
    assert len(blocks("README.md")) >= 5, "one for each framework"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    code = "\n".join(blocks("README.md"))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr


def test_code_in_the_korean_readme_is_the_same():
    """So that it runs too; but for comments, which are in the reader's language."""
    one, other = ([ast.unparse(ast.parse(block)) for block in blocks(name)] for name in ("README.md", "README.ko.md"))
    assert one == other
