"""Recurrent cells with layer normalization inside, for `keras.layers.RNN`."""

from __future__ import annotations

from typing import Any

import keras

from ..plan import Shape
from .base import Tensor
from .layer import LayerNormalization


class Norms:
    """What the two cells share: the arguments of their norms, and making and building these."""

    norm_gamma_initializer: Any
    norm_beta_initializer: Any
    norm_epsilon: float

    def set_norms(self, gamma_initializer: Any, beta_initializer: Any, epsilon: float) -> None:
        self.norm_gamma_initializer = keras.initializers.get(gamma_initializer)
        self.norm_beta_initializer = keras.initializers.get(beta_initializer)
        self.norm_epsilon = epsilon

    def norm(self, name: str) -> LayerNormalization:
        """A norm that draws its own initial numbers, and whose types are those of the cell."""
        gamma, beta = (i.clone() for i in (self.norm_gamma_initializer, self.norm_beta_initializer))
        return LayerNormalization(
            epsilon=self.norm_epsilon,
            gamma_initializer=gamma,
            beta_initializer=beta,
            name=name,
            dtype=self.dtype_policy,  # type: ignore[attr-defined]
        )

    def norm_config(self) -> dict[str, Any]:
        return {
            "norm_gamma_initializer": keras.initializers.serialize(self.norm_gamma_initializer),
            "norm_beta_initializer": keras.initializers.serialize(self.norm_beta_initializer),
            "norm_epsilon": self.norm_epsilon,
        }

    def dropped(self, inputs: Tensor, h: Tensor, training: bool | None) -> tuple[Tensor, Tensor]:
        """Inputs and state with dropout; one mask serves all gates and all steps."""
        if training and 0.0 < self.dropout < 1.0:  # type: ignore[attr-defined]
            inputs = inputs * _first(self.get_dropout_mask(inputs))  # type: ignore[attr-defined]
        if training and 0.0 < self.recurrent_dropout < 1.0:  # type: ignore[attr-defined]
            h = h * _first(self.get_recurrent_dropout_mask(h))  # type: ignore[attr-defined]
        return inputs, h


def _first(masks: Any) -> Tensor:
    """Keras makes one mask, or one a gate in a list."""
    return masks[0] if isinstance(masks, list) else masks


@keras.saving.register_keras_serializable("anynorm")
class LayerNormLSTMCell(Norms, keras.layers.LSTMCell):
    """LSTM cell with layer normalization before the gates and of the new memory.

        i, f, g, o = LN(x kernel) + LN(h recurrent_kernel) + bias
        c' = LN(sigmoid(f) * c + sigmoid(i) * tanh(g))
        h' = sigmoid(o) * tanh(c')

    TensorFlow Addons carries the normalized c' to the next step, and this cell does too. The paper (its equations 20
    to 22) normalizes c only on its way into h: `normalize_carry=False`.

    Sources: Ba et al. 2016, arXiv:1607.06450; recurrent dropout: Semeniuta et al. 2016, arXiv:1603.05118.

    Args:
        units, activation, recurrent_activation, use_bias, kernel_initializer, recurrent_initializer, bias_initializer,
            unit_forget_bias, kernel_regularizer, recurrent_regularizer, bias_regularizer, kernel_constraint,
            recurrent_constraint, bias_constraint, dropout, recurrent_dropout: as for `keras.layers.LSTMCell`.
        norm_gamma_initializer, norm_beta_initializer, norm_epsilon: of the three norms.
        normalize_carry: whether the memory that is carried on is the normalized one.
        **kwargs: of `keras.layers.LSTMCell`, such as `name`, `seed` and `dtype`.

    Call arguments and result: those of `keras.layers.LSTMCell`.

    >>> import numpy as np
    >>> from anynorm.keras import LayerNormLSTMCell
    >>> layer = keras.layers.RNN(LayerNormLSTMCell(5), return_sequences=True)
    >>> tuple(layer(np.ones((4, 7, 3), "float32")).shape)
    (4, 7, 5)
    """

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        norm_gamma_initializer: Any = "ones",
        norm_beta_initializer: Any = "zeros",
        norm_epsilon: float = 1e-3,
        normalize_carry: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            unit_forget_bias=unit_forget_bias,
            kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            **kwargs,
        )
        self.set_norms(norm_gamma_initializer, norm_beta_initializer, norm_epsilon)
        self.normalize_carry = normalize_carry
        self.kernel_norm = self.norm("kernel_norm")
        self.recurrent_norm = self.norm("recurrent_norm")
        self.state_norm = self.norm("state_norm")

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.kernel_norm.build((None, 4 * self.units))
        self.recurrent_norm.build((None, 4 * self.units))
        self.state_norm.build((None, self.units))

    def call(self, inputs: Tensor, states: Any, training: bool | None = False) -> Any:
        inputs, h = self.dropped(inputs, states[0], training)
        z = self.kernel_norm(keras.ops.matmul(inputs, self.kernel))
        z = z + self.recurrent_norm(keras.ops.matmul(h, self.recurrent_kernel))
        if self.use_bias:
            z = z + self.bias
        i, f, g, o = keras.ops.split(z, 4, axis=1)
        carry = self.recurrent_activation(f) * states[1] + self.recurrent_activation(i) * self.activation(g)
        normalized = self.state_norm(carry)
        h = self.recurrent_activation(o) * self.activation(normalized)
        return h, [h, normalized if self.normalize_carry else carry]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.norm_config(), "normalize_carry": self.normalize_carry}


