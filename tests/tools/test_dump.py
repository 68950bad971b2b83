"""What MLX generates is as recorded, and each dumped text is whole."""

import subprocess
from pathlib import Path

import mlx.core as mx
import pytest

from mlxhog.metal.registry import KERNELS, instances
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


@pytest.mark.slow
def test_before_its_own_text_mlx_has_the_headers_of_its_wheel_and_none_of_their_macros(tmp_path):
    """Preprocessed as on a Mac: Metal's headers are empty here, and its version is defined."""
    for header in ("metal_stdlib", "metal_math", "metal_logging"):
        (tmp_path / header).write_text("")
    text = next(text for name, text in dump.texts().items() if name.startswith("mlx-dense_axpy"))
    headers = Path(mx.__file__).parent / "include"
    compiler = ["g++", "-E", "-P", "-x", "c++", "-nostdinc", "-I", str(tmp_path)]

    def words(text, *options):
        process = subprocess.run(
            [*compiler, *options, "-"], input=text, capture_output=True, text=True, check=True
        )
        lines = [line for line in process.stdout.splitlines() if "#pragma" not in line]
        return " ".join(lines).split()

    actual = words(text, "-D__METAL_VERSION__=320", "-D__METAL__")
    prelude = '#include "mlx/backend/metal/kernels/utils.h"\n'
    expected = words(prelude, "-DMLX_METAL_JIT", "-I", str(headers))
    assert len(expected) > 1000
    assert actual[: len(expected)] == expected
    ours = words(dump.mlx_text(KERNELS["dense_axpy"], ""))
    assert actual[len(expected) :] == ours
    defined = words(dump.mlx_prelude(), "-dM")
    assert not [word for word in defined if word.startswith(("instantiate_", "MLX_", "MTL_"))]
