"""The loader of the CPU kernels: finds the library beside this file and tells ctypes what anynorm.h says.

A wheel without the library is a whole anynorm: it computes composed, and `why_not` says what to do about it. Nothing is
loaded before it is asked for, and no framework is imported here.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from functools import lru_cache
from pathlib import Path

from ...plan import Plan

ABI = 2
MAX_RUNS = 8
OK = 0
DTYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "neon")

_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
_REBUILD = "pip install --force-reinstall --no-deps --no-cache-dir anynorm (in a checkout: make kernels)"


class Problem(ctypes.Structure):
    """`anynorm_problem` of anynorm.h, which explains the fields.

    >>> ctypes.sizeof(Problem)
    112
    """

    _fields_ = [
        ("extents", ctypes.c_int64 * MAX_RUNS),
        ("rank", ctypes.c_int32),
        ("reduced", ctypes.c_uint32),
        ("affine", ctypes.c_uint32),
        ("removes", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        ("scale_dtype", ctypes.c_int32),
        ("offset_dtype", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("eps", ctypes.c_double),
        ("executor", ctypes.c_void_p),
    ]


_PROBLEM, _ARRAY, _STATUS = ctypes.POINTER(Problem), ctypes.c_void_p, ctypes.c_int
# As in anynorm.h: what each function returns, and what it takes.
_PROTOTYPES: dict[str, tuple[type | None, list[type]]] = {
    "anynorm_supported": (_STATUS, [_PROBLEM]),
    "anynorm_forward": (_STATUS, [_PROBLEM, *[_ARRAY] * 7]),
    "anynorm_backward": (_STATUS, [_PROBLEM, *[_ARRAY] * 7]),
    "anynorm_moments": (_STATUS, [_PROBLEM, *[_ARRAY] * 4]),
    "anynorm_apply": (_STATUS, [_PROBLEM, *[_ARRAY] * 7]),
    "anynorm_backward_sums": (_STATUS, [_PROBLEM, *[_ARRAY] * 7]),
    "anynorm_backward_apply": (_STATUS, [_PROBLEM, *[_ARRAY] * 5, ctypes.c_double, _ARRAY]),
    "anynorm_isa": (ctypes.c_char_p, []),
    "anynorm_use_isa": (_STATUS, [ctypes.c_char_p]),
    "anynorm_use_cache": (None, [ctypes.c_int64]),
    "anynorm_abi": (ctypes.c_int, []),
}


def library() -> ctypes.CDLL | None:
    """The library, its functions typed, or None where `why_not` has a reason.

    A problem is passed as it is and arrays as addresses, which may be None where anynorm.h says optional.
    """
    return _load()[0]


def why_not() -> str:
    """The reason why there is no library, with what to do about it; empty where there is one.

    >>> bool(why_not()) != bool(library())
    True
    """
    return _load()[1]


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str]:
    if sys.platform not in ("linux", "darwin") or struct.calcsize("P") != 8:
        return None, f"the CPU kernels are for 64-bit Linux and macOS, and this is {sys.platform}"
    file = _beside("cpu")
    if file is None:
        return None, (
            "the CPU kernels were not built when anynorm was installed, for want of a C++ compiler perhaps; "
            f"with one (g++ or clang++): {_REBUILD}"
        )
    try:
        found = ctypes.CDLL(str(file))
    except OSError as error:
        return None, f"{file} cannot be loaded ({error}); build it for this machine: {_REBUILD}"
    try:
        version = found.anynorm_abi()
        if version != ABI:
            return None, f"{file} has version {version} of the C interface, and this is for {ABI}: {_REBUILD}"
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        return None, f"{file} lacks a function of the C interface ({error}): {_REBUILD}"
    return found, ""


def _beside(name: str) -> Path | None:
    """The file of the library `name`, which lies in this package's folder."""
    for folder in __path__:
        file = Path(folder, f"libanynorm_{name}{_SUFFIX}")
        if file.is_file():
            return file
    return None


