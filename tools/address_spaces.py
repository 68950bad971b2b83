"""Asks clang whether every pointer stays in its address space: what C++ compilers cannot see.

    python -m tools.address_spaces [FILE...]      every kernel by default

clang compiles "C++ for OpenCL" too, whose address spaces are Metal's under other names: global is
`device`, local is `threadgroup`, private is `thread`. It rejects a `constant` pointer passed as
`device`, a write to `constant`, a threadgroup variable outside a kernel; it accepts the C-style
cast that drops const. The stand-in for Metal's library is `opencl/`.
Source: C++ for OpenCL 2021, section 2.2; Metal Shading Language Specification, section 4.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mlxhog.errors import EnvironmentLacks, MetalError
from tools import dump

PRELUDE = """\
#include <metal_stdlib>
using namespace metal;
typedef half float16_t;
typedef bfloat bfloat16_t;
"""
"""Stands for MLX's prelude, which is no OpenCL; our kernels use no more of it than this."""

_INCLUDE = Path(__file__).parent / "opencl"
_FLAGS = (
    *("-x", "cl", "-cl-std=clc++2021", "-cl-no-stdinc", "-fsyntax-only"),
    *("-target", "spir64-unknown-unknown"),
    *("-Ddevice=__global", "-Dconstant=__constant"),
    *("-Dthreadgroup=__local", "-Dthread=__private"),
    *("-Wno-unknown-attributes", "-I", str(_INCLUDE)),
)
_NAMES = ("clang", *(f"clang-{version}" for version in range(22, 13, -1)))


def compiler() -> str:
    """Return the name of a clang on this machine.

    Raises:
        EnvironmentLacks: there is none.
    """
    for name in _NAMES:
        if shutil.which(name):
            return name
    raise EnvironmentLacks(
        "no clang on this machine, and the check of Metal's address spaces needs version 14 or "
        "newer; apt-get install clang"
    )


def check(name: str, text: str, *, clang: str | None = None) -> None:
    """Check a whole Metal text.

    Args:
        name: what messages call the text.
        text: all own headers included.
        clang: the compiler; by default the first that is found.

    Raises:
        MetalError: clang rejects the text; the message has the lines.
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


def check_all(named: Mapping[str, str]) -> list[str]:
    """Check texts by name and return the messages of those that are rejected."""
    messages = []
    for name, text in named.items():
        try:
            check(name, text)
        except MetalError as error:
            messages.append(str(error))
    return messages


def main(names: list[str]) -> int:
    """Check the named files, by default every text that MLX or PyTorch would compile."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.address_spaces",
        description="Ask clang whether pointers stay in their address spaces.",
    )
    parser.add_argument("file", nargs="*", help="default: all that MLX or PyTorch would compile")
    files = parser.parse_args(names).file
    try:
        named = {name: Path(name).read_text(encoding="utf-8") for name in files}
    except OSError as error:
        parser.error(f"cannot read {error.filename}: {error.strerror}")
    named = named or dump.texts(PRELUDE)
    messages = check_all(named)
    print("\n".join(messages) or f"{compiler()} accepts the address spaces of {len(named)} texts")
    return int(bool(messages))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
