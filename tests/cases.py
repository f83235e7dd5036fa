"""The one table of cases for tests: sentences and shapes. That of the speed benchmark is benchmarks/shapes.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anynorm import NormSpec
from anynorm.plan import Plan, plan
from anynorm.reference import Reference

BOTH = ("mean", "scale")


@dataclass(frozen=True)
class Case:
    """One normalization of one shape.

    Attributes:
        pattern, affine, remove, sizes: the sentence.
        shape: lengths are distinct and coprime unless an axis mix-up could hide behind that.
    """

    name: str
    pattern: str
    shape: tuple[int, ...]
    affine: str | None = None
    remove: tuple[str, ...] = BOTH
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def spec(self) -> NormSpec:
        return NormSpec.of(self.pattern, affine=self.affine, remove=self.remove, **self.sizes)

    @property
    def plan(self) -> Plan:
        return plan(self.spec, self.shape)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `anynorm.normalize` takes besides arrays."""
        return {"pattern": self.pattern, "affine": self.affine, "remove": self.remove, **self.sizes}

    def parameters(self, rng: np.random.Generator) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Random scale and offset, or None where the sentence has no affine axes."""
        if self.spec.affine is None:
            return None, None
        shape = self.plan.affine.shape
        scale = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
        return scale.astype(np.float32), rng.normal(size=shape).astype(np.float32)

    def reference(
        self, x: Any, scale: Any = None, offset: Any = None, *, eps: float = 1e-5, mask: Any = None
    ) -> Reference:
        return Reference(
            x,
            self.pattern,
            scale,
            offset,
            affine=self.affine if self.affine is not None else str(self.spec.affine or ""),
            eps=eps,
            remove=self.remove,
            mask=mask,
            **self.sizes,
        )


CASES = (
    Case("group, channels last", "n [...] (g [c])", (3, 5, 7, 12), sizes={"g": 4}),
    Case("group, channels first", "n (g [c]) [...]", (3, 12, 5, 7), sizes={"g": 4}),
    Case("group, the tutorial's", "n [...] (g [c])", (2, 6, 6, 10), sizes={"g": 5}),
    Case("group, channels in the middle", "n [a] (g [c]) [b]", (2, 5, 6, 7), sizes={"g": 3}),
    Case("group, one", "n [...] (g [c])", (3, 5, 7, 4), sizes={"g": 1}),
    Case("group, every channel", "n [...] (g [c])", (3, 5, 7, 4), sizes={"g": 4}),
    Case("group, equal lengths", "n [...] (g [c])", (4, 4, 4, 4), sizes={"g": 2}),
    Case("group, affine per group", "n [...] (g [c])", (3, 5, 7, 12), affine="g", sizes={"g": 4}),
    Case("group, affine within a group", "n [...] (g [c])", (3, 5, 7, 12), affine="c", sizes={"g": 4}),
    Case("instance, channels last", "n [...] c", (3, 5, 7, 11)),
    Case("instance, channels first", "n c [...]", (3, 11, 5, 7)),
    Case("layer, last axis", "... [c]", (3, 5, 13)),
    Case("layer, short rows", "... [c]", (17, 3)),
    Case("layer, the tutorial's", "n [h] w c", (3, 5, 7, 2), affine="h"),
    Case("layer, equal lengths", "n [h] w c", (4, 4, 4, 4), affine="h"),
    Case("layer, two axes", "n [h w] c", (3, 5, 7, 2), affine="h w"),
    Case("layer, apart axes", "[a] n [c]", (5, 3, 7), affine="a c"),
    Case("layer, a whole sample", "n [...]", (3, 5, 7), affine="..."),
    Case("layer, channels first", "n [c] ...", (3, 13, 5, 7)),
    Case("batch, channels last", "[...] c", (5, 3, 7, 2)),
    Case("batch, channels first", "[n] c [...]", (5, 2, 3, 7)),
    Case("RMS, last axis", "... [c]", (3, 5, 13), remove=("scale",)),
    Case("RMS, first axis", "[c] ...", (13, 3, 5), remove=("scale",)),
    Case("filter response", "n [...] c", (3, 5, 7, 2), remove=("scale",)),
    Case("mean only", "[...] c", (5, 3, 7, 2), remove=("mean",)),
    Case("weight standardization", "[h w i] o", (3, 3, 5, 7)),
    Case("one dimension", "[c]", (29,)),
    Case("many dimensions", "a [b] c [d] e [f]", (2, 3, 2, 5, 3, 2), affine="b e"),
)

BY_NAME = {case.name: case for case in CASES}
