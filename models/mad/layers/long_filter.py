"""A filter as long as the sequence, made by a small network: the implicit filter of Hyena.

With T the longest sequence, of every distance t = 0 .. T - 1:

    z_t = [t / T, cos(2 pi t / T), sin(2 pi t / T)]
    f_t = W3 sin(W2 sin(W1 sin(W0 z_t + b0) + b1) + b2) * exp(-(t / T) delta)

one entry per channel, whose decay delta is fixed: from ln(100) / 1.5 for the first channel to
ln(100) / 0.3 for the last. Distances from T on have no tap.

Source: Poli et al. 2023, Hyena Hierarchy, arXiv:2302.10866.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np

from mlxhog.errors import ConfigError
from mlxhog.models.mad.layer import Array, Arrays, Float, Params, ParamSpec, bias, linear

FEATURES = 3
LAYERS = 4
SLOWEST, FASTEST = math.log(100) / 1.5, math.log(100) / 0.3


def filter_spec(channels: int, width: int) -> Iterable[ParamSpec]:
    """Declare the network that makes `channels` filters; its inner layers are `width` wide."""
    sizes = (FEATURES, width, width, width, channels)
    for number, (inputs, out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        yield linear(f"filter.{number}.weight", out, inputs, product=False)
        if number < LAYERS - 1:
            yield bias(f"filter.{number}.bias", out, inputs)


def check_kernel(kernel: int, groups: int, width: int, channels: int) -> None:
    """Refuse numbers of a Hyena layer that cannot be built.

    Raises:
        ConfigError: says which, and what is possible.
    """
    if kernel < 1:
        raise ConfigError(f"kernel is {kernel}; a convolution has at least 1 tap")
    if width < 1:
        raise ConfigError(f"filter_width is {width}; set it to at least 1")
    if groups < 1 or channels % groups:
        raise ConfigError(
            f"groups is {groups}, and the projections have {channels} channels; choose a divisor"
        )


@lru_cache(maxsize=16)
def features(S: int, T: int) -> Float:
    """Return z of the first S distances, (S, 3) float64."""
    t = np.arange(S) / T
    return np.stack([t, np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)], -1)


@lru_cache(maxsize=16)
def decay(S: int, T: int, channels: int) -> Float:
    """Return exp(-(t / T) delta) of the first S distances, (channels, S) float64."""
    delta = np.linspace(SLOWEST, FASTEST, channels)
    return np.exp(-delta[:, None] * (np.arange(S) / T))


def filter_taps(p: Params, S: int, T: int, xp: Arrays[Array]) -> Array:
    """Return the taps of S distances, (channels, S) float32; those from T on are 0."""
    w = p[f"filter.{LAYERS - 1}.weight"]
    known = min(S, T)
    z = xp.from_numpy(features(known, T), like=w)
    for number in range(LAYERS - 1):
        z = xp.sin(xp.linear(z, p[f"filter.{number}.weight"], p[f"filter.{number}.bias"]))
    f = (w @ z.T) * xp.from_numpy(decay(known, T, len(w)), like=w)
    return xp.pad(f, [(0, 0), (0, S - known)])


def reference_taps(p: Mapping[str, Float], S: int, T: int) -> Float:
    """Return the taps of S distances, (channels, S), in float64 NumPy; those from T on are 0."""
    w = p[f"filter.{LAYERS - 1}.weight"]
    known = min(S, T)
    z = features(known, T)
    for number in range(LAYERS - 1):
        z = np.sin(z @ p[f"filter.{number}.weight"].T + p[f"filter.{number}.bias"])
    return np.pad((w @ z.T) * decay(known, T, len(w)), ((0, 0), (0, S - known)))
