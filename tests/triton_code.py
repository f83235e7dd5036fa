"""Which Triton kernels a normalization launches, and what a GPU's compiler makes of them; no GPU is needed."""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from anynorm import NormSpec
from anynorm.kernels.triton import torch as door
from anynorm.kernels.triton.table import Device
from anynorm.ops.torch_choice import plan_of
from anynorm.plan import Plan

POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass
class Launch:
    """One kernel as it would be launched."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @cached_property
    def source(self) -> ASTSource:
        """As Triton makes it of the arguments: what is 1 is a constant, multiples of 16 are known as such."""
        signature, constants, facts = {}, {}, {}
        for i, (name, parameter) in enumerate(zip(self.kernel.arg_names, self.kernel.params, strict=True)):
            value = self.arguments[name]
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                signature[name], constants[(i,)] = "constexpr", value
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                is_tensor = isinstance(value, torch.Tensor)
                signature[name] = POINTERS[value.dtype] if is_tensor else "i32" if value < 2**31 else "i64"
                if is_tensor or value % 16 == 0:
                    facts[(i,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, facts)

    def __hash__(self) -> int:
        return hash(self._code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Launch) and self._code == other._code

    @cached_property
    def _code(self) -> str:
        """What its code depends on."""
        return repr((self.name, self.warps, self.source.signature, self.source.constants, self.source.attrs))


@contextmanager
def recorded(capability: int = 90) -> Iterator[list[Launch]]:
    """The launches, none of which takes place."""
    found: list[Launch] = []

    def noted(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, num_warps: int, **options: Any) -> None:
        assert options.pop("enable_fp_fusion") is True
        found.append(Launch(self, grid, dict(zip(self.arg_names, arguments, strict=False)) | options, num_warps))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", noted)
        patch.setattr(door, "_device", lambda device: Device(132, capability // 10))
        yield found


def arrays(
    pattern: str, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False,
    remove: tuple[str, ...] = ("mean", "scale"), **sizes: int,
) -> tuple[Plan, torch.Tensor, Any, Any]:  # fmt: skip
    """The plan, x, scale and offset; the tensors have no memory."""
    spec = NormSpec.of(pattern, remove=remove, **sizes)
    x = torch.empty(shape, dtype=dtype, device="meta")
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    plan = plan_of(x, spec)
    scale, offset = (torch.empty(plan.affine.shape, device="meta") if spec.affine else None for _ in range(2))
    return plan, x, scale, offset


def launched(
    *of: Any, capability: int = 90, residual: bool = False, modulation: bool = False, activation: str | None = None,
    **how: Any,
) -> list[Launch]:  # fmt: skip
    """The launches of both passes, forward first."""
    plan, x, scale, offset = arrays(*of, **how)
    vectors = torch.empty(x.shape[0], 2 * math.prod(plan.affine.shape), dtype=x.dtype, device="meta")
    pair = vectors.chunk(2, dim=1) if modulation else (None, None)
    around = door.Around(torch.empty_like(x) if residual else None, *pair, activation)
    with recorded(capability) as found:
        y, total, _, _, saved = door.fused_forward(x, scale, offset, plan, 1e-5, around, statistics=False)
        around = door.Around(None, *pair, activation)
        door.fused_backward(x if total is None else total, y, total, scale, offset, saved, plan, 1e-5, around)
    return found


@dataclass
class Code:
    """What the compiler says of a kernel: its PTX, bytes of shared memory, and what went to local memory."""

    ptx: str
    shared: int
    registers: int
    stack: int

    def widest(self, what: str) -> str:
        """The widest access to global memory: "v4.b32" is 16 bytes a thread."""
        return max(re.findall(rf"{what}\.global\.([v\d.b]+)", self.ptx), key=lambda kind: ("v4" in kind, "v2" in kind))


@lru_cache(maxsize=4096)
def compiled(launch: Launch, capability: int, **options: int) -> Code:
    """Once for all launches of the same code: many cases gather their sums alike."""
    built = triton.compile(
        launch.source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.warps, "enable_fp_fusion": True, **options},
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(built.asm["cubin"])
        said = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True)
    registers, stack, local = (int(re.search(rf"{n}:(\d+)", said.stdout)[1]) for n in ("REG", "STACK", "LOCAL"))  # type: ignore
    return Code(built.asm["ptx"], built.metadata.shared, registers, stack + local)


def main() -> None:
    """Every length of a row's tile: what no test has the time for."""
    import sys

    for dtype in (torch.float32, torch.bfloat16):
        seen = set()
        for half in (2**k for k in range(4, 15)):
            for tail in (half // 8, half // 4, half // 2, half):
                for launch in launched("... [c]", (4096, half + tail), dtype, capability=int(sys.argv[1])):
                    if launch in seen:
                        continue
                    seen.add(launch)
                    code = compiled(launch, int(sys.argv[1]))
                    print(
                        launch.name, half + tail, launch.arguments.get("PARTS"), dtype, launch.warps, code.registers,
                        code.stack, code.shared, code.widest("ld"), code.widest("st"), flush=True,
                    )  # fmt: skip


if __name__ == "__main__":
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
    main()
