"""Tests on the GPU run on the GPU, whatever device another test left MLX with."""

import mlx.core as mx
import pytest


def test_tests_on_the_gpu_run_there_and_leave_the_device_as_it_was(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [mx.Device(mx.cpu)]
    monkeypatch.setattr(mx, "default_device", lambda: chosen[-1])
    monkeypatch.setattr(mx, "set_default_device", chosen.append)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)

    def restored() -> None:
        assert chosen == [mx.cpu, mx.gpu, mx.cpu]

    request.addfinalizer(restored)  # runs after the fixture has ended
    request.getfixturevalue("metal_device")
    assert chosen == [mx.cpu, mx.gpu]
