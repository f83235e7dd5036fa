"""Memory of results that torch's CPU kernels use again: never while anyone can see it, and never much of it."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing import reductions
from torch.overrides import TorchFunctionMode

import anynorm
from anynorm.kernels import torch_reuse

reductions.init_reductions()
ROWS = 512


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    torch_reuse._kept.clear()
    yield
    torch_reuse._kept.clear()


def given(rows: int = ROWS, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 1024, generator=torch.Generator().manual_seed(seed))


def normalized(x: torch.Tensor) -> torch.Tensor:
    return anynorm.normalize(x, "n [c]", kernel="cpu")


def test_memory_that_nobody_holds_is_used_again() -> None:
    y = normalized(given())
    address = y.data_ptr()
    del y
    assert normalized(given()).data_ptr() == address


def test_results_of_both_passes_are_found_again() -> None:
    x = given().requires_grad_()
    places = set()
    for _ in range(5):
        y = normalized(x)
        (dx,) = torch.autograd.grad(y, x, given())
        places |= {y.data_ptr(), dx.data_ptr()}
        del y, dx
    assert len(places) == 2


# Each makes of a result something that sees its memory, and reads it.
def by_view(y: torch.Tensor) -> Callable[[], Any]:
    part = y[1:].t()
    return lambda: part.t()


def by_numpy(y: torch.Tensor) -> Callable[[], Any]:
    array = y.numpy()[1:]
    return lambda: torch.from_numpy(array)


def by_dlpack(y: torch.Tensor) -> Callable[[], Any]:
    array = np.from_dlpack(y)
    return lambda: torch.from_numpy(np.array(array))[1:]


def by_capsule(y: torch.Tensor) -> Callable[[], Any]:
    capsule = torch.utils.dlpack.to_dlpack(y)
    return lambda: torch.utils.dlpack.from_dlpack(capsule)[1:]


def by_storage(y: torch.Tensor) -> Callable[[], Any]:
    storage, shape = y.untyped_storage(), y.shape
    return lambda: torch.empty(0).set_(storage, 0, shape)[1:]


def by_data(y: torch.Tensor) -> Callable[[], Any]:
    data = y.data
    return lambda: data[1:]


def by_autograd(y: torch.Tensor) -> Callable[[], Any]:
    weight = torch.ones(1024, requires_grad=True)
    (dweight,) = torch.autograd.grad((y * weight).sum(), weight)
    product = y * weight
    return lambda: _of_product(product, weight, dweight)


def _of_product(product: torch.Tensor, weight: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """What autograd saved of y, as the gradient of its product with a weight shows it."""
    (after,) = torch.autograd.grad(product.sum(), weight, retain_graph=True)
    torch.testing.assert_close(after, before)
    return product.detach()[1:]


def by_lazy_clone(y: torch.Tensor) -> Callable[[], Any]:
    clone = torch._lazy_clone(y)
    return lambda: clone[1:]


def by_pickle(y: torch.Tensor) -> Callable[[], Any]:
    """As a queue of torch.multiprocessing sends it: y moves to memory that other processes see."""
    sent = bytes(ForkingPickler.dumps(y))
    return lambda: ForkingPickler.loads(sent)[1:]


def by_shared_memory(y: torch.Tensor) -> Callable[[], Any]:
    shared = y.share_memory_().numpy()
    return lambda: torch.from_numpy(shared)[1:]


@pytest.mark.parametrize(
    "by",
    [by_view, by_numpy, by_dlpack, by_capsule, by_storage, by_data, by_autograd, by_lazy_clone, by_pickle,
     by_shared_memory],
)  # fmt: skip
def test_memory_that_is_seen_is_left_alone(by: Callable[[torch.Tensor], Callable[[], Any]]) -> None:
    # A second time, of memory that is used again.
    for seed in (0, 1):
        y = normalized(given(seed=seed))
        wanted = y.clone()[1:]
        seen = by(y)
        del y
        gc.collect()
        others = [normalized(given(seed=seed + 2 + i)) for i in range(3)]
        torch.testing.assert_close(seen(), wanted, rtol=0, atol=0)
        del seen, others


def test_the_check_sees_memory_that_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant that takes every storage for free."""
    y = normalized(given())
    wanted = y.clone()
    monkeypatch.setattr(torch_reuse._Kept, "references", lambda self: torch_reuse._alone())
    normalized(given(seed=1))
    assert not torch.equal(y, wanted)


@pytest.mark.parametrize("nbytes", [0, 3 * 2**19, 2**23])
def test_a_storage_of_another_size_is_not_used_again(nbytes: int) -> None:
    y = normalized(given())
    y.untyped_storage().resize_(nbytes)
    del y
    y = normalized(given(seed=1))
    assert y.untyped_storage().nbytes() == y.nbytes
    torch.testing.assert_close(y, anynorm.normalize(given(seed=1), "n [c]", kernel="composed"))
    assert len(torch_reuse._kept) == 1


def test_the_size_counts_beside_the_address() -> None:
    y = normalized(given())
    torch_reuse._kept[0].nbytes += 1
    del y
    x = given(seed=1)
    normalized(x)
    assert [one.nbytes for one in torch_reuse._kept] == [x.nbytes]


