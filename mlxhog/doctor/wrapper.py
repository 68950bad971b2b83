"""Whether the installed MLX wraps our kernels in the text that we run and test elsewhere."""

from __future__ import annotations

import re
import subprocess

from mlxhog.doctor.checks import Check, Result, absent, check
from mlxhog.doctor.kernels import instances
from mlxhog.errors import MlxhogError
from mlxhog.machine.verdicts import NONE
from mlxhog.metal.host import build, capture, request, wrap


def examine() -> Check:
    """Ask MLX for the text of every kernel, and compare it with our statement of its rules."""
    name, expected = "MLX's text of our kernels", "the text that was emulated and tested"
    if not capture.mlx_version():
        return absent(name, f"mlx is {NONE}", expected)
    wanted = [request.of(kernel, instance) for kernel, instance in instances()]
    consequence = "emulated results say less: this MLX passes arguments in another way"
    try:
        texts = capture.texts(wanted, build.kernel_cache())
    except (MlxhogError, subprocess.TimeoutExpired) as error:
        return Check(name, Result.WARN, str(error), expected, consequence)
    others = [
        each.name
        for each, text in zip(wanted, texts, strict=True)
        if _words(text) != _words(wrap.text(each))
    ]
    found = f"{len(wanted) - len(others)} of {len(wanted)} equal, but for spaces and names"
    if others:
        found += f"; not {', '.join(others)}"
    return check(name, not others, found, expected, consequence, otherwise=Result.WARN)


def _words(text: str) -> list[str]:
    """What matters in a text: not white space, and not the name that MLX makes up."""
    return re.sub(r"custom_kernel_\w+", "custom_kernel", text).split()
