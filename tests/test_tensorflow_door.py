"""The CPU kernels in TensorFlow: which way each context takes, errors, saved models."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from arrays import back, relative
from tensorflow.python.framework import op_callbacks
from tensorflow_runs import GROUP, SERVED, check, given, gradients, kinds, needs_door, open_batch
from test_normalize import seed

import anynorm
from anynorm.kernels.cpu import tensorflow as door
from anynorm.plan import plan

pytestmark = needs_door


# Which way is taken


def test_eager_takes_the_operation():
    seen = []
    callback = lambda kind, *_: seen.append(kind)  # noqa: E731
    x, scale, offset, dy = (tf.constant(a) for a in given(GROUP))
    op_callbacks.add_op_callback(callback)
    try:
        got = gradients(GROUP, x, scale, offset, dy)
    finally:
        op_callbacks.remove_op_callback(callback)
    assert {kind for kind in map(tf.compat.as_str, seen) if "norm" in kind} == {"AnynormForward", "AnynormBackward"}
    check(GROUP, got, x, scale, offset, dy, 1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_graph_takes_the_operation(known):
    x, scale, offset, dy = (tf.constant(a) for a in given(GROUP))
    shape = GROUP.shape if known else (None, None, None, 12)
    spec = tf.TensorSpec(shape)
    f = tf.function(lambda x, dy: gradients(GROUP, x, scale, offset, dy), input_signature=[spec, spec])
    concrete = f.get_concrete_function()
    assert kinds(concrete) == {"AnynormForward", "AnynormBackward"}
    assert concrete.structured_outputs[0].shape.as_list() == list(shape)
    assert concrete.structured_outputs[2].shape.as_list() == [12]
    check(GROUP, f(x, dy), x, scale, offset, dy, 1e-6)


def test_xla_takes_the_custom_call():
    x, scale, offset, dy = (tf.constant(a) for a in given(GROUP))
    f = tf.function(lambda x, dy: gradients(GROUP, x, scale, offset, dy), jit_compile=True)
    check(GROUP, f(x, dy), x, scale, offset, dy, 1e-6)
    assert kinds(f.get_concrete_function(x, dy)) == {"XlaCustomCallV2"}


def test_xla_with_an_open_batch_is_composed():
    x, *_ = (tf.constant(a) for a in given(GROUP))
    f = open_batch(lambda x: anynorm.normalize(x, **GROUP.arguments), jit_compile=True)
    assert kinds(f.get_concrete_function()) == set()
    relative(back(f(x)), GROUP.reference(x).y, 1e-6)


def test_a_function_within_a_compiled_one_serves_both():
    """TensorFlow traces it once, whoever calls it first."""
    x = tf.constant(given(GROUP)[0])
    inner = tf.function(lambda x: anynorm.normalize(x, **GROUP.arguments))
    outer = tf.function(lambda x: inner(x) * 1, jit_compile=True)
    relative(back(outer(x)), GROUP.reference(x).y, 1e-6)
    relative(back(inner(x)), GROUP.reference(x).y, 1e-6)
    assert kinds(inner.get_concrete_function(x)) == set()


def test_control_flow():
    x = tf.constant(given(GROUP)[0])

    def twice(x: Any) -> Any:
        return tf.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, anynorm.normalize(x, **GROUP.arguments)), (0, x))[
            1
        ]

    want = GROUP.reference(GROUP.reference(x).y).y
    for f in (twice, tf.function(twice), tf.function(twice, jit_compile=True)):
        relative(back(f(x)), want, 1e-6)


def test_gradient_taken_outside_of_the_compiled_function():
    x, scale, _, dy = (tf.constant(a) for a in given(GROUP))
    f = tf.function(lambda x: anynorm.normalize(x, scale=scale, **GROUP.arguments), jit_compile=True)
    with tf.GradientTape() as tape:
        tape.watch([x, scale])
        y = f(x)
    check(GROUP, [y, *tape.gradient(y, [x, scale], dy)], x, scale, None, dy, 1e-6)


def test_a_mask_is_composed():
    x = tf.constant(given(GROUP)[0])
    mask = tf.constant(seed("mask").uniform(size=GROUP.shape) < 0.7)
    f = tf.function(lambda x: anynorm.normalize(x, mask=mask, **GROUP.arguments))
    assert kinds(f.get_concrete_function(x)) == set()


# What goes wrong


def test_a_kernel_that_was_asked_for_and_cannot_run():
    f = lambda x: anynorm.normalize(x, kernel="cpu", **GROUP.arguments)  # noqa: E731
    with pytest.raises(ValueError, match="cannot run under jit_compile=True here: XLA needs to know"):
        open_batch(f, jit_compile=True).get_concrete_function()
    inner = tf.function(f)
    with pytest.raises(ValueError, match="it may have other callers"):
        tf.function(lambda x: inner(x), jit_compile=True)(tf.zeros(GROUP.shape))


def test_composed_where_asked_for():
    f = open_batch(lambda x: anynorm.normalize(x, kernel="composed", **GROUP.arguments))
    assert kinds(f.get_concrete_function()) == set()


def test_another_shape_than_planned():
    line = door.told(plan(GROUP.spec, (None, 5, 7, 12)), 1e-5)
    operations = door.register()
    with pytest.raises(tf.errors.InvalidArgumentError, match="anynorm: the array does not have the shape"):
        operations.anynorm_forward(tf.zeros((3, 5, 8, 12)), [], [], plan=line)
    with pytest.raises(tf.errors.InvalidArgumentError, match="anynorm: the array does not have the shape"):
        operations.anynorm_forward(tf.zeros(()), [], [], plan=line)
    with pytest.raises(tf.errors.InvalidArgumentError, match="anynorm: an input has another number of elements"):
        operations.anynorm_forward(tf.zeros((3, 5, 7, 12)), [tf.zeros(11)], [], plan=line)


@pytest.mark.parametrize(
    "line", ["", "kR", "kR 3 1e-5", "kR 3 x @0,64 @0", "kR 3 1e-5 @0,64,2 @0", "kR 3 1e-5 @0,-4 @0"]
)
def test_a_plan_that_is_none(line):
    with pytest.raises(tf.errors.InvalidArgumentError, match="is no plan of this version"):
        door.register().anynorm_forward(tf.zeros((2, 64)), [], [], plan=line)


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_told_and_read_again(case):
    made, eps = door.untold(door.told(case.plan, 1e-3), len(case.shape))
    assert (made.runs, eps) == (case.plan.runs, 1e-3)
    assert (made.removes_mean, made.removes_scale) == (case.plan.removes_mean, case.plan.removes_scale)


# Other processes


def python(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOAD = """
import sys, tensorflow as tf
x = tf.reshape(tf.range(12.0), (2, 6)) ** 2
print(tf.saved_model.load(sys.argv[2])(x).numpy().tolist())
try:
    tf.saved_model.load(sys.argv[1])
except Exception as error:
    assert "Op type not registered 'AnynormForward'" in str(error), error
else:
    raise AssertionError("that model has no operation of anynorm's")
assert "anynorm" not in sys.modules
from anynorm.kernels.cpu import tensorflow
tensorflow.register()
print(tf.saved_model.load(sys.argv[1])(x).numpy().tolist())
"""


def test_saved_model(tmp_path):
    """One with the operations needs anynorm, and says so; one made without the kernels loads anywhere."""

    class Module(tf.Module):
        def __init__(self, kernel: str) -> None:
            self.kernel = kernel

        @tf.function(input_signature=[tf.TensorSpec([None, 6])])
        def __call__(self, x: Any) -> Any:
            return anynorm.normalize(x, "n (g [c])", g=2, kernel=self.kernel)

    for kernel in ("cpu", "composed"):
        tf.saved_model.save(Module(kernel), str(tmp_path / kernel))
    x = (np.arange(12.0).reshape(2, 6) ** 2).astype(np.float32)
    want = anynorm.normalize(x, "n (g [c])", g=2)
    for line in python(LOAD, str(tmp_path / "cpu"), str(tmp_path / "composed")).splitlines():
        np.testing.assert_allclose(eval(line), want, atol=1e-5)
