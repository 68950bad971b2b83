"""The suites of the six published tasks.

Source: Poli et al. 2024, arXiv:2403.17844, and its code, for the grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from mlxhog.mad.suites.suite import Setting, Suite
from mlxhog.mad.tasks import BENCHMARK, resolve

_RECALL: Mapping[str, tuple[float, ...]] = {
    "vocab": (32, 64, 128),
    "seq_len": (256, 512, 1024),
    "train_rows": (6400, 3200, 1600, 800),
}
_HARDER: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "in-context-recall": _RECALL,
    "fuzzy-in-context-recall": _RECALL,
    "noisy-in-context-recall": {**_RECALL, "vocab": (48, 80, 144), "frac_noise": (0.4, 0.6, 0.8)},
    "selective-copying": {**_RECALL, "seq_len": (512, 1024), "tokens_to_copy": (32, 64, 96)},
    "compression": {**_RECALL, "seq_len": (64, 128, 256)},
    "memorization": {"vocab": (512, 1024, 2048, 4096, 8192)},
}
"""Beside the baseline; one setting changes at a time."""

_SMALL: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "in-context-recall": ({"seq_len": 32}, {}),
    "fuzzy-in-context-recall": ({"seq_len": 64}, {"batch_size": 32}),
    "noisy-in-context-recall": ({"seq_len": 64}, {"batch_size": 32}),
    "selective-copying": ({"seq_len": 40, "tokens_to_copy": 4}, {}),
    "compression": ({"train_rows": 12_800}, {}),
    "memorization": ({"train_rows": 256}, {"batch_size": 32}),
}
"""Of smoke: settings of the task, and their fields of the protocol."""
SMALL_PROTOCOL: Mapping[str, Any] = dict(
    schedule="constant", clip=1.0, batch_size=64, steps=600, eval_every=50
)
SMALL_ROWS = {"train_rows": 6400, "test_rows": 256}
SMALL_POINTS: tuple[Mapping[str, float], ...] = ({"lr": 2e-3, "weight_decay": 0.0},)
_REDUCED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "in-context-recall": {"vocab": (32,), "seq_len": (64,)},
    "fuzzy-in-context-recall": {"seq_len": (128,)},
    "noisy-in-context-recall": {"frac_noise": (0.6,)},
    "selective-copying": {"seq_len": (80,), "tokens_to_copy": (8,)},
    "compression": {"vocab": (64,)},
    "memorization": {"vocab": (1024, 4096)},
}
"""Beside the settings of smoke; one setting changes at a time."""
_RECALL_STEPS = 3600
"""Attention finds recall late: at 2e-3 its accuracy is below .5 for 1,600 steps, and 1 at 2,300."""


def _baseline(task: str) -> Setting:
    return Setting(task, asdict(BENCHMARK[task]()), "baseline")


def _small(task: str, label: str = "baseline", **harder: float) -> Setting:
    values, protocol = _SMALL[task]
    return Setting(task, asdict(resolve(task, {**SMALL_ROWS, **values, **harder})), label, protocol)


def _trained_longer(setting: Setting) -> Setting:
    if not setting.task.endswith("recall"):
        return setting
    return replace(setting, protocol={**setting.protocol, "steps": _RECALL_STEPS})


def smoke() -> Suite:
    """Small settings of the six tasks, seconds to a minute or two each on one core."""
    return Suite("smoke", tuple(map(_small, _SMALL)), SMALL_POINTS, SMALL_PROTOCOL, dim=64)


def reduced() -> Suite:
    """15 settings of the axes of `full` at the sizes of `smoke`: half an hour on one core."""
    settings: list[Setting] = []
    for task, axes in _REDUCED.items():
        settings += [_small(task)]
        settings += [
            _small(task, f"{name}={value}", **{name: value})
            for name, values in axes.items()
            for value in values
        ]
    protocol = {**SMALL_PROTOCOL, "steps": 1200}
    longer = tuple(map(_trained_longer, settings))
    return replace(smoke(), name="reduced", settings=longer, protocol=protocol)


def lite() -> Suite:
    """The six baselines."""
    points = tuple({"lr": lr, "weight_decay": 0.0} for lr in (5e-4, 2e-3))
    settings = tuple(_baseline(task) for task in BENCHMARK)
    return Suite("lite", settings, points, {"steps": 2000, "eval_every": 100})


def full() -> Suite:
    """The difficulty grid of the benchmark: 66 settings, 6 points each."""
    points = tuple(
        {"lr": lr, "weight_decay": decay} for lr in (1e-4, 5e-4, 1e-3) for decay in (0.0, 0.1)
    )
    return Suite("full", tuple(_grid()), points, {"epochs": 200})


def _grid() -> Iterator[Setting]:
    for task in BENCHMARK:
        yield _baseline(task)
        for name, values in _HARDER[task].items():
            for value in values:
                yield Setting(task, asdict(resolve(task, {name: value})), f"{name}={value}")
