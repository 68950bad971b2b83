"""metal/native/ops/pool.cpp as macOS compiles it: its threads work as urgently as their caller."""

from __future__ import annotations

import ctypes

from tests.macos.simulation import HERE, ROOT, build, linux_only

OPS = ROOT / "metal" / "native" / "ops"
USER_INITIATED = 0x19


@linux_only
def test_helpers_of_the_pool_have_the_class_of_their_caller() -> None:
    flags = ["-D__APPLE__", f"-isystem{HERE / 'include'}", f"-I{OPS}"]
    pool = ctypes.CDLL(str(build("pool", *flags, str(HERE / "pool.cpp"), str(OPS / "pool.cpp"))))
    seen = (ctypes.c_uint * 3)()
    pool.classes(USER_INITIATED, 3, seen)
    assert list(seen) == [USER_INITIATED] * 3
