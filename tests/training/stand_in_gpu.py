"""A worker process whose GPU is the CPU under its name; children import it.

FAULTY_ENGINE has the arguments of `FaultyEngine`, which computes its Metal kernels.
"""

import json
import os

import pytest

from mlxhog.training import worker_process

FAULTY = "FAULTY_ENGINE"


def main(pipe, job):
    """A usual worker on the stand-in."""
    import mlx.core as mx

    from mlxhog.backends import probes
    from mlxhog.metal.registry import KERNELS
    from tests.metal.fake_gpu import FakeMLX
    from tests.metal.faulty import FaultyEngine

    probes.SIZES = probes.SIZES[:1]  # the CPU computes all kernels
    changed = mx
    changed.gpu = mx.cpu
    changed.device_info = lambda *_: {"max_recommended_working_set_size": 8 << 30}
    changed.set_memory_limit = changed.set_cache_limit = changed.set_wired_limit = lambda _: None
    mx.disable_compile()  # the stand-in evaluates
    engine = FaultyEngine(**json.loads(os.environ[FAULTY]))
    FakeMLX(dict(KERNELS), engine=engine).install(pytest.MonkeyPatch())
    worker_process.main(pipe, job)
