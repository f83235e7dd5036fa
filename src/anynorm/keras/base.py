"""What the Keras layers share: from an input to a sentence and its parameters. The arithmetic is in `anynorm.ops`."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import keras

from .. import ops
from ..ops.checks import check_mask, written
from ..plan import Plan, Shape
from ..plan import plan as make_plan
from ..precision import checked_eps, statistics_dtype
from ..spec import NormSpec

Tensor = Any
BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}


class SentenceLayer(keras.layers.Layer):
    """A layer that normalizes as a sentence says; the subclass writes the sentence for an input's rank."""

    def __init__(self, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = checked_eps(epsilon)
        self.supports_masking = True
        # The statistics see the input as it came: cast to float16 beforehand, 70000 would be infinite.
        self.autocast = False
        self._parameter_shape: Shape | None = None
        self._warned = False

    def sentence(self, rank: int) -> NormSpec:
        """The sentence for an input of `rank` dimensions."""
        raise NotImplementedError(f"{type(self).__name__} has to say its sentence")

    def mask_gap(self, rank: int) -> int:
        """The dimension that a mask with one dimension less than the input lacks."""
        return rank - 1

    def fix_parameter_shape(self, input_shape: Shape) -> Shape:
        """The shape of the parameters, which from now on every input has to fit."""
        shape = make_plan(self.sentence(len(input_shape)), tuple(input_shape)).affine.shape
        if None in shape:
            raise ValueError(
                f"{self.name} has parameters over axes of length {written(shape)}, and an input of shape "
                f"{written(tuple(input_shape))} leaves one unknown; declare it in the input's shape"
            )
        self._parameter_shape = shape
        return shape

    def enter(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, NormSpec, ModuleType]:
        """The input in the wider of its own and the layer's type, the mask aligned with it, sentence and operations."""
        module = ops.of(x)
        dtype = module.dtype(x)
        spec = self.checked_spec(dtype, module.shape(x))
        x = cast(x, wider(dtype, self.compute_dtype), module)
        return x, self._aligned(mask, x, module), spec, module

    def normalize(self, x: Tensor, scale: Any, offset: Any, mask: Tensor | None) -> Tensor:
        """The whole of `call` for a layer without state."""
        x, mask, spec, module = self.enter(x, mask)
        self.warn_if_nothing_is_left(spec, module.shape(x))
        scale, offset = tensors(x, module, scale, offset)
        y, _, _ = module.normalize(x, scale, offset, mask, spec, self.epsilon, statistics=False)
        return self.leave(y, module)

    def leave(self, y: Tensor, module: ModuleType) -> Tensor:
        return cast(y, self.compute_dtype, module)

    def checked_spec(self, dtype: str, shape: Shape) -> NormSpec:
        """The sentence for a tensor, actual or symbolic; raises where type, shape or parameters do not fit."""
        statistics_dtype(dtype)
        spec, plan = self._plan(shape)
        if self._parameter_shape is not None and not fits(plan.affine.shape, self._parameter_shape):
            raise ValueError(
                f"{self.name} was built with parameters of shape {written(self._parameter_shape)}, and an input of "
                f"shape {written(shape)} needs {written(plan.affine.shape)}"
            )
        return spec

    def warn_if_nothing_is_left(self, spec: NormSpec, shape: Shape) -> None:
        """Not an error: Keras answers with zeros, and old models may rely on it."""
        plan = make_plan(spec, shape)
        if plan.count == 1 and plan.removes_mean and not self._warned:
            self._warned = True
            warnings.warn(
                f"each statistic of {self.name} is over one element of an input of shape {written(shape)}, so "
                "that nothing of the input is left; use fewer groups, other axes or a larger batch",
                stacklevel=2,
            )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        self._plan(tuple(input_shape))
        return tuple(input_shape)

    def compute_output_spec(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.checked_spec(keras.backend.standardize_dtype(inputs.dtype), tuple(inputs.shape))
        return keras.KerasTensor(tuple(inputs.shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}

    def _plan(self, shape: Shape) -> tuple[NormSpec, Plan]:
        spec = self.sentence(len(shape))
        return spec, make_plan(spec, shape)

    def _aligned(self, mask: Tensor | None, x: Tensor, module: ModuleType) -> Tensor | None:
        """The mask's dimensions are x's leading ones, but that it may lack the channels wherever they are."""
        if mask is None:
            return None
        mask = keras.ops.cast(keras.ops.convert_to_tensor(mask), "bool")
        rank = len(x.shape)
        if len(mask.shape) == rank - 1:
            mask = keras.ops.expand_dims(mask, self.mask_gap(rank))
        while len(mask.shape) < rank:
            mask = keras.ops.expand_dims(mask, -1)
        check_mask(module, x, mask)
        return mask


class AffineLayer(SentenceLayer):
    """A layer with a gamma and a beta that can be left out, initialized, regularized and constrained."""

    def __init__(
        self,
        epsilon: float,
        center: bool,
        scale: bool,
        beta_initializer: Any,
        gamma_initializer: Any,
        beta_regularizer: Any,
        gamma_regularizer: Any,
        beta_constraint: Any,
        gamma_constraint: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon, **kwargs)
        self.center = center
        self.scale = scale
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.gamma: Any = None
        self.beta: Any = None

    @property
    def has_gamma(self) -> bool:
        return self.scale

    @property
    def has_beta(self) -> bool:
        return self.center

    def parameter_shape(self, input_shape: Shape) -> Shape:
        """The shape of gamma and beta as they are stored."""
        return self.fix_parameter_shape(input_shape)

    def build(self, input_shape: Shape) -> None:
        self.compute_output_shape(input_shape)
        if self.has_gamma:
            self.gamma = self.add_weight(
                name="gamma",
                shape=self.parameter_shape(input_shape),
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.has_beta:
            self.beta = self.add_weight(
                name="beta",
                shape=self.parameter_shape(input_shape),
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.normalize(inputs, self.gamma, self.beta, mask)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": keras.initializers.serialize(self.beta_initializer),
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
            "beta_regularizer": keras.regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": keras.regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": keras.constraints.serialize(self.beta_constraint),
            "gamma_constraint": keras.constraints.serialize(self.gamma_constraint),
        }


def checked_axis(axis: int | Iterable[int]) -> int | list[int]:
    """One axis or several, as whole numbers."""
    try:
        if isinstance(axis, list | tuple):
            return [operator.index(a) for a in axis]
        return operator.index(axis)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"axis must be a whole number or a list of whole numbers, not {axis!r}") from None


def plain(axis: int | list[int]) -> int | list[int]:
    """An axis argument for a configuration: Keras keeps lists in a type of its own."""
    return axis if isinstance(axis, int) else list(axis)


def tensors(x: Tensor, module: ModuleType, *variables: Any) -> list[Tensor | None]:
    """The values of variables, or of tensors, where x is.

    Keras's own conversion takes a small layer's time, and may hand back the variable itself, which is no tensor.
    """
    values = (v.value if isinstance(v, keras.Variable) else v for v in variables)
    return [None if v is None else module.convert(v, x) for v in values]


def cast(x: Tensor, dtype: str, module: ModuleType) -> Tensor:
    """x in another type, or x itself: for Keras to find that out takes as long as the arithmetic of a small layer."""
    return x if module.dtype(x) == dtype else keras.ops.cast(x, dtype)


def wider(a: str, b: str) -> str:
    """The type that holds both; Keras's own rule takes float32 for float32 and float64 on some backends.

    >>> wider("float32", "float64"), wider("float16", "bfloat16")
    ('float64', 'float32')
    """
    if a == b:
        return a
    return max(a, b, "float32" if BITS[a] == BITS[b] else a, key=BITS.__getitem__)


def fits(shape: Shape, fixed: Shape) -> bool:
    return shape == fixed or (
        len(shape) == len(fixed) and all(n in (None, m) for n, m in zip(shape, fixed, strict=True))
    )
