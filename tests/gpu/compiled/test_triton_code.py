"""What GPUs' compilers make of the Triton kernels, without a GPU: pytest tests/gpu/compiled (make test does)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton_code import Code, Launch, arrays, compiled, launched, recorded

from anynorm.kernels.triton import interpreted
from anynorm.kernels.triton import torch as door

pytestmark = pytest.mark.skipif(interpreted(), reason="Triton was told to interpret its kernels")

FLOAT, HALF = torch.float32, torch.bfloat16
# Bytes of shared memory that a program of the smallest device has: of compute capability 8.6 and 8.9.
SHARED = 99 * 1024

# A case for each way to cut and each tile that fills the registers: sentence, shape, type, channels_last.
CASES = {
    "layer, rows of 256": ("... [c]", (65536, 256), FLOAT),
    "layer, rows of 1024, half": ("... [c]", (4096, 1024), HALF),
    "layer, rows of 1152": ("... [c]", (4096, 1152), FLOAT),
    "layer, rows of 8192": ("... [c]", (4096, 8192), FLOAT),
    "layer, rows of 16384": ("... [c]", (2048, 16384), FLOAT),
    "layer, rows of 32768, half": ("... [c]", (2048, 32768), HALF),
    "layer, rows of 24576": ("... [c]", (2048, 24576), FLOAT),
    "layer, rows of 65536": ("... [c]", (512, 65536), FLOAT),
    "layer, channels first": ("n [c] ...", (8, 96, 56, 56), FLOAT),
    "layer, many channels first": ("n [c] ...", (16, 4096, 16, 16), HALF),
    "group, channels first, held": ("n (g [c]) [...]", (64, 64, 64, 64), FLOAT),
    "group, channels first, 80 KB": ("n (g [c]) [...]", (64, 640, 32, 32), FLOAT),
    "group, channels first, cut": ("n (g [c]) [...]", (1, 128, 20, 256, 256), HALF),
    "group, channels last": ("n (g [c]) [...]", (96, 64, 56, 56), FLOAT),
    "group, channels last, half": ("n (g [c]) [...]", (32, 320, 64, 64), HALF),
    "instance, channels first": ("n c [...]", (16, 64, 128, 128), FLOAT),
    "instance, channels last": ("n c [...]", (96, 64, 56, 56), FLOAT),
    "batch, channels first": ("[n] c [...]", (64, 256, 56, 56), FLOAT),
    "batch, channels last, half": ("[n] c [...]", (64, 256, 56, 56), HALF),
}
# Ampere's, Hopper's and Blackwell's compute capabilities.
everywhere = pytest.mark.parametrize("capability", [80, 90, 100])


def launches_of(name: str, capability: int = 90, **around: Any) -> list[Launch]:
    sentence, shape, dtype = CASES[name]
    sizes = {"g": 32} if "g " in sentence else {}
    return launched(sentence, shape, dtype, "channels last" in name, capability=capability, **sizes, **around)


def check(launch: Launch, code: Code) -> None:
    assert ".local" not in code.ptx
    assert code.stack == 0, f"{code.stack} bytes of registers are spilled"
    assert code.shared <= SHARED
    # What gathers the sums of scale and offset reads a column of them, a sector at a time.
    if launch.name != "gather":
        assert code.widest("ld").startswith(("v4", "v2.b64"))
    if launch.name in ("forward", "apply", "backward", "project", "project_shared"):
        assert code.widest("st").startswith("v4")


@everywhere
@pytest.mark.parametrize("name", CASES)
def test_code(name, capability):
    for launch in launches_of(name, capability):
        check(launch, compiled(launch, capability))


ALL = {"residual": True, "modulation": True}
# The same with something around: what fills the registers most, each way to cut, and what was spilled once.
AROUND = (
    ("layer, rows of 1024, half", {**ALL, "activation": "relu"}),
    ("layer, rows of 8192", {**ALL, "activation": "gelu"}),
    ("layer, rows of 16384", {"modulation": True}),
    ("layer, rows of 16384", {"residual": True, "activation": "gelu"}),
    ("layer, rows of 16384", {"modulation": True, "activation": "gelu"}),
    ("layer, rows of 24576", {"modulation": True}),
    ("layer, rows of 32768, half", {"residual": True}),
    ("layer, rows of 65536", {"modulation": True, "activation": "gelu"}),
    ("layer, channels first", {**ALL, "activation": "silu"}),
    ("layer, channels first", {"activation": "gelu_tanh"}),
    ("layer, many channels first", {**ALL, "activation": "silu"}),
    ("group, channels first, held", {**ALL, "activation": "silu"}),
    ("group, channels first, 80 KB", {"activation": "silu"}),
    ("group, channels first, cut", {"activation": "silu"}),
    ("group, channels last, half", {**ALL, "activation": "gelu_tanh"}),
)
around = pytest.mark.parametrize(
    ("name", "words"), AROUND, ids=[f"{name}, {' '.join(map(str, words.values()))}" for name, words in AROUND]
)


@everywhere
@around
def test_code_with_something_around(name, words, capability):
    for launch in launches_of(name, capability, **words):
        check(launch, compiled(launch, capability))


@around
def test_what_is_around_needs_no_launch_of_its_own(name, words):
    one, other = launches_of(name), launches_of(name, **words)
    assert [launch.name for launch in one] == [launch.name for launch in other]


# Plans that take other turns than those above.
OTHERS = {
    "RMS": ("... [c]", (4096, 1024), FLOAT, False, ("scale",)),
    "filter response": ("n [...] c", (16, 56, 56, 64), HALF, False, ("scale",)),
    "mean only": ("[...] c", (16, 56, 56, 64), FLOAT, False, ("mean",)),
    "weight standardization": ("[h w i] o", (3, 3, 512, 512), FLOAT),
    "one row of one element": ("n [c]", (1, 1), FLOAT),
}


@everywhere
@pytest.mark.parametrize("name", OTHERS)
def test_other_plans_and_calls_compile(name, capability):
    plan, x, scale, offset = arrays(*OTHERS[name])
    launches = launched(*OTHERS[name], capability=capability)
    with recorded(capability) as more:
        mean, variance = door.moments(x, plan)
        door.apply(x, mean, variance, scale, offset, plan, 1e-5, gradient=True)
    for launch in [*launches, *more]:
        assert compiled(launch, capability).stack == 0


class NoDriver:
    """Of a device that nothing is launched on."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["layer, rows of 1152", "group, channels last, half"])
