"""Normalization modules for Flax NNX.

The classes are subclasses of `flax.nnx`'s of the same name: constructors, parameter names and states are theirs, so
that a state moves both ways and `isinstance` tests hold. What they compute keeps anynorm's precision, in both modes of
differentiation and under every transformation. Importing this module imports JAX and Flax.

What differs from Flax on purpose:

- `use_fast_variance` has no effect: the variance is always the accurate one.
- With `dtype` narrower than the input, the statistics see the input before it is cast, and the result is cast once.
- Across devices (`axis_name`) every part weighs as many elements as it has under its `mask`.
- A mask need not have the channels' length in `GroupNorm`; elements where it is false may be NaN.
- A wrong number of features, an axis named twice and a mask of numbers are errors, and a warning says that every
  statistic is over one element, also under a mask whose values are known: a traced one's are not.

Take second derivatives by `jax.hessian`, which is forward over reverse mode. `jax.jacrev(jax.jacfwd(f))` may be wrong
on CPUs: XLA in JAX 0.10.2 makes wrong programs of some products of broadcast arrays, in which nothing need be ours, as
`jax.jit(lambda c, a, b, r: (a * (c[:, :, None, None] * b)).sum(-1)[..., None] * r)` shows with the shapes (48, 96),
(96, 12, 8), (12, 8) and (96, 12, 1).

`jax.export` writes a program of JAX's own operations, which runs without anynorm, and not the kernels that serve here.
"""

from .batch import BatchNorm
from .group import GroupNorm, InstanceNorm
from .layer import LayerNorm, RMSNorm
from .sentence import Norm

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "Norm", "RMSNorm"]
