"""Memory for the results of torch's CPU kernels, used again once nobody holds it.

An allocator places each large result anew, where the caches know nothing of it, and often where the system has to make
the pages first: that can take longer than the kernel. A few results are kept here instead and given out again. Whoever
holds a result, a view or a NumPy array of it, or its storage, has a reference to the storage, and torch counts those.
So a storage may outlive its last holder, and a later result may have the same one.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from sys import getrefcount
from typing import Any

import torch
from torch._C import _len_torch_function_stack

Array = Any

# Less is quick to make anew; more than two of the largest, y and dx, would be in no cache.
SMALLEST, LARGEST = 2**20, 2**24
# All are looked through at every call.
_MOST = 8

# How many references a storage has: torch's own, for want of a public one. Without it nothing is reused.
_count: Any = getattr(torch._C, "_storage_Use_Count", None)
# The interpreter may turn to another thread between the count and the new reference.
_lock = threading.Lock()


class _Kept:
    """A tensor, what it is like, and its storage as it was made."""

    def __init__(self, tensor: Array, key: tuple[Any, ...]) -> None:
        self.tensor, self.key, self.storage = tensor, key, tensor.untyped_storage()
        self.address, self.nbytes = self.storage.data_ptr(), self.storage.nbytes()

    def references(self) -> tuple[int, int]:
        """References within torch, and those to the one object that Python has for the storage."""
        return _count(self.storage._cdata), getrefcount(self.storage)

    def is_whole(self) -> bool:
        """Whether it has the memory it was made with: resized, or shared with other processes, it has other memory."""
        try:
            return bool(self.storage.data_ptr() == self.address and self.storage.nbytes() == self.nbytes)
        except RuntimeError:  # torch can make an address one that nobody may ask for
            return False


_kept: list[_Kept] = []


@lru_cache(maxsize=1)
def _alone() -> tuple[int, int]:
    """The references to a storage that nobody else holds.

    Asked when the first result is made, and not at import, which may be under a mode whose tensors have no memory.
    """
    return _Kept(torch.empty(1, device="cpu"), ()).references()


def empty_like(x: Array) -> Array:
    """A tensor on the CPU of the shape, the strides and the type of a dense x, to be written.

    >>> x = torch.ones(512, 1024)
    >>> y = empty_like(x)
    >>> address = y.data_ptr()
    >>> empty_like(x).data_ptr() == address
    False
    >>> del y
    >>> empty_like(x).data_ptr() == address
    True
    """
    # What a function mode makes of a tensor is for its own calls. A child process may inherit the lock as another
    # thread of its parent held it: nobody waits for it.
    if (
        not SMALLEST <= x.nbytes <= LARGEST
        or _count is None
        or _len_torch_function_stack()
        or not _lock.acquire(blocking=False)
    ):
        return torch.empty_like(x)
    try:
        # A tensor made in inference mode is no good outside of it.
        key = x.shape, x.stride(), x.dtype, torch.is_inference_mode_enabled()
        found, lost = None, False
        for one in _kept:
            if not one.is_whole():
                lost = True
            elif found is None and one.key == key and one.references() == _alone():
                found = one
        if lost:
            _kept[:] = [one for one in _kept if one.is_whole()]
        # Another tensor over the same memory: what users do to it, and its versions, are its own.
        return (found or _keep(torch.empty_like(x), key)).tensor.data
    finally:
        _lock.release()


def _keep(tensor: Array, key: tuple[Any, ...]) -> _Kept:
    """Keeps a tensor that is nobody else's, and lets the oldest go where there are too many."""
    one = _Kept(tensor, key)
    if one.references() == _alone():
        _kept[:] = [*_kept, one][-_MOST:]
        while sum(other.nbytes for other in _kept) > 2 * LARGEST:
            del _kept[0]
    return one
