"""What MLX generates is as recorded, and each dumped text is whole."""

import hashlib
import re
from importlib import metadata

import pytest

from mlxhog.metal.registry import instances
from tools import dump


@pytest.mark.slow
def test_every_kernel_is_dumped_for_both_consumers_and_includes_nothing_but_metal():
    names = {kernel.entry(instance) for kernel, instance in instances()}
    texts = dump.texts()
    assert texts.keys() == {f"{of}-{name}.metal" for of in ("mlx", "mps") for name in names}
    for name, text in texts.items():
        includes = {line for line in text.splitlines() if line.startswith("#include")}
        assert "#include <metal_stdlib>" in includes, name
        assert all(line.startswith("#include <metal_") for line in includes), name
        own = name.removesuffix(".metal").partition("-")[2]
        assert f"[[kernel]] void {own}(" in text or f"void custom_kernel_{own}_" in text


RECORDED = {"0.32.4": "ec70ca7b8330eaf43786cdbeba2b816440611341c2ea48cfdef55ae8e4d358b1"}
"""Version of MLX -> digest of the prelude in libmlx.dylib of its macOS wheel."""


def test_before_its_own_text_mlx_has_the_headers_of_its_wheel_as_the_mac_wheel_has_them():
    prelude = dump.mlx_prelude()
    assert "#define instantiate_kernel(" in prelude, "not preprocessed"
    assert "#if defined(__METAL_VERSION__) && (__METAL_VERSION__ >= 320)" in prelude
    assert not re.search(r'^#include "|^#pragma once', prelude, re.MULTILINE)
    digest = hashlib.sha256(prelude.encode()).hexdigest()
    recorded = RECORDED.get(metadata.version("mlx"))  # of another version nothing is known
    assert recorded in (None, digest)
