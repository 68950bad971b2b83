"""Nothing is loaded from the cache of compiled kernels that another user could have put there."""

import os

import numpy as np
import pytest

from mlxhog.base.cache import is_kept, private_directory
from mlxhog.errors import EnvironmentLacks
from mlxhog.metal.emulator import build
from mlxhog.metal.emulator.engine import EmulatorEngine
from tests.metal.emulator.probes import GROUP_SUM, on


def test_a_library_planted_in_the_cache_is_refused(tmp_path, new_emulator):
    cache = private_directory(tmp_path / "cache")
    built = new_emulator().built(GROUP_SUM)
    (cache / built.name).symlink_to(built)
    with pytest.raises(EnvironmentLacks, match=rf"{built.name} is not trusted: it is not a reg"):
        EmulatorEngine(cache=cache).run(on(GROUP_SUM, np.ones(64, np.float32)))


def test_a_cache_that_others_can_write_is_refused(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for mode in (0o770, 0o702, 0o1777):
        cache.chmod(mode)
        with pytest.raises(EnvironmentLacks, match=r"can be written by others \(mode 0?1?7"):
            build.make_cache(cache)


def test_the_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    private_directory(tmp_path / "cache")
    (tmp_path / "cache" / "a.so").touch(0o600)
    assert is_kept(tmp_path / "cache" / "a.so")
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(EnvironmentLacks, match=r"cache is not trusted: it belongs to .*uid"):
        private_directory(tmp_path / "cache")
    with pytest.raises(EnvironmentLacks, match=r"a\.so is not trusted: it belongs to .*uid"):
        is_kept(tmp_path / "cache" / "a.so")