@keras.saving.register_keras_serializable("anynorm")
class LayerNormGRUCell(Norms, keras.layers.GRUCell):
    """GRU cell with layer normalization before the gates and inside the candidate.

        z, r = sigmoid(LN(x kernel_zr) + LN(h recurrent_kernel_zr) + bias_zr)
        h^ = tanh(LN(x kernel_h) + r * LN(h recurrent_kernel_h) + bias_h)
        h' = z * h + (1 - z) * h^

    These are the paper's equations 27 to 29 with the gate z as Keras has it: where the paper writes 1 - z, Keras writes
    z, so that kernels of `keras.layers.GRU(reset_after=True)` fit.

    Source: Ba et al. 2016, arXiv:1607.06450.

    Args:
        units, activation, recurrent_activation, use_bias, kernel_initializer, recurrent_initializer, bias_initializer,
            kernel_regularizer, recurrent_regularizer, bias_regularizer, kernel_constraint, recurrent_constraint,
            bias_constraint, dropout, recurrent_dropout, seed: as for `keras.layers.GRUCell`, in its order.
        reset_after: there for that order; the reset gate is always applied after the product, as in the paper, but
            with one bias, so that True, which gives Keras's cell two, is an error.
        norm_gamma_initializer, norm_beta_initializer, norm_epsilon: of the four norms.
        **kwargs: of `keras.layers.GRUCell`, such as `name` and `dtype`.

    Call arguments and result: those of `keras.layers.GRUCell`.

    >>> import numpy as np
    >>> from anynorm.keras import LayerNormGRUCell
    >>> layer = keras.layers.RNN(LayerNormGRUCell(5))
    >>> tuple(layer(np.ones((4, 7, 3), "float32")).shape)
    (4, 5)
    """

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        reset_after: bool = False,
        seed: int | None = None,
        norm_gamma_initializer: Any = "ones",
        norm_beta_initializer: Any = "zeros",
        norm_epsilon: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            reset_after=False,
            seed=seed,
            **kwargs,
        )
        if reset_after:
            raise ValueError(f"{type(self).__name__} has one bias: leave reset_after out, it is applied after anyway")
        self.set_norms(norm_gamma_initializer, norm_beta_initializer, norm_epsilon)
        self.kernel_norm = self.norm("kernel_norm")
        self.recurrent_norm = self.norm("recurrent_norm")
        self.candidate_norm = self.norm("candidate_norm")
        self.candidate_recurrent_norm = self.norm("candidate_recurrent_norm")

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        for norm, width in (
            (self.kernel_norm, 2),
            (self.recurrent_norm, 2),
            (self.candidate_norm, 1),
            (self.candidate_recurrent_norm, 1),
        ):
            norm.build((None, width * self.units))

    def call(self, inputs: Tensor, states: Any, training: bool | None = False) -> Any:
        h = states[0] if isinstance(states, list | tuple) else states
        inputs, h_dropped = self.dropped(inputs, h, training)
        cut = 2 * self.units
        x = keras.ops.matmul(inputs, self.kernel)
        recurrent = keras.ops.matmul(h_dropped, self.recurrent_kernel)
        gates = self.kernel_norm(x[:, :cut]) + self.recurrent_norm(recurrent[:, :cut])
        candidate = self.candidate_norm(x[:, cut:])
        if self.use_bias:
            gates, candidate = gates + self.bias[:cut], candidate + self.bias[cut:]
        z, r = keras.ops.split(self.recurrent_activation(gates), 2, axis=1)
        candidate = self.activation(candidate + r * self.candidate_recurrent_norm(recurrent[:, cut:]))
        new = z * h + (1 - z) * candidate
        return new, [new] if isinstance(states, list | tuple) else new

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.norm_config()}
