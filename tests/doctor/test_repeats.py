"""Doctor's comparison of one gradient of a GPU in two processes."""

from __future__ import annotations

import pytest

from mlxhog.arena.child import Failed
from mlxhog.doctor import repeats
from mlxhog.doctor.checks import CheckResult
from mlxhog.doctor.frameworks import Speeds


def test_two_processes_compute_the_same_bits_of_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "GPU_ENGINES", {"torch:cpu": "mps"})
    speeds = Speeds({"mlx:cpu": 1.0, "torch:cpu": 1.0})
    checks, same = repeats.check_repeats(speeds)
    assert [check.result for check in checks] == [CheckResult.PASS]
    assert same == {"torch:cpu": {"reference": True}}


class Digests:
    """Children whose gradients differ with the Metal kernels, and fail on torch:mps."""

    made = 0

    def __enter__(self) -> Digests:
        Digests.made += 1
        self.number = Digests.made
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, lane: int, function: object, name: str, kernels: str) -> None:
        self.name, self.kernels = name, kernels

    def take(self, lane: int, timeout_s: float) -> str:
        if self.name == "torch:mps":
            raise Failed("the GPU is gone")
        return str(self.number) if self.kernels == "metal" else "the same"


def test_a_form_whose_bits_differ_or_that_fails_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repeats, "Child", Digests)
    speeds = Speeds({"mlx:gpu": 1.0, "torch:mps": 1.0}, {"mlx:gpu": 1.0})
    checks, same = repeats.check_repeats(speeds)
    assert same == {"mlx:gpu": {"reference": True, "metal": False}, "torch:mps": {}}
    assert [str(check.result) for check in checks] == ["PASS", "WARN", "WARN"]
    assert "--determinism record" in checks[1].consequence
    assert checks[2].found == "the GPU is gone"
