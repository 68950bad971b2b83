"""The rates of a step as its kernel reads them: `hp`, (8,) float32.

Rounded once from float64, as the native steps do. One layout per optimizer:

    SGD, momentum   lr, weight_decay, momentum, nesterov (0 or 1), four unused
    AdamW           lr * weight_decay, lr / bias1, beta1, 1 - beta1, beta2, 1 - beta2,
                    1 / sqrt(bias2), eps
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
HP = 8  # floats


def sgd_hp(*, lr: float, weight_decay: float) -> Float32:
    """Rates of `sgd_apply`."""
    return momentum_hp(lr=lr, momentum=0.0, nesterov=False, weight_decay=weight_decay)


def momentum_hp(*, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> Float32:
    """Rates of `momentum_apply`."""
    return np.array([lr, weight_decay, momentum, nesterov, 0, 0, 0, 0], np.float32)


def adam_hp(
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    bias1: float,
    bias2: float,
) -> Float32:
    """Rates of `adam_apply` and `adam_shared_apply`; bias1 and bias2 are 1 - beta^t."""
    first = [lr * weight_decay, lr / bias1, beta1, 1.0 - beta1]
    return np.array(
        [*first, beta2, 1.0 - beta2, 1.0 / math.sqrt(bias2), eps],
        np.float32,
    )