def door(name: str) -> Path | None:
    """The library through which a framework reaches the kernels; None where it was not built, or they cannot load.

    >>> door("abacus") is None
    True
    """
    return None if library() is None else _beside(name)


@lru_cache(maxsize=8192)
def problem(
    plan: Plan, dtype: str, scale_dtype: str | None, offset_dtype: str | None, eps: float, threads: int = 0
) -> Problem:
    """What the kernels are told of one normalization. The same object comes back each time: do not write to it.

    Args:
        plan: whose lengths are all known.
        dtype: of the array.
        scale_dtype, offset_dtype: None where there is no such array.
        eps: added to the variance.
        threads: at most so many, the caller's included; 0 means as many as there are processors.

    Raises:
        ValueError: a length is unknown, or there are more runs than the kernels take.
        KeyError: a type that is none of `DTYPES`.

    >>> from anynorm import NormSpec
    >>> from anynorm.plan import plan
    >>> p = problem(plan(NormSpec.of("n [...] (g [c])", g=4), (2, 5, 7, 12)), "float32", None, None, 1e-3)
    >>> p.extents[: p.rank], f"{p.reduced:04b}", f"{p.affine:04b}"
    ([2, 35, 4, 3], '1010', '1100')
    """
    if any(run.extent is None for run in plan.runs):
        raise ValueError(f"the CPU kernels need to know every length, and here are {plan}")
    told = _runs(plan)
    told.removes = plan.removes_mean | plan.removes_scale << 1
    told.dtype = DTYPES[dtype]
    told.scale_dtype = DTYPES[scale_dtype or dtype]
    told.offset_dtype = DTYPES[offset_dtype or dtype]
    told.threads = threads
    told.eps = eps
    return told


def _runs(plan: Plan) -> Problem:
    if len(plan.runs) > MAX_RUNS:
        raise ValueError(f"the CPU kernels take {MAX_RUNS} runs, and these are {len(plan.runs)}: {plan}")
    told = Problem(rank=len(plan.runs))
    for i, run in enumerate(plan.runs):
        told.extents[i] = run.extent or 0
        told.reduced |= run.reduced << i
        told.affine |= run.affine << i
    return told


@lru_cache(maxsize=8192)
def supports(plan: Plan) -> bool:
    """Whether the kernels have loops for runs of this order; their lengths may be unknown."""
    found = library()
    return found is not None and len(plan.runs) <= MAX_RUNS and bool(found.anynorm_supported(_runs(plan)))


def isa() -> str:
    """The instruction set in use: "baseline", "avx2", "avx512" or "neon".

    Raises:
        RuntimeError: there is no library; the message is `why_not`'s.
    """
    return str(_needed().anynorm_isa().decode())


def isas() -> tuple[str, ...]:
    """The instruction sets that both this build and this machine have, in the order of `INSTRUCTION_SETS`.

    >>> set(isas()) <= set(INSTRUCTION_SETS)
    True
    """
    found = library()
    if found is None:
        return ()
    # The library says what it has only by taking it; the one in use is put back.
    used = found.anynorm_isa()
    has = tuple(name for name in INSTRUCTION_SETS if found.anynorm_use_isa(name.encode()) == OK)
    found.anynorm_use_isa(used)
    return has


def use_isa(name: str) -> None:
    """Take another instruction set from now on, for tests; not while another thread normalizes.

    Raises:
        ValueError: this build or this machine lacks it.
        RuntimeError: there is no library.
    """
    if _needed().anynorm_use_isa(name.encode()) != OK:
        raise ValueError(f'the CPU kernels have no instruction set "{name}" here; they have {", ".join(isas())}')


def use_cache(size: int) -> None:
    """Take the last cache to have so many bytes from now on, for tests: what is too large for it is written past it.

    0: nothing is; 1: everything is; -1: as the system says, which is so at first.

    Raises:
        RuntimeError: there is no library.
    """
    _needed().anynorm_use_cache(size)


def _needed() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError(why_not())
    return found
