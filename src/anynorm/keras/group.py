"""Group and instance normalization."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from ..catalogue import group, normalized_axes
from ..plan import Shape
from ..spec import NormSpec
from .base import AffineLayer, checked_axis, plain


@keras.saving.register_keras_serializable("anynorm")
class GroupNormalization(AffineLayer):
    """Group normalization: the channels of a group, at all positions of a sample, share one mean and variance.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    Statistics of float16, bfloat16 and float32 input are float32 and good to 1e-6 of the standard deviation at offsets
    to 1e6. A sample's result does not depend on its neighbours in the batch.

    Source: Wu, He 2018, arXiv:1803.08494.

    Args:
        groups: into how many groups the channels are split; -1 makes every channel a group of its own.
        axis: the channel axis. Of several, the first is split into groups, and the others lie within the group.
        epsilon: added to the variance.
        center, scale: whether there is a beta, a gamma; both have the length of the channel axis.
        beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint:
            as for any Keras layer.
        **kwargs: of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: floating-point tensor (batch, ...) of any rank; only the channel axis has to be known when built.
        mask: true where an element enters the statistics. It broadcasts to the input, or lacks its channel axis, or
            has only leading dimensions of it. A mask that comes with the input is used.

    Returns:
        A tensor of the input's shape and the layer's compute dtype.

    Raises:
        ValueError: groups that do not divide the channels; an axis out of range, named twice or the batch's; channels
            of unknown number; an epsilon that is negative or not finite; a mask that does not broadcast.
        TypeError: an input of integers.

    >>> import numpy as np
    >>> from anynorm.keras import GroupNormalization
    >>> layer = GroupNormalization(groups=3)
    >>> tuple(layer(np.ones((4, 8, 8, 6), "float32")).shape)
    (4, 8, 8, 6)
    >>> [(w.name, tuple(w.shape)) for w in layer.weights]
    [('gamma', (6,)), ('beta', (6,))]
    """

    def __init__(
        self,
        groups: int = 32,
        axis: int | list[int] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            epsilon,
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            **kwargs,
        )
        if isinstance(groups, bool) or not isinstance(groups, int) or (groups < 1 and groups != -1):
            raise ValueError(f"groups must be a positive whole number, or -1 for one a channel, and it is {groups!r}")
        self.groups = groups
        self.axis = checked_axis(axis)

    def sentence(self, rank: int) -> NormSpec:
        return group(self.axis, rank, None if self.groups == -1 else self.groups)

    def mask_gap(self, rank: int) -> int:
        axes = normalized_axes(self.axis, rank)
        return axes[0] if len(axes) == 1 else rank - 1

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups, "axis": plain(self.axis)}


@keras.saving.register_keras_serializable("anynorm")
class InstanceNormalization(GroupNormalization):
    """Instance normalization: every channel of every sample has a mean and variance of its own.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    Arguments, types and errors are those of `GroupNormalization`, but for `groups`, which is always one a channel: the
    argument exists because TensorFlow Addons writes it into its configurations.

    Source: Ulyanov et al. 2016, arXiv:1607.08022.

    >>> import numpy as np
    >>> from anynorm.keras import InstanceNormalization
    >>> layer = InstanceNormalization(axis=1)
    >>> tuple(layer(np.ones((4, 6, 8, 8), "float32")).shape)
    (4, 6, 8, 8)
    """

    def __init__(
        self,
        axis: int | list[int] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        groups: int = -1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            groups,
            axis,
            epsilon,
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            **kwargs,
        )

    def sentence(self, rank: int) -> NormSpec:
        return group(self.axis, rank, None)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        channels = input_shape[normalized_axes(self.axis, len(input_shape))[0]]
        if self.groups not in (-1, channels):
            warnings.warn(
                f"groups={self.groups} is ignored: instance normalization has one group a channel; for {self.groups} "
                "groups use GroupNormalization",
                stacklevel=2,
            )