def test_triton_takes_the_arguments_as_these_tests_do(name, monkeypatch):
    """What its own launcher makes of them up to the launch; without a warning."""
    launches = launches_of(name)
    monkeypatch.setattr(driver, "_active", NoDriver())
    for launch in launches:
        built = launch.kernel.warmup(
            **launch.arguments, grid=launch.grid, num_warps=launch.warps, enable_fp_fusion=True
        )
        assert built.src.signature == launch.source.signature
        assert built.src.constants == launch.source.constants
        assert {i: facts for i, facts in built.src.attrs.items() if facts} == launch.source.attrs
        assert built.metadata.num_warps == launch.warps


def test_a_spill_is_seen():
    """Of a row in half the registers that it needs."""
    launch = launches_of("layer, rows of 8192")[0]
    with pytest.raises(AssertionError, match="spilled"):
        check(launch, compiled(launch, 90, maxnreg=48))


def test_narrow_loads_are_seen():
    """A row whose length is odd begins at any element."""
    launch = launched("... [c]", (4096, 1023), FLOAT)[0]
    with pytest.raises(AssertionError):
        check(launch, compiled(launch, 90))


@pytest.mark.parametrize("name", CASES)
def test_launches(name):
    """At most two forward and three backward, of an array of 50 MB and more, with four programs for each processor."""
    launches = launches_of(name)
    names = [launch.name for launch in launches]
    forward = names[: 1 if names[0] == "forward" else 2]
    assert forward in (["forward"], ["statistics", "apply"])
    assert len(names) - len(forward) <= 3
    for launch in launches:
        if launch.name not in ("gather", "backward"):
            assert launch.grid[0] >= 4 * 132, (launch.name, launch.grid)


def test_very_many_samples_have_sums_beyond_two_to_the_31():
    """Each has a row of them where it has a shift and a gain, and where that begins takes 64 bits."""
    launches = launched("n [c]", (2**20 + 1, 2048), HALF, modulation=True)
    (source,) = (launch.source for launch in launches if launch.name == "backward")
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True}).asm["ttir"]
    assert re.findall(r"tt\.addptr %sums_at, .*, (i\d+)", code) == ["i64"]


@pytest.mark.parametrize(("one", "other"), [((4096, 1024), (8192, 1024)), ((48, 1024), (4095, 1024))])
def test_another_batch_needs_no_other_code(one, other):
    """But for whether its length is a multiple of 16, which Triton looks at."""
    assert launched("... [c]", one, FLOAT) == launched("... [c]", other, FLOAT) or one[0] % 16 != other[0] % 16