@pytest.mark.parametrize("change", [torch.Tensor.share_memory_, lambda y: y.untyped_storage().resize_(2**26)])
def test_what_has_other_memory_is_let_go_at_the_next_call(change: Callable[[torch.Tensor], Any]) -> None:
    first, y = normalized(given(ROWS + 1)), normalized(given())
    change(y)
    del first, y
    normalized(given(ROWS + 1))
    assert [one.key[0][0] for one in torch_reuse._kept] == [ROWS + 1]


def test_an_address_that_nobody_may_ask_for() -> None:
    y = normalized(given())
    torch._C._set_throw_on_mutable_data_ptr(y)
    del y
    assert torch.isfinite(normalized(given())).all()


class Recorded(torch.Tensor):
    pass


class Recording(TorchFunctionMode):
    """Holds on to what torch makes, or makes tensors of another class of it."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self.make, self.seen = make, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = self.make(function(*args, **(kwargs or {})))
        self.seen.append(out)
        return out


def test_what_a_function_mode_saw_is_not_given_out_again() -> None:
    mode = Recording(lambda out: out.detach() if isinstance(out, torch.Tensor) else out)
    with mode:
        y = normalized(given())
    mode.seen.clear()
    wanted = y.clone()
    others = [normalized(given(seed=seed)) for seed in (1, 2, 3)]
    torch.testing.assert_close(y, wanted, rtol=0, atol=0)
    del others


def test_the_tensors_of_a_function_mode_stay_within_it() -> None:
    with Recording(lambda out: out.as_subclass(Recorded) if type(out) is torch.Tensor else out):
        normalized(given())
    assert type(normalized(given())) is torch.Tensor


def test_a_tensor_that_somebody_saw_while_it_was_made_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(torch_reuse._Kept):
        def __init__(self, tensor: torch.Tensor, key: tuple[Any, ...]) -> None:
            super().__init__(tensor, key)
            seen.append(tensor.detach())

    monkeypatch.setattr(torch_reuse, "_Kept", Watched)
    normalized(given())
    assert seen
    assert not torch_reuse._kept


def test_little_is_kept() -> None:
    held = [normalized(given(ROWS + i)) for i in range(40)]
    assert 1 < len(torch_reuse._kept) <= 8
    held += [normalized(given(4096, i)) for i in range(4)]
    assert sum(one.nbytes for one in torch_reuse._kept) <= 2 * torch_reuse.LARGEST
    del held
    torch_reuse._kept.clear()
    normalized(given(torch_reuse.SMALLEST // 4096 - 1))
    normalized(given(torch_reuse.LARGEST // 4096 + 1))
    assert not torch_reuse._kept


def test_another_layout_type_or_mode_gets_memory_of_its_own() -> None:
    x = torch.randn(4, 16, 64, 128)
    group = {"pattern": "n (g [c]) [...]", "g": 4, "kernel": "cpu"}
    first = anynorm.normalize(x, **group)
    del first
    wanted = anynorm.normalize(x, **{**group, "kernel": "composed"})
    last = anynorm.normalize(x.to(memory_format=torch.channels_last), **group)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, wanted, rtol=0, atol=2e-6)
    assert anynorm.normalize(x.repeat(2, 1, 1, 1).half(), **group).dtype == torch.float16
    with torch.inference_mode():
        assert anynorm.normalize(x, **group).is_inference()
    y = anynorm.normalize(x, **group)
    assert not y.is_inference()
    scale = torch.ones(1, requires_grad=True)
    (y * scale).sum().backward()


def test_a_result_is_an_ordinary_tensor() -> None:
    for _ in range(3):
        y = normalized(given())
        assert y._version == 0
        assert y._base is None
        assert not y._is_view()
        assert y.is_leaf
        y.resize_(ROWS + 1, 1024).fill_(3.0)


def test_without_the_count_nothing_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_reuse, "_count", None)
    normalized(given())
    assert not torch_reuse._kept


def test_threads_get_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the interpreter turns to another one between the count and the new reference."""
    normalized(given())
    references = torch_reuse._Kept.references

    def slowly(self: Any) -> tuple[int, int]:
        found = references(self)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(torch_reuse._Kept, "references", slowly)
    together, results = threading.Barrier(4), []

    def work(seed: int) -> None:
        x = given(seed=seed)
        together.wait()
        results.append((x, normalized(x)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({y.data_ptr() for _, y in results}) == 4
    for x, y in results:
        torch.testing.assert_close(y, anynorm.normalize(x, "n [c]", kernel="composed"))


def test_it_can_be_imported_under_a_mode_whose_tensors_have_no_memory() -> None:
    code = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    from anynorm.kernels import torch_reuse
x = torch.ones(512, 1024)
address = torch_reuse.empty_like(x).data_ptr()
assert torch_reuse.empty_like(x).data_ptr() == address
"""
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)


def test_nobody_waits_for_the_lock() -> None:
    with torch_reuse._lock:
        torch.testing.assert_close(normalized(given()), anynorm.normalize(given(), "n [c]", kernel="composed"))
