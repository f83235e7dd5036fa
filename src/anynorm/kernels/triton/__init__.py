"""The Triton kernels: for GPUs of NVIDIA from Ampere on, and for tests in Triton's interpreter on the CPU.

Triton is imported when a kernel of it is first chosen. `why_not` looks at the driver by itself, so that nobody has to
import a framework to learn that there is none.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import lru_cache

from .views import geometry as geometry

# bfloat16 arithmetic and asynchronous copies begin there.
LEAST_CAPABILITY = (8, 0)
DTYPES = ("float32", "float16", "bfloat16")
_MAJOR, _MINOR = 75, 76


def interpreted() -> bool:
    """Whether Triton will interpret its kernels, on the CPU, as its own environment variable tells it to."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


@lru_cache(maxsize=1)
def why_not() -> str:
    """The reason why Triton can run nothing here, with what to do about it; empty where it can.

    >>> isinstance(why_not(), str)
    True
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    return "" if interpreted() else _why_no_device() or _why_no_import()


def _why_no_import() -> str:
    """Last, for it takes a second."""
    if sys.modules.get("tensorflow") and not sys.modules.get("triton"):
        return (
            "TensorFlow was imported before Triton, and importing Triton now would end the process, since both bring "
            "LLVM: import triton first"
        )
    try:
        import triton  # noqa: F401
    except Exception as error:  # whatever its libraries raise
        return f"triton is installed and cannot be imported: {error}"
    return ""


def _why_no_device() -> str:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver: libcuda.so.1 is not found"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return "the NVIDIA driver finds no device that it can use"
    for device in range(count.value):
        found = tuple(_attribute(driver, which, device) for which in (_MAJOR, _MINOR))
        if found < LEAST_CAPABILITY:
            return (
                f"device {device} has compute capability {found[0]}.{found[1]}, and the kernels are for "
                f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} and later (CUDA_VISIBLE_DEVICES hides a device)"
            )
    return ""


def _attribute(driver: ctypes.CDLL, which: int, device: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value
