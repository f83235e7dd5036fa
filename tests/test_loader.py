"""The CPU kernels' loader: what it tells the library, and what it says where there is none."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anynorm import NormSpec
from anynorm.kernels import cpu
from anynorm.plan import plan

ROOT = Path(__file__).parent.parent
GROUP = plan(NormSpec.of("n [...] (g [c])", g=4), (2, 5, 7, 12))

built = pytest.mark.skipif(cpu.library() is None, reason=cpu.why_not())


def test_a_problem_lies_in_memory_as_the_header_says():
    offsets = {name: getattr(cpu.Problem, name).offset for name, _ in cpu.Problem._fields_}
    assert offsets == {
        "extents": 0,
        "rank": 64,
        "reduced": 68,
        "affine": 72,
        "removes": 76,
        "dtype": 80,
        "scale_dtype": 84,
        "offset_dtype": 88,
        "threads": 92,
        "eps": 96,
        "executor": 104,
    }
    assert ctypes.sizeof(cpu.Problem) == 112


def header() -> str:
    return re.sub(r"//.*", "", (ROOT / "src/anynorm/kernels/cpu/anynorm.h").read_text())


def test_every_function_of_the_header_is_typed():
    declared = re.findall(r"ANYNORM_API [\w ]+[ *]+(anynorm_\w+)\(([^)]*)\)", header())
    assert {name for name, _ in declared} == set(cpu._PROTOTYPES)
    for name, arguments in declared:
        words = [] if arguments.strip() == "void" else arguments.split(",")
        types = cpu._PROTOTYPES[name][1]
        assert len(types) == len(words), name
        for word, type_ in zip(words, types, strict=True):
            # A pointer passed as an int would lose its upper half.
            by_value = {"double": ctypes.c_double, "int64_t": ctypes.c_int64}.get(word.split()[0])
            assert (type_ is by_value) if "*" not in word else (type_ not in (ctypes.c_double, ctypes.c_int64)), (
                name,
                word,
            )


def test_the_fields_and_numbers_are_the_header_s():
    struct = re.search(r"typedef struct anynorm_problem \{(.*?)\}", header(), re.DOTALL)
    assert re.findall(r"(\w+)(?:\[\w+\])?;", struct[1]) == [name for name, _ in cpu.Problem._fields_]
    numbers = {name: int(value) for name, value in re.findall(r"(ANYNORM_\w+) = (\d+)", header())}
    assert {name: numbers[f"ANYNORM_{name.upper()}"] for name in cpu.DTYPES} == cpu.DTYPES
    assert numbers["ANYNORM_MAX_RUNS"] == cpu.MAX_RUNS
    assert numbers["ANYNORM_OK"] == cpu.OK


def test_a_problem_says_what_the_plan_says():
    told = cpu.problem(GROUP, "bfloat16", "float32", "float64", 1e-3, 3)
    assert told.extents[:] == [2, 35, 4, 3, 0, 0, 0, 0]
    assert (told.rank, told.reduced, told.affine, told.removes) == (4, 0b1010, 0b1100, 3)
    assert (told.dtype, told.scale_dtype, told.offset_dtype) == (3, 0, 1)
    assert (told.threads, told.eps, told.executor) == (3, 1e-3, None)
    assert cpu.problem(GROUP, "bfloat16", "float32", "float64", 1e-3, 3) is told


@pytest.mark.parametrize(("remove", "bits"), [("mean", 1), ("scale", 2), (("mean", "scale"), 3)])
def test_the_moments_that_are_removed(remove, bits):
    rows = plan(NormSpec.of("... [c]", remove=remove), (6, 5))
    assert cpu.problem(rows, "float32", None, None, 0.0).removes == bits


def test_a_problem_that_cannot_be_told_is_refused():
    unknown = plan(NormSpec.of("n [t] c"), (2, None, 3))
    with pytest.raises(ValueError, match=r"need to know every length, and here are 2 \[\?\] 3"):
        cpu.problem(unknown, "float32", None, None, 1e-3)
    many = plan(NormSpec.of("a [b] c [d] e [f] g [h] i"), (2,) * 9)
    with pytest.raises(ValueError, match="take 8 runs, and these are 9"):
        cpu.problem(many, "float32", None, None, 1e-3)
    assert not cpu.supports(many)
    with pytest.raises(KeyError):
        cpu.problem(GROUP, "int8", None, None, 1e-3)


@built
def test_the_library_is_loaded_and_says_what_it_has():
    assert cpu.why_not() == ""
    assert cpu.library().anynorm_abi() == cpu.ABI
    assert cpu.isa() in cpu.isas()
    assert cpu.supports(GROUP)
    assert cpu.supports(plan(NormSpec.of("n [t] c"), (2, None, 3)))
    assert cpu.door("tensorflow").is_file()


@built
def test_instruction_sets_are_taken_by_name():
    used = cpu.isa()
    try:
        for name in cpu.isas():
            cpu.use_isa(name)
            assert cpu.isa() == name
    finally:
        cpu.use_isa(used)
    with pytest.raises(ValueError, match=f'no instruction set "abacus" here; they have .*{used}'):
        cpu.use_isa("abacus")
    assert cpu.isa() == used


@built
def test_a_process_begins_with_the_fastest_instruction_set():
    code = "from anynorm.kernels import cpu; print(cpu.isa())"
    begins = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    is_zen_3_or_4 = "AuthenticAMD" in told and re.search(r"cpu family\s*: 25\b", told)
    usable = [name for name in cpu.isas() if not (name == "avx512" and is_zen_3_or_4 and "avx2" in cpu.isas())]
    assert begins == usable[-1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which the loader looks instead of its own."""

    def forget():
        cpu._load.cache_clear()
        cpu.supports.cache_clear()

    monkeypatch.setattr(cpu, "__path__", [str(tmp_path)])
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def test_without_the_library_it_says_what_to_do(folder):
    assert cpu.library() is None
    assert "were not built" in cpu.why_not()
    assert "make kernels" in cpu.why_not()
    assert not cpu.supports(GROUP)
    assert cpu.isas() == ()
    assert cpu.door("jax") is None
    for needs_it in (cpu.isa, lambda: cpu.use_isa("avx2")):
        with pytest.raises(RuntimeError, match="were not built"):
            needs_it()


def test_another_platform_is_said_to_be_one(folder, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert cpu.why_not() == "the CPU kernels are for 64-bit Linux and macOS, and this is win32"


def test_a_file_that_is_no_library(folder):
    (folder / f"libanynorm_cpu{cpu._SUFFIX}").write_text("not a library")
    assert cpu.library() is None
    assert re.search(r"libanynorm_cpu.* cannot be loaded \(.*\); build it for this machine", cpu.why_not())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("int anynorm_abi(void) { return 7; }", "has version 7 of the C interface, and this is for 2"),
        ("int anynorm_abi(void) { return 2; }", "lacks a function of the C interface"),
        ("int other(void) { return 2; }", "lacks a function of the C interface"),
    ],
)
def test_a_library_of_another_version(folder, code, words):
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    file = folder / f"libanynorm_cpu{cpu._SUFFIX}"
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", file], input=code, text=True, check=True)
    assert cpu.library() is None
    assert words in cpu.why_not()
    assert cpu.door("tensorflow") is None
