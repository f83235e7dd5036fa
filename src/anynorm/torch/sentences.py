"""The sentences of torch.nn.functional's normalizations, as strings, which are quick to look up."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ..catalogue import CATALOGUE, filter_response, last
from ..ops.torch_constant import constant
from ..spec import MOMENTS, NormSpec


@lru_cache(maxsize=4096)
def _encoded(make: Callable[..., NormSpec], *arguments: Any) -> str:
    return make(*arguments).encode()


# torch.compile does not read how a sentence comes about.
@constant
def over_last(lengths: tuple[int, ...], remove: tuple[str, ...] = MOMENTS) -> str:
    return _encoded(last, lengths, remove)


@constant
def over_space(rank: int) -> str:
    return _encoded(filter_response, tuple(range(2, rank)), rank)


@constant
def groups_of(groups: int) -> str:
    return _encoded(_group_spec, groups)


def _group_spec(groups: int) -> NormSpec:
    return CATALOGUE["group"].spec(channels_first=True, g=groups)


BATCH, INSTANCE, LAYER_CHANNELS, RMS_CHANNELS = (
    CATALOGUE[n].spec(channels_first=True).encode() for n in ("batch", "instance", "layer_channels", "rms_channels")
)
