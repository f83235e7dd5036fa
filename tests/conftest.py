"""Settings that must stand before any framework is imported."""

import contextlib
import os
import random
import sys
from collections.abc import Iterator

import pytest

# torch's compiler imports it, and after TensorFlow that would end the process: both bring LLVM.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

# Need the old libraries, and Triton.
collect_ignore = ["old_files", "triton_code.py"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The same numbers whichever tests ran before; Keras draws its seeds from `random`."""
    random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Models of a few thousand numbers, each run once, take longer to compile than to run."""
    if os.environ["KERAS_BACKEND"] != "jax":
        yield
        return
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
