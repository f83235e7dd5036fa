"""Surgery on whole architectures with random weights: ResNet, MobileNetV2 and EfficientNet, of Keras and of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_surgery_torch import difference, filled, same, state
from torch import nn

import anynorm.surgery as S  # noqa: N812


def unit(into: int, out: int, size: int = 1, stride: int = 1, groups: int = 1, act: Any = nn.ReLU) -> nn.Sequential:
    conv = nn.Conv2d(into, out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), act())


class Bottleneck(nn.Module):
    """ResNet50's block."""

    def __init__(self, into: int, width: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = unit(into, width), unit(width, width, 3, stride)
        self.c = unit(width, 4 * width, act=nn.Identity)
        self.short = unit(into, 4 * width, 1, stride, act=nn.Identity)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.c(self.b(self.a(x))) + self.short(x))


class Inverted(nn.Module):
    """MobileNetV2's block and, with squeeze and excitation, EfficientNet's."""

    def __init__(self, into: int, out: int, stride: int, act: Any, squeeze: bool) -> None:
        super().__init__()
        wide = 6 * into
        self.expand, self.depthwise = unit(into, wide, act=act), unit(wide, wide, 3, stride, wide, act)
        parts = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, into, 1), nn.SiLU(), nn.Conv2d(into, wide, 1), nn.Sigmoid())
        self.squeeze = nn.Sequential(*parts) if squeeze else None
        self.project = unit(wide, out, act=nn.Identity)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        y = y if self.squeeze is None else y * self.squeeze(y)
        y = self.project(y)
        # A branch that torch.fx cannot see through, as many models have it.
        return x + y if x.shape == y.shape else y


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def resnet() -> nn.Sequential:
    blocks = [Bottleneck(16, 8, 1), Bottleneck(32, 16, 2), Bottleneck(64, 32, 2)]
    return nn.Sequential(unit(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks, *head(128))


def mobilenet() -> nn.Sequential:
    blocks = [
        Inverted(into, out, stride, nn.ReLU6, False) for into, out, stride in ((8, 8, 1), (8, 12, 2), (12, 12, 1))
    ]
    return nn.Sequential(unit(3, 8, 3, 2, act=nn.ReLU6), *blocks, unit(12, 40, act=nn.ReLU6), *head(40))


def efficientnet() -> nn.Sequential:
    blocks = [Inverted(into, out, stride, nn.SiLU, True) for into, out, stride in ((8, 8, 1), (8, 12, 2), (12, 12, 1))]
    return nn.Sequential(unit(3, 8, 3, 2, act=nn.SiLU), *blocks, unit(12, 40, act=nn.SiLU), *head(40))


@pytest.mark.parametrize(("make", "number"), [(resnet, 13), (mobilenet, 11), (efficientnet, 11)])
def test_torch_models(make, number):
    torch.manual_seed(0)
    model, x = filled(make()), torch.randn(4, 3, 64, 64)
    before = state(model)
    new, receipt = S.fold(model, probe=x)
    assert (len(receipt.rows), receipt.refused) == (number, [])
    assert difference(model, new, x) < 1e-5
    for target in ("group", "layer", "instance"):
        swapped, receipt = S.swap(model, "batch", target, probe=x)
        assert (len(receipt.rows), receipt.refused) == (number, [])
        assert torch.isfinite(swapped(x)).all()
    fresh, receipt = S.reestimate(model, x, batch_size=2)
    assert len(receipt.rows) == number
    y = model[0][0](x).detach().double().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(fresh[0][1].running_mean, y.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fresh[0][1].running_var, y.var(1), rtol=1e-4)
    assert same(model, before)


@pytest.mark.parametrize(("name", "number"), [("MobileNetV2", 52), ("ResNet50", 53), ("EfficientNetB0", 49)])
def test_keras_applications(name, number):
    keras = pytest.importorskip("keras")
    if keras.backend.backend() == "jax":
        pytest.skip("JAX compiles each operation of such a model on its own, which takes minutes")
    from test_keras_surgery import filled as keras_filled
    from test_keras_surgery import run

    make = getattr(keras.applications, name)
    model = keras_filled(make(weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None))
    x = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype("float32") * 50 + 100
    new, receipt = S.fold(model, probe=x[:2])
    assert (len(receipt.rows), receipt.refused) == (number, [])
    assert receipt.difference < 1e-5 * receipt.largest
    assert len(new.layers) == len(model.layers) - number
    swapped, receipt = S.swap(model, "batch", "group", groups=16, probe=False)
    assert (len(receipt.rows), receipt.refused) == (number, [])
    assert {layer.groups for layer in swapped.layers if hasattr(layer, "groups")} >= {16}
    assert np.isfinite(run(swapped, x[:2])[0]).all()
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    _, receipt = S.reestimate(model, x, batch_size=2, inplace=True, probe=False)
    assert (len(receipt.rows), receipt.refused) == (number, [])
    stem = keras.Model(model.inputs, norms[0].input)
    y = run(stem, x)[0].astype(np.float64).reshape(-1, norms[0].input.shape[-1])
    np.testing.assert_allclose(np.array(norms[0].moving_mean), y.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.array(norms[0].moving_variance), y.var(0), rtol=1e-4)
