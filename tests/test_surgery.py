"""Surgery without a framework: group numbers, merged moments, receipts, data; and `anynorm inspect`."""

from __future__ import annotations

import json
import os
import warnings

import numpy as np
import pytest
import torch

import anynorm.surgery as S  # noqa: N812
from anynorm.surgery.data import batches
from anynorm.surgery.moments import Moments
from anynorm.surgery.receipt import Receipt, Row
from anynorm.surgery.swapping import groups_for

click = pytest.importorskip("click")
from click.testing import CliRunner  # noqa: E402

from anynorm.cli.app import app  # noqa: E402


@pytest.mark.parametrize("channels", [1, 2, 6, 7, 30, 64, 96])
@pytest.mark.parametrize("wanted", [1, 5, 32, 1000])
@pytest.mark.parametrize("positions", [None, 1, 2, 49])
def test_the_group_number_is_the_nearest_divisor_that_leaves_enough(channels, wanted, positions):
    found = groups_for(channels, wanted, positions)
    least = 2 if positions is None else 8
    allowed = [n for n in range(1, channels + 1) if channels % n == 0 and channels // n * (positions or 1) >= least]
    if not allowed:
        assert found == (1 if channels * (positions or 1) > 2 else None)
        return
    assert found in allowed
    assert abs(found - wanted) == min(abs(n - wanted) for n in allowed)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_merged_moments_are_those_of_all_data(offset):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(23, 5)) * np.arange(1, 6) + offset + np.arange(23)[:, None] ** 2
    sums = Moments()
    for part in np.split(x, [1, 8, 8, 21]):
        if len(part):
            sums.add(np.float64(len(part)), part.mean(0), part.var(0))
        else:
            sums.add(np.float64(0), np.zeros(5), np.zeros(5))
    np.testing.assert_allclose(sums.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(sums.variance(), x.var(0), rtol=1e-9)
    np.testing.assert_allclose(sums.variance(1), x.var(0, ddof=1), rtol=1e-9)


def test_an_average_of_variances_would_be_seen():
    """The mutant that everybody writes: what batches differ by is missing."""
    x = np.arange(12.0).reshape(12, 1)
    sums = Moments()
    for part in np.split(x, 3):
        sums.add(np.float64(len(part)), part.mean(0), part.var(0))
    assert sums.variance()[0] == pytest.approx(x.var()) != pytest.approx(np.mean([p.var() for p in np.split(x, 3)]))


def test_a_statistic_that_no_element_reached_stays_zero():
    sums = Moments()
    sums.add(np.array([0.0, 2.0]), np.array([9.0, 1.0]), np.array([9.0, 4.0]))
    sums.add(np.array([0.0, 2.0]), np.array([9.0, 3.0]), np.array([9.0, 4.0]))
    assert sums.mean.tolist() == [0, 2]
    assert sums.variance(1).tolist() == [0, 20 / 3]


def test_a_receipt_is_saved_whole_or_not_at_all(tmp_path):
    receipt = Receipt("swap", [Row("정규화", "A", "B", 2, 1)], before=2, after=1, difference=0.5, largest=2.0)
    receipt.save(tmp_path / "receipt.json")
    saved = json.loads((tmp_path / "receipt.json").read_text(encoding="utf-8"))
    assert saved == receipt.to_dict()
    assert saved["rows"][0]["name"] == "정규화"
    receipt.notes.append(object())
    with pytest.raises(TypeError):
        receipt.save(tmp_path / "receipt.json")
    assert json.loads((tmp_path / "receipt.json").read_text(encoding="utf-8")) == saved
    assert os.listdir(tmp_path) == ["receipt.json"]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Receipt("swap").save(tmp_path / "none" / "receipt.json")


def test_data_in_all_its_forms():
    x = np.arange(10).reshape(5, 2)
    assert [len(b) for b in batches(x, 2, None)[0]] == [2, 2, 1]
    assert batches(x, 2, None)[1] == 3
    assert [len(b) for b in batches(x, 2, 2)[0]] == [2, 2]
    assert list(batches(iter([("x", "y")]), 2, None)[0]) == ["x"]
    assert batches(iter([1]), 2, None)[1] is None

    class Sequence:
        num_batches = 2

        def __getitem__(self, i):
            return (i, "y")

    made, total = batches(Sequence(), 2, None)
    assert (list(made), total) == ([0, 1], 2)
    with pytest.raises(TypeError, match="one array of inputs"):
        batches((x, x), 2, None)
    with pytest.raises(ValueError, match="at least one sample"):
        batches(x, 0, None)
    with pytest.raises(ValueError, match="a batch is empty"):
        next(batches([()], 2, None)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bach", "group"), "no kind of norm called"),
        (("batch", "any"), "norms become one of"),
        (("batch", "layer", 4), "groups=4 is for"),
        (("batch", "group", 0), "positive whole number"),
    ],
)
def test_wishes_that_cannot_be(arguments, message):
    source, target, groups = (*arguments, None)[:3]
    with pytest.raises(ValueError, match=message):
        S.swap(torch.nn.Sequential(torch.nn.BatchNorm2d(6)), source, target, groups=groups)


