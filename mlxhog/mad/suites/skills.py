"""The suites of one skill each: recall, state tracking, knowledge.

Sources: the modules of the tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from mlxhog.mad.options import PUBLISHED
from mlxhog.mad.suites.benchmark import SMALL_POINTS, SMALL_PROTOCOL, SMALL_ROWS
from mlxhog.mad.suites.suite import Setting, Suite
from mlxhog.mad.tasks import find, resolve
from mlxhog.mad.tasks.state_tracking import ORDERS


def recall() -> Suite:
    """Recall at three state sizes, copies over four lengths, a grammar: five minutes of one core.

    Copies over 256 tokens and more are the published ones; that of Mamba's paper
    (arXiv:2312.00752) has 4,096.
    """

    def setting(
        task: str, label: str, *, dim: int | None = None, batch_size: int = 64, **values: object
    ) -> Setting:
        settings = asdict(resolve(task, {**SMALL_ROWS, **values}))
        return Setting(task, settings, label, {"batch_size": batch_size}, dim)

    mqar, copying, grammar = (find(short).name for short in ("MQAR", "SC", "SG"))
    settings = [
        setting(mqar, f"n_pairs={n_pairs}, dim={dim or 64}", n_pairs=n_pairs, dim=dim)
        for dim in (None, 32, 16)
        for n_pairs in (4, 16)
    ]
    settings += [
        setting(copying, f"seq_len={length}", seq_len=length, tokens_to_copy=8, batch_size=batch)
        for length, batch in ((64, 64), (128, 64), (256, 32), (512, 16))
    ]
    settings += [
        setting(grammar, f"gap_prob={gap_prob}", gap_prob=gap_prob) for gap_prob in (0.0, 0.1)
    ]
    return Suite("recall", tuple(settings), SMALL_POINTS, SMALL_PROTOCOL, dim=64)


_KNOWLEDGE: Mapping[str, tuple[Mapping[str, Any], Mapping[str, tuple[float, ...]]]] = {
    "depo": ({"train_rows": 25_600}, {"hops": (1, 2, 4)}),
    "mano": ({}, {"operations": (1, 2, 3)}),
    "memorization": ({"train_rows": 256}, {"vocab": (256, 1024, 4096)}),
}
"""Settings of the task that replace its baseline's, and the one that changes."""


def knowledge() -> Suite:
    """Hops along a cycle in the context; arithmetic and a map in the parameters."""
    settings = tuple(
        Setting(
            task, asdict(resolve(task, {"test_rows": 256, **own, name: value})), f"{name}={value}"
        )
        for task, (own, axis) in _KNOWLEDGE.items()
        for name, values in axis.items()
        for value in values
    )
    protocol = {**SMALL_PROTOCOL, "batch_size": 32, "steps": 800}
    return Suite("knowledge", settings, SMALL_POINTS, protocol, dim=64)


def state() -> Suite:
    """Word problems of five groups, and Dyck: rows of 40 to train on, scored to 2,048."""
    word_problems = (
        Setting(
            "state-tracking", asdict(resolve("state-tracking", {"group": group})), f"group={group}"
        )
        for group in ORDERS
    )
    settings = (*word_problems, Setting("dyck", asdict(resolve("dyck", {})), "baseline"))
    protocol = dict(
        optimizer=replace(PUBLISHED, beta2=0.95), schedule="cosine", clip=0.25, batch_size=32,
        steps=3000, eval_every=100, stop_accuracy=1.0,
    )  # fmt: skip
    return Suite("state", settings, ({"lr": 8e-3, "weight_decay": 0.0},), protocol, dim=32)
