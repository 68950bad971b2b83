"""Small candidates learn what they should, within the steps they should need.

`benchmarks/mad_oracles.py` records how many steps they do need, with three seeds.
"""

from __future__ import annotations

import pytest

from mlxhog.mad.suites import expand, only, suite
from mlxhog.mad.training.candidate import train
from mlxhog.models.mad.sequence import parse

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "within", "backend"),
    [("in-context-recall", 300, "torch:cpu"), ("memorization", 200, "mlx:cpu")],
)
def test_mlstm_with_its_convolution_answers_99_percent_in_time(
    task: str, within: int, backend: str
) -> None:
    ((_, config),) = expand(
        only(suite("smoke"), [task]),
        parse("mlstm swiglu mlstm swiglu"),
        [1],
        workers=backend,
        protocol={"steps": within, "eval_every": 50, "stop_accuracy": 0.99},
    )
    assert train(config).acc_token >= 0.99
