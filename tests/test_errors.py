"""Bad input is refused in words that say what to do, on every framework."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from arrays import FRAMEWORKS, back, normalize, to

import anynorm
from anynorm import NormSpec, PatternError, catalogue
from anynorm.kernels.select import select
from anynorm.pattern import parse
from anynorm.plan import plan
from anynorm.precision import statistics_dtype

X = np.ones((2, 5, 7, 12), np.float32)
GROUP = "n [...] (g [c])"

frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("", "the pattern is empty", 0),
        ("   ", "the pattern is empty", 0),
        ("n [h w c", '"[" is never closed', 2),
        ("n (g [c]", '"(" is never closed', 2),
        ("n h] w", 'this "]" closes no "["', 3),
        ("n h) w", 'this ")" closes no "("', 3),
        ("n [h [w]] c", "square brackets do not nest", 5),
        ("n (g (c))", "parentheses do not nest", 5),
        ("n [(g c] )", "brackets and parentheses cross", 7),
        ("n ([g) c]", "brackets and parentheses cross", 5),
        ("n [] c", "no axis between these brackets", 2),
        ("n () [c]", "no axis between these parentheses", 2),
        ("n [h] c h", 'the axis "h" stands twice', 8),
        ("... [...] c", '"..." stands twice', 5),
        ("n (... [c])", '"..." cannot stand inside parentheses', 3),
        ("n [h] c!", '"!" cannot stand in a pattern', 7),
        ("n [.] c", "the ellipsis is three dots", 3),
        ("n [h] 8", "sizes are given apart, as in g=8", 6),
        ("n, [h] c", '"," cannot stand', 1),
    ],
)
def test_the_caret_stands_under_the_place(text, message, column):
    with pytest.raises(PatternError) as caught:
        parse(text)
    first, sentence, caret = str(caught.value).split("\n")
    assert message in first
    assert sentence == "    " + text
    assert caret == "    " + " " * column + "^"


@pytest.mark.parametrize(
    ("affine", "message", "column"),
    [
        ("q", '"q" is no axis of the pattern', 0),
        ("a  qb", '"qb" is no axis of the pattern', 3),
        ("ab a", "in the order of the pattern", 3),
        ("a a", "stands twice", 2),
        ("[a]", "takes no square brackets", 0),
        ("a [ab]", "takes no square brackets", 2),
        ("(a", "never closed", 0),
    ],
)
def test_the_caret_in_affine(affine, message, column):
    with pytest.raises(PatternError) as caught:
        NormSpec.of("n [a] ab", affine=affine)
    assert message in str(caught.value).split("\n")[0]
    assert str(caught.value).split("\n")[1:] == ["    " + affine, "    " + " " * column + "^"]


def test_a_pattern_that_marks_nothing():
    with pytest.raises(PatternError, match=r"no axis stands in square brackets.*mark some") as caught:
        NormSpec.of("n h w c")
    assert isinstance(caught.value, ValueError)


BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    # arguments of normalize besides x, the exception, what its message says
    ("groups that do not divide", {"pattern": GROUP, "g": 5}, ValueError,
     r"12 channels cannot be split as \"\(g c\)\" with g=5: the number of channels must be a multiple of the number "
     r"of groups; 12 is divisible by 1, 2, 3, 4, 6, 12"),
    ("more groups than channels", {"pattern": GROUP, "g": 24}, ValueError, "12 channels cannot be split"),
    ("groups not given", {"pattern": GROUP}, ValueError, "give all but one, as in g=8"),
    ("sizes that do not multiply", {"pattern": GROUP, "g": 4, "c": 5}, ValueError,
     "make 20, but that dimension has 12"),
    ("a size that is not the array's", {"pattern": "n [...] c", "c": 3}, ValueError, "c=3 was given.*has 12"),
    ("no groups", {"pattern": GROUP, "g": 0}, ValueError, "g=0 must be a positive whole number"),
    ("negative groups", {"pattern": GROUP, "g": -4}, ValueError, "g=-4 must be a positive whole number"),
    ("half a group", {"pattern": GROUP, "g": 4.0}, ValueError, r"g=4\.0 must be a positive whole number"),
    ("groups in words", {"pattern": GROUP, "g": "4"}, ValueError, "g='4' must be a positive whole number"),
    ("groups as a truth value", {"pattern": GROUP, "g": True}, ValueError, "g=True must be a positive whole number"),
    ("a size of no axis", {"pattern": "n [...] c", "groups": 4}, ValueError,
     r'groups=4 names no axis of "n \[...\] c"; its axes are n, ..., c'),
    ("rank too high", {"pattern": "n [h] c"}, ValueError, r'"n \[h\] c" describes an array of 3 dimensions.*has 4'),
    ("rank too low", {"pattern": "n a b d [...] c"}, ValueError, "at least 5 dimensions, and this one has 4"),
    ("pattern not a string", {"pattern": 4}, TypeError, "a pattern is a string such as"),
    ("scale of another length", {"pattern": GROUP, "g": 4, "scale": np.ones(4, "f")}, ValueError,
     r"scale must have the shape \(12,\) of the affine axes, and it has \(4,\)"),
    ("scale of another rank", {"pattern": GROUP, "g": 4, "scale": np.ones((1, 1, 1, 12), "f")}, ValueError,
     r"scale must have the shape \(12,\)"),
    ("a number for scale", {"pattern": GROUP, "g": 4, "scale": np.float32(2)}, ValueError, r"it has \(\)"),
    ("offset of another length", {"pattern": "n [h] w c", "affine": "h c", "offset": np.ones((12, 5), "f")}, ValueError,
     r"offset must have the shape \(5, 12\) of the affine axes, and it has \(12, 5\)"),
    ("a scale for no axis", {"pattern": "n [a] b d", "scale": np.ones(5, "f")}, ValueError,
     r'which axes of "n \[a\] b d" carry scale and offset\? Say affine='),
    ("affine wants no axis", {"pattern": "n [...] c", "affine": "", "scale": np.ones(12, "f")}, ValueError,
     "Say affine="),
    ("a mask that does not broadcast", {"pattern": "n [...] c", "mask": np.ones((5, 7), bool)}, ValueError,
     r"a mask of shape \(5, 7\) does not broadcast to \(2, 5, 7, 12\)"),
    ("a mask larger than x", {"pattern": "n [...] c", "mask": np.ones((1, 2, 5, 7, 12), bool)}, ValueError,
     "does not broadcast"),
    ("a mask of another length", {"pattern": "n [...] c", "mask": np.ones((2, 5, 7, 0), bool)}, ValueError,
     "does not broadcast"),
    ("a mask of numbers", {"pattern": "n [...] c", "mask": np.ones((2, 5, 7, 12), "f")}, TypeError,
     "the mask must be boolean, true where an element counts, and it is float32"),
    ("negative eps", {"pattern": "n [...] c", "eps": -1e-5}, ValueError, "finite and not negative.*1e-5 is usual"),
    ("eps is NaN", {"pattern": "n [...] c", "eps": float("nan")}, ValueError, "finite and not negative, and it is nan"),
    ("eps is infinite", {"pattern": "n [...] c", "eps": float("inf")}, ValueError, "finite and not negative"),
    ("eps in words", {"pattern": "n [...] c", "eps": "small"}, TypeError, "eps must be a number, not 'small'"),
    ("no eps", {"pattern": "n [...] c", "eps": None}, TypeError, "eps must be a number, not None"),
    ("a moment that is none", {"pattern": "n [...] c", "remove": "variance"}, ValueError,
     r"""remove takes "mean", "scale" or both, not \('variance',\)"""),
    ("one moment that is none", {"pattern": "n [...] c", "remove": ("mean", "std")}, ValueError, "remove takes"),
    ("nothing to remove", {"pattern": "n [...] c", "remove": ()}, ValueError, "remove takes"),
    ("a sentence with a mistake", {"pattern": "n [... c"}, PatternError, r"never closed\n    n \[... c\n      \^"),
]  # fmt: skip


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f != "numpy"])
@pytest.mark.parametrize("name", ["scale", "offset", "mask"])
def test_numpys_array_goes_where_the_others_are(framework, name):
    """Else NumPy would be asked for the values of what is traced, or trained."""
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    other = x > 0 if name == "mask" else x[0]
    want = normalize("numpy", x, "n [c]", **{name: other})
    y = anynorm.normalize(x, "n [c]", **{name: to(framework, other)})
    assert type(y) is type(to(framework, x))
    np.testing.assert_allclose(back(y), want, rtol=0, atol=1e-6)
    if name == "mask":
        mean, _ = anynorm.moments(x, "n [c]", mask=to(framework, other))
        assert type(mean) is type(y)


def test_numpys_array_has_traced_and_trained_parameters():
    x, scale = np.ones((4, 6), np.float32) * np.arange(6, dtype=np.float32), np.ones(6, np.float32)
    traced = jax.grad(lambda s: (anynorm.normalize(x, "n [c]", scale=s) ** 2).sum())(jnp.asarray(scale))
    trained = torch.tensor(scale, requires_grad=True)
    (anynorm.normalize(x, "n [c]", scale=trained) ** 2).sum().backward()
    np.testing.assert_allclose(traced, trained.grad, rtol=1e-5)


@frameworks
@pytest.mark.parametrize(("arguments", "kind", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_normalize(arguments, kind, message, framework):
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)) as caught:
        normalize(framework, X, **arguments)
    assert caught.type is kind


def test_an_answer_does_not_depend_on_what_was_asked_before():
    """4 == 4.0 and 1 == True, so a cache keyed on sizes would let them through once it has seen the number."""
    anynorm.normalize(X, GROUP, g=4)
    anynorm.normalize(X, GROUP, g=1)
    for g in (4.0, True):
        with pytest.raises(ValueError, match="positive whole number"):
            anynorm.normalize(X, GROUP, g=g)
    assert np.array_equal(anynorm.normalize(X, GROUP, g=np.int64(6)), anynorm.normalize(X, GROUP, g=6))
    catalogue.group(-1, 4, 1)
    with pytest.raises(ValueError, match="the size g=True must be a positive whole number"):
        catalogue.group(-1, 4, True)


@frameworks
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64"])
def test_other_types_are_refused(dtype, framework):
    with pytest.raises(TypeError, match=f"cannot normalize an array of type {dtype}: cast it first, to one of float16"):
        normalize(framework, X.astype(dtype), "n [...] c")
    with pytest.raises(TypeError, match="cast it first"):
        anynorm.moments(to(framework, X.astype(dtype)), "n [...] c")


@pytest.mark.parametrize("x", [[[1.0, 2.0]], 3.0, "x", None, {"x": 1}])
def test_what_is_no_array_is_refused(x):
    with pytest.raises(TypeError, match=f"cannot normalize .*{type(x).__name__}: give an array of NumPy, torch"):
        anynorm.normalize(x, "n [...] c")


@frameworks
def test_moments(framework):
    x = to(framework, X)
    for arguments, kind, message in (
        ({"pattern": GROUP, "g": 5}, ValueError, "12 channels cannot be split"),
        ({"pattern": "n [h] c"}, ValueError, "3 dimensions"),
        ({"pattern": "n [h c"}, PatternError, "never closed"),
        ({"pattern": "n [...] c", "mask": to(framework, np.ones((5, 7), bool))}, ValueError, "does not broadcast"),
        ({"pattern": "n [...] c", "mask": to(framework, np.ones(12, "i"))}, TypeError, "must be boolean"),
    ):
        with pytest.raises(kind, match=message):
            anynorm.moments(x, **arguments)


def test_dimensions_that_must_be_known():
    import tensorflow as tf

    def trace(shape: Any, pattern: str, **sizes: int) -> None:
        signature = [tf.TensorSpec(shape, tf.float32)]
        tf.function(lambda x: anynorm.normalize(x, pattern, **sizes), input_signature=signature).get_concrete_function()

    with pytest.raises(ValueError, match="must be known, but its length is unknown here; declare it"):
        trace([None, None, None, None], GROUP, g=4)
    with pytest.raises(ValueError, match=r"rank is unknown; give it a shape with tf\.ensure_shape"):
        trace(None, "n [...] c")
    trace([None, None, None, None], "n [...] c")


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: catalogue.layer(4, 4), ValueError, "axis 4 is out of range for an input with 4 dimensions: -4 to 3"),
        (lambda: catalogue.batch(-5, 4), ValueError, "axis -5 is out of range"),
        (lambda: catalogue.layer([1, 1], 4), ValueError, r"axis \[1, 1\] names one axis .* twice"),
        (lambda: catalogue.layer([1, -3], 4), ValueError, r"axis \[1, -3\] names one axis .* twice"),
        (lambda: catalogue.layer([], 4), ValueError, "axis is empty; name at least one"),
        (lambda: catalogue.layer([1.0], 4), TypeError, "an axis is a whole number"),
        (lambda: catalogue.layer([True], 4), TypeError, "an axis is a whole number"),
        (lambda: catalogue.group(0, 4, 2), ValueError, "axis 0 is the batch.*name the channel axis"),
        (lambda: catalogue.group(-4, 4, None), ValueError, "axis 0 is the batch"),
        (lambda: catalogue.group(-1, 4, 0), ValueError, "must be a positive whole number"),
        (lambda: select(CASE, "caffe", "cpu", "float32"), ValueError, '"caffe" is none of the frameworks: numpy'),
        (lambda: select(CASE, "torch", "cpu", "float32", forced="magic"), ValueError, 'there is no kernel "magic"'),
        (lambda: select(CASE, "torch", "cpu", "int8"), TypeError, "cast it first"),
        (lambda: statistics_dtype("float8"), TypeError, "cannot normalize an array of type float8"),
    ],
)
def test_around_it(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


CASE = plan(NormSpec.of("n [...] c"), X.shape)
