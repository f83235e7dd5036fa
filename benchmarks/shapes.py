"""The one table of speed cases: a sentence of the catalogue, a memory order, a shape and a type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from anynorm.catalogue import CATALOGUE, Entry
from anynorm.plan import Plan, plan
from anynorm.spec import NormSpec

# Of every layer, so that all compute the same.
EPS = 1e-3
# Up to here the call costs more than the arithmetic.
SMALL = 2_000
_PASSES = ("forward", "backward", "forward + backward")
FORWARD, BACKWARD, BOTH = _PASSES
_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Family:
    """A normalization in one memory order.

    Attributes:
        name, korean: titles.
        entry: its name in the catalogue.
        channels: the dimension that carries scale and offset, as arrays of NumPy, JAX and TensorFlow have it.
        keras: the class of `keras.layers` that does the same.
    """

    name: str
    korean: str
    entry: str
    channels: int
    keras: str

    @property
    def first(self) -> bool:
        """Whether channels come before positions in memory."""
        return self.channels == 1 and self.entry != "tutorial_layer"

    @property
    def moved(self) -> bool:
        """Whether torch sees the channels at 1 though they are last in memory."""
        return self.channels == -1 and self.entry in ("group", "instance", "batch")

    @property
    def sentence(self) -> Entry:
        return CATALOGUE[self.entry]


GROUP = Family("group, NHWC", "그룹, NHWC", "group", -1, "GroupNormalization")
GROUP_FIRST = Family("group, NCHW", "그룹, NCHW", "group", 1, "GroupNormalization")
INSTANCE = Family("instance, NHWC", "인스턴스, NHWC", "instance", -1, "GroupNormalization")
INSTANCE_FIRST = Family("instance, NCHW", "인스턴스, NCHW", "instance", 1, "GroupNormalization")
LAYER = Family("layer, last axis", "레이어, 마지막 축", "layer_last", -1, "LayerNormalization")
LAYER_FIRST = Family("layer, channels of NCHW", "레이어, NCHW의 채널", "layer_channels", 1, "LayerNormalization")
LAYER_TUTORIAL = Family("layer, the tutorial's", "레이어, 튜토리얼", "tutorial_layer", 1, "LayerNormalization")
RMS = Family("RMS, last axis", "RMS, 마지막 축", "rms", -1, "RMSNormalization")
BATCH = Family("batch, NHWC", "배치, NHWC", "batch", -1, "BatchNormalization")
BATCH_FIRST = Family("batch, NCHW", "배치, NCHW", "batch", 1, "BatchNormalization")


@dataclass(frozen=True)
class Case:
    """One normalization of one array.

    Attributes:
        groups: of group normalization.
        telling: a row of the READMEs' table, and measured with all threads on every framework.
        compiled: measured under torch.compile too, which takes ten seconds and more.
        only: the framework to measure it on; None means every one.
    """

    family: Family
    shape: tuple[int, ...]
    groups: int | None = None
    dtype: str = "float32"
    telling: bool = False
    compiled: bool = False
    only: str | None = None

    @cached_property
    def name(self) -> str:
        return f"{self.family.name} {self.size}"

    @property
    def size(self) -> str:
        words = ["×".join(map(str, self.shape))]
        words += [f"g{self.groups}"] if self.groups else []
        words += [self.dtype] if self.dtype != "float32" else []
        return " ".join(words)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * _DTYPES[self.dtype]

    @property
    def small(self) -> bool:
        return self.elements <= SMALL

    @property
    def channels(self) -> int:
        return self.shape[self.family.channels]

    @property
    def positions(self) -> int:
        """Pixels or the like of one sample."""
        return math.prod(self.shape[1:]) // self.channels

    @property
    def spec(self) -> NormSpec:
        return self.family.sentence.spec(self.family.first, **self.sizes)

    @property
    def plan(self) -> Plan:
        return plan(self.spec, self.shape)

    @property
    def sizes(self) -> dict[str, int]:
        return {"g": self.groups} if self.groups else {}

    def arguments(self, torch: bool = False) -> dict[str, Any]:
        """What `anynorm.normalize` takes besides arrays; torch has channels at 1 in any memory order."""
        entry = self.family.sentence
        first = self.family.first or (torch and self.family.moved)
        pattern = entry.pattern_first if first and entry.pattern_first else entry.pattern
        return {"pattern": pattern, "affine": entry.affine, "remove": entry.remove, "eps": EPS, **self.sizes}

    def keras_arguments(self) -> dict[str, Any]:
        """What `keras.layers` and `anynorm.keras` take."""
        given: dict[str, Any] = {"axis": self.family.channels, "epsilon": EPS}
        if self.family.keras == "GroupNormalization":
            given["groups"] = self.groups or -1
        policies = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
        return {**given, "dtype": policies.get(self.dtype, self.dtype)}

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """x, dy, scale and offset in float32; RMS normalization has no offset."""
        rng = np.random.default_rng(0)
        x, dy = (rng.standard_normal(self.shape, np.float32) for _ in range(2))
        scale, offset = (rng.uniform(0.5, 1.5, self.channels).astype(np.float32) for _ in range(2))
        return x, dy, scale, None if self.family is RMS else offset

    def row(self, worker: Worker, mode: str, which: str) -> dict[str, Any]:
        """What a row says of a comparison before it is made."""
        return {
            "case": self.name,
            "shape": self.shape,
            "dtype": self.dtype,
            "mode": mode,
            "pass": which,
            "threads": worker.threads,
            "output": "fresh" if worker.fresh else "reused",
        }


def _cases() -> Iterator[Case]:
    yield Case(GROUP, (16, 56, 56, 64), 32, telling=True)
    yield Case(GROUP, (8, 32, 32, 128), 32, compiled=True)
    yield Case(GROUP, (1, 64, 64, 320), 32)
    yield Case(GROUP, (8, 8, 8, 1280), 32, telling=True)
    yield Case(GROUP, (2, 128, 128, 128), 32)
    yield Case(GROUP, (32, 26, 26, 10), 5, telling=True)
    yield Case(GROUP, (2, 8, 8, 8), 4)
    yield Case(GROUP_FIRST, (16, 64, 56, 56), 32, telling=True)
    yield Case(GROUP_FIRST, (8, 128, 32, 32), 32)
    yield Case(GROUP_FIRST, (1, 320, 64, 64), 32)
    yield Case(GROUP_FIRST, (8, 1280, 8, 8), 32)
    yield Case(GROUP_FIRST, (2, 8, 8, 8), 4)
    yield Case(INSTANCE, (4, 128, 128, 32), telling=True)
    yield Case(INSTANCE, (8, 56, 56, 64))
    yield Case(INSTANCE, (2, 32, 32, 32, 32))
    yield Case(INSTANCE, (2, 8, 8, 8))
    yield Case(INSTANCE_FIRST, (4, 32, 128, 128))
    yield Case(INSTANCE_FIRST, (8, 64, 56, 56), telling=True)
    yield Case(INSTANCE_FIRST, (2, 32, 32, 32, 32))
    yield Case(INSTANCE_FIRST, (2, 8, 8, 8))
    yield Case(LAYER, (4, 64))
    yield Case(LAYER, (64, 768))
    yield Case(LAYER, (1024, 768), telling=True, compiled=True)
    yield Case(LAYER, (4096, 1024), telling=True)
    yield Case(LAYER, (8192, 1024))
    yield Case(LAYER, (65536, 64))
    yield Case(LAYER, (65536, 1024), only="torch")
    for dtype in ("bfloat16", "float16"):
        yield Case(LAYER, (1024, 768), dtype=dtype, telling=dtype == "bfloat16")
        yield Case(LAYER, (4096, 1024), dtype=dtype, only="torch")
        yield Case(LAYER, (65536, 64), dtype=dtype, only="torch")
    yield Case(LAYER_FIRST, (8, 64, 56, 56), telling=True)
    yield Case(LAYER_FIRST, (1, 320, 64, 64))
    yield Case(LAYER_FIRST, (32, 512, 7, 7))
    yield Case(LAYER_FIRST, (8, 1280, 8, 8))
    yield Case(LAYER_TUTORIAL, (32, 26, 26, 10))
    yield Case(RMS, (4, 64))
    yield Case(RMS, (64, 768))
    yield Case(RMS, (1024, 768), compiled=True)
    yield Case(RMS, (4096, 1024), telling=True)
    yield Case(RMS, (4096, 4096), only="torch")
    yield Case(BATCH, (16, 56, 56, 64), telling=True)
    yield Case(BATCH, (32, 28, 28, 128))
    yield Case(BATCH, (32, 7, 7, 512))
    yield Case(BATCH, (2, 8, 8, 8))
    yield Case(BATCH_FIRST, (16, 64, 56, 56), telling=True)
    yield Case(BATCH_FIRST, (32, 128, 28, 28))
    yield Case(BATCH_FIRST, (32, 512, 7, 7))


CASES = tuple(_cases())
BY_NAME = {case.name: case for case in CASES}


@dataclass(frozen=True)
class Worker:
    """What one process measures: comparisons are a case's name, a mode and a pass."""

    framework: str
    threads: int
    fresh: bool
    comparisons: tuple[tuple[str, str, str], ...]


