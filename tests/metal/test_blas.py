"""Products by the system's BLAS, as on a Mac, are those of our own code.

The build that a Mac has, with another CBLAS for Accelerate: Debian's OpenBLAS if it is installed,
else the one that MLX's package for Linux brings.
"""

import ctypes.util
import subprocess
from pathlib import Path

import mlx.core
import numpy as np
import pytest

from mlxhog import _native
from mlxhog.optim.muon import ORTHOGONALIZATIONS
from tests import kept
from tests.models.operators import draw
from tests.tolerances import ORTHOGONAL_F32, PRODUCT_F32, assert_close

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "metal/native/ops"
SOURCES = ["gemm.cpp", "linear.cpp", "newton_schulz.cpp", "pool.cpp", "rows.cpp", "weight.cpp"]
OF_MLX = list(Path(mlx.core.__file__).parents[1].glob("mlx*.libs/libblas*.so*"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(kept.COMPILER is None or not OF_MLX, reason="no compiler, or no CBLAS"),
]


@pytest.fixture(scope="module")
def programs():
    """The program with a BLAS, and one whose library lacks `cblas_sgemm`."""
    sources = [ROOT / "tests/metal/blas.cpp", *(OPS / name for name in SOURCES)]
    options = ["-std=c++20", "-O0", "-fPIE", "-pthread", "-fopenmp-simd", f"-I{OPS}"]
    options += ["-DMLXHOG_CBLAS"]
    debian = ctypes.util.find_library("openblas")
    library = str(OF_MLX[0]) if debian is None else f"-l:{debian}"
    cblas = ["-Wl,--no-as-needed", library, f"-Wl,-rpath,{OF_MLX[0].parent}"]
    with_blas = kept.linked("blas", sources, *options, link=["-pie", *cblas])
    return with_blas, kept.linked("no-blas", sources, *options, link=["-pie"])


def run(program, *words, given=None):
    """Run a program, or a command, on arrays; returns the floats that it prints."""
    command = program if isinstance(program, list) else [program]
    ended = subprocess.run(
        [*command, *map(str, words)],
        input=b"".join(x.tobytes() for x in given or []),
        capture_output=True,
        check=True,
        timeout=120,
    )
    return np.frombuffer(ended.stdout, np.float32)


SHAPES = ((1, 7), (5, 1), (31, 33), (64, 200), (200, 64), (300, 300))
SIZES = ((50, 96, 40), (33, 520, 70), (7, 20, 600), (1, 65, 33))


def assert_products(program):
    """A program's orthogonal factors, linear maps and their gradients are those of this machine."""
    for shape in SHAPES:
        x = draw(*shape)
        ours, theirs = (
            np.empty_like(x),
            run(program, "newton_schulz", *shape, given=[x]).reshape(shape),
        )
        _native.newton_schulz(
            [x], [ours], [1.0], np.float32(ORTHOGONALIZATIONS["polar3"]), threads=1
        )
        assert_close(theirs, ours, ORTHOGONAL_F32, label=str(shape))
    for rows, width, out in SIZES:
        x, w, dy = draw(rows, width), draw(out, width), draw(rows, out)
        theirs = run(program, "linear", rows, width, out, given=[x, w, dy])
        expected = [part.astype(np.float64).ravel() for part in (x @ w.T, dy @ w, dy.T @ x)]
        assert_close(theirs, np.concatenate(expected), PRODUCT_F32, label=f"{rows}, {out}")


def test_a_blas_multiplies_and_orthogonalises_as_our_own_products_do(programs):
    assert_products(programs[0])


def test_a_system_without_cblas_sgemm_takes_our_own_products(programs):
    """The symbol is bound weakly, so the module loads there, too."""
    with_blas, without = programs
    assert subprocess.run([with_blas, "found"], check=False).returncode == 0
    assert subprocess.run([without, "found"], check=False).returncode == 1
    x = draw(40, 60)
    assert_close(
        run(without, "newton_schulz", 40, 60, given=[x]),
        run(with_blas, "newton_schulz", 40, 60, given=[x]),
        ORTHOGONAL_F32,
    )
