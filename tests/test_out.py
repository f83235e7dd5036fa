"""Writing into an array that is there: `out=`, and in place."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import anynorm

PATTERNS = ("... [c]", "n [...] c", "n [c] ...")


def given(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 5, 7, 12)).astype(np.float32)


@pytest.mark.parametrize("kernel", ["cpu", "composed"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_numpy(pattern: str, kernel: str) -> None:
    x = given()
    wanted, out = anynorm.normalize(x, pattern, kernel=kernel), np.full_like(x, np.nan)
    assert anynorm.normalize(x, pattern, kernel=kernel, out=out) is out
    np.testing.assert_array_equal(out, wanted)
    anynorm.normalize(x, pattern, kernel=kernel, out=x)
    np.testing.assert_array_equal(x, wanted)


def test_numpy_views_that_overlap_or_have_gaps() -> None:
    room = np.random.default_rng(1).normal(size=100).astype(np.float32)
    x, shifted = room[:90].reshape(9, 10), room[10:].reshape(9, 10)
    wanted = anynorm.normalize(x.copy(), "n [c]")
    anynorm.normalize(x, "n [c]", out=shifted)
    np.testing.assert_array_equal(shifted, wanted)
    wide = np.zeros((9, 20), np.float32)
    anynorm.normalize(given().reshape(-1)[:90].reshape(9, 10), "n [c]", out=wide[:, ::2])
    assert wide[:, ::2].any()
    assert not wide[:, 1::2].any()


@pytest.mark.parametrize("kernel", ["cpu", "composed"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_torch(pattern: str, kernel: str) -> None:
    for x in (torch.tensor(given()), torch.tensor(given()).to(memory_format=torch.channels_last)):
        wanted, out = anynorm.normalize(x, pattern, kernel=kernel), torch.full_like(x, torch.nan)
        assert anynorm.normalize(x, pattern, kernel=kernel, out=out) is out
        torch.testing.assert_close(out, wanted, rtol=0, atol=0)
        other = torch.empty(x.shape)
        torch.testing.assert_close(anynorm.normalize(x, pattern, kernel=kernel, out=other), wanted, rtol=0, atol=0)
        anynorm.normalize(x, pattern, kernel=kernel, out=x)
        torch.testing.assert_close(x, wanted, rtol=0, atol=0)


def test_refused() -> None:
    x = torch.tensor(given(), requires_grad=True)
    with pytest.raises(ValueError, match="no_grad"):
        anynorm.normalize(x, "... [c]", out=torch.empty_like(x))
    with torch.no_grad(), pytest.raises(TypeError, match="out must be like x"):
        anynorm.normalize(x.detach(), "... [c]", out=torch.empty(3))
    with pytest.raises(TypeError, match="cannot be written into"):
        anynorm.normalize(jnp.asarray(given()), "... [c]", out=jnp.asarray(given()))
