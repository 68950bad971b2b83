"""Parity compares the precision of float32, and says what MLX_ENABLE_TF32 has to do with it."""

import pytest

from mlxhog.backends import precision
from mlxhog.backends.autodiff import MLXArrays
from mlxhog.parity import compute
from mlxhog.parity.compute import compare_all
from mlxhog.parity.subject import ParitySide, ParitySubject
from tests.backends.imprecise import FAULTS
from tests.models.sample import config

NUMPY = ParitySide("numpy", "numpy")
MLX = ParitySide("mlx:cpu+reference", "mlx:cpu", "reference")
SUBJECT = ParitySubject(title="probes", cfg=config())


def rows(engine):
    results = {
        NUMPY.name: dict(precision.exact()),
        MLX.name: dict(engine.probes()),
    }
    return list(compare_all(SUBJECT, [NUMPY, MLX], results)[0])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_disagrees(monkeypatch, fault):
    engine = compute.engine_of(MLX)
    operator, kind = FAULTS[fault]
    ops = engine.ops
    monkeypatch.setattr(ops, operator, fault(getattr(ops, operator), MLXArrays("cpu", 1)))
    assert kind in {row.kind for row in rows(engine) if not row.ok}