def test_what_is_no_model():
    for operation in (S.fold, S.freeze, S.weight_decay_groups, S.inspect):
        with pytest.raises(TypeError, match="no model of Keras or torch"):
            operation(3.0)


def test_a_receipt_from_elsewhere_reverts_nothing():
    model = torch.nn.Sequential(torch.nn.Linear(3, 6))
    with pytest.raises(ValueError, match="keeps nothing"):
        S.revert(model, Receipt("fold"))
    _, receipt = S.fold(torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6)))
    with pytest.raises(ValueError, match="no layer called '1'"):
        S.revert(model, receipt)


def run(*words):
    return CliRunner().invoke(app, ["inspect", *map(str, words)])


@pytest.fixture
def tensors(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3), torch.nn.BatchNorm2d(12), torch.nn.GroupNorm(3, 12))
    model[1].running_var[:4] = torch.tensor([0.0, 1e-6, float("nan"), 2.0])
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_inspect_a_file_of_tensors(tensors):
    result = run(tensors, "--batch", 4)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    for word in (
        "2 norms, 1 with doubts",
        "? (batch)",
        "? (norm)",
        "running_var is not finite in 1 of 12",
        "running_var is 0 in 1 of 12",
        "batch of 4",
    ):
        assert word in words, word
    found = json.loads(run(tensors, "--json").output)
    assert [facts["name"] for facts in found] == ["1", "2"]
    assert found[0]["parameters"]["running_mean"] == [12]


def test_inspect_says_what_it_cannot_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(12))
    torch.save(model, tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "linear.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(model).save(tmp_path / "scripted.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "linear.pt").read_bytes()[:300])
    (tmp_path / "end.pt").write_bytes((tmp_path / "linear.pt").read_bytes()[:-1])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_text("")
    (tmp_path / "bad.keras").write_text("no model")
    (tmp_path / "bad.safetensors").write_text("no model")
    expected = {
        "whole.pt": (2, "save model.state_dict() instead"),
        "list.pt": (2, "no dictionary of tensors"),
        "numbers.pt": (2, "no tensors in it"),
        "cut.pt": (2, "cut.pt"),
        "end.pt": (2, "end.pt is no file that torch.save wrote of a state_dict, or is damaged"),
        "text.pt": (2, "text.pt is no file that torch.save wrote of a state_dict, or is damaged"),
        "empty.pt": (2, "or is damaged: it is empty"),
        "scripted.pt": (2, "is a scripted model, which has code; save its state_dict() instead"),
        "bad.keras": (2, "neither an HDF5 file nor a zip archive"),
        "bad.safetensors": (2, "safetensors"),
        "none.pt": (1, "no such file"),
        "linear.pt": (0, "no norms"),
    }
    for name, (status, message) in expected.items():
        result = run(tmp_path / name)
        assert result.exit_code == status, (name, result.output)
        assert message in " ".join(result.output.split()), (name, result.output)
        assert "Traceback" not in result.output
