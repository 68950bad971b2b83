"""Asks clang whether every pointer stays in its address space: what C++ compilers cannot see.

    python -m tools.address_spaces      every text that MLX or PyTorch would compile

clang compiles "C++ for OpenCL" too, whose address spaces are Metal's under other names: global is
`device`, local is `threadgroup`, private is `thread`. It rejects a `constant` pointer passed as
`device`, a write to `constant`, a threadgroup variable outside a kernel; it accepts the C-style
cast that drops const. The stand-in for Metal's library is `opencl/`.
Source: C++ for OpenCL 2021, section 2.2; Metal Shading Language Specification, section 4.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from mlxhog.errors import EnvironmentLacks, MetalError
from tools import dump

_INCLUDE = Path(__file__).parent / "opencl"
_FLAGS = (
    *("-x", "cl", "-cl-std=clc++2021", "-cl-no-stdinc", "-fsyntax-only"),
    *("-target", "spir64-unknown-unknown"),
    *("-Ddevice=__global", "-Dconstant=__constant"),
    *("-Dthreadgroup=__local", "-Dthread=__private"),
    *("-Wno-unknown-attributes", "-I", str(_INCLUDE)),
    "-Werror=c++98-c++11-c++14-compat",  # Metal before 4.0 is C++14; newer clangs say pre-c++17
)
NAMES = ("clang", *(f"clang-{version}" for version in range(22, 13, -1)))


def compiler() -> str:
    """Return the name of a clang on this machine.

    Raises:
        EnvironmentLacks: there is none.
    """
    for name in NAMES:
        if shutil.which(name):
            return name
    raise EnvironmentLacks(
        "no clang on this machine, and the check of Metal's address spaces needs version 14 or "
        "newer; apt-get install clang"
    )


def prelude() -> str:
    """Return what stands for MLX's prelude: its macros, which our text could meet by accident.

    The rest of it needs all of Metal's library, which is no OpenCL. `tools.lint` compares the names
    that it declares with ours.
    """
    macros = "\n".join(dump.mlx_macros().values())
    return f"#include <metal_stdlib>\nusing namespace metal;\n{macros}\n"


def check(name: str, text: str, *, clang: str | None = None) -> None:
    """Check a whole Metal text, all own headers included, by a clang, the first that is found.

    Raises:
        MetalError: clang rejects the text; the message has the lines, and `name` as the file.
        EnvironmentLacks: there is no clang.
    """
    text = text.replace("[[kernel]]", "__kernel")
    done = subprocess.run(
        [clang or compiler(), *_FLAGS, "-"],
        input=f'#line 1 "{name}"\n{text}',
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise MetalError(f"{name} breaks the rules of address spaces:\n{done.stderr.strip()}")


def main() -> int:
    """Check every text; 1 if one is rejected."""
    texts, rejected = dump.texts(prelude()), 0
    for name, text in texts.items():
        try:
            check(name, text)
        except MetalError as error:
            print(error)
            rejected += 1
    print(f"{compiler()} rejects {rejected} of {len(texts)} texts")
    return int(bool(rejected))


if __name__ == "__main__":
    sys.exit(main())
