"""Records and suites made by hand."""

from dataclasses import replace

from mlxhog.mad.options import Protocol
from mlxhog.mad.run import RunConfig
from mlxhog.mad.scores import scores
from mlxhog.mad.suites import Setting, Suite
from mlxhog.models.mad.layers import make
from tests.mad.report.sample import RECORD


def suite(*settings, points=({"lr": 1e-3},)):
    return Suite("made", settings, points, {}, dim=32)


def setting(task, label="baseline"):
    return Setting(task, {}, label)


def layers(candidate):
    return tuple(make(name) for name in candidate.split())


def scored(records, measured, select="test"):
    """The scores of all seeds that have a record."""
    return scores(records, measured, sorted({one.seed for one in records}), select)


def record(
    candidate,
    task,
    acc,
    *,
    label="baseline",
    lr=1e-3,
    seed=0,
    status="done",
    token=None,
    val=None,
    ceiling=1.0,
    steps=10,
):
    config = RunConfig(
        task=task,
        settings={"vocab": 16},
        layers=layers(candidate),
        dim=32,
        protocol=Protocol(lr=lr, steps=10),
        seed=seed,
    )
    return replace(
        RECORD, key=config.key(), candidate=candidate, config=config.to_dict(), label=label,
        status=status, acc_macro=acc, acc_token=acc if token is None else token, val_token=val,
        val_macro=val, ceiling=ceiling, steps=steps, seconds=2.0, state=100,
    )  # fmt: skip