def workers(frameworks: tuple[str, ...], words: str, cores: int) -> Iterator[Worker]:
    """Every process of a run: each framework on one thread, large cases on all, the largest with fresh outputs."""
    cases = [case for case in CASES if words in case.name]
    for framework in frameworks:
        mine = [case for case in cases if case.only in (None, framework)]
        yield _worker(framework, 1, False, [c for case in mine for c in _on_one(case, framework)])
        if cores > 1:
            yield _worker(framework, cores, False, [c for case in mine for c in _on_all(case, framework)])
    if "torch" in frameworks:
        large = [case for case in cases if case.nbytes >= 2**25 and case.family is LAYER]
        yield _worker("torch", 1, True, [(case, "torch", which) for case in large for which in (FORWARD, BOTH)])


def _worker(framework: str, threads: int, fresh: bool, comparisons: list[tuple[Case, str, str]]) -> Worker:
    named = [(case.name, mode, which) for case, mode, which in comparisons]
    return Worker(framework, threads, fresh, tuple(named))


def _on_one(case: Case, framework: str) -> Iterator[tuple[Case, str, str]]:
    if framework == "torch":
        yield from ((case, "torch", which) for which in _PASSES)
        if case.compiled:
            yield case, "torch.compile", BOTH
        if case.only is None:
            yield from ((case, "Keras/torch", which) for which in (FORWARD, BOTH))
    if framework == "jax":
        yield from ((case, "JAX jit", which) for which in (FORWARD, BOTH))
    if framework == "tensorflow":
        for mode in ("TensorFlow graph", "TensorFlow XLA"):
            yield from ((case, mode, which) for which in (FORWARD, BOTH))
        if case.small or case.telling:
            yield case, "TensorFlow eager", BOTH


def _on_all(case: Case, framework: str) -> Iterator[tuple[Case, str, str]]:
    if case.nbytes < 2**20 or case.dtype != "float32":
        return
    if framework == "torch":
        yield from ((case, "torch", which) for which in _PASSES)
    elif case.telling:
        yield case, {"jax": "JAX jit", "tensorflow": "TensorFlow graph"}[framework], BOTH
