"""Rejects what Metal forbids, and what our kernels must not do, before any compiler sees it.

    python -m tools.lint [FILE...]        all kernels by default

A rule is a name, a reason, a way out and a function from a file to offending lines (`rules.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mlxhog.metal.kernel import read_source, whole_text
from mlxhog.metal.registry import instances
from tools.lint.rules import RULES
from tools.lint.text import Finding, Source, functions

KERNELS = Path(__file__).parents[2] / "metal" / "kernels"
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def check_text(name: str, text: str, included: str = "") -> list[Finding]:
    """Check one text; a name that ends in `.h` makes it a header."""
    source = Source(name, text, included)
    return sorted(
        (
            Finding(name, problem.line, problem.what, rule)
            for rule in RULES
            for problem in rule.check(source)
        ),
        key=lambda finding: finding.line,
    )


def check_files(files: Iterable[Path]) -> list[Finding]:
    """Check files with the headers that they include, and that no two kernels share a name."""
    findings = []
    kernels: dict[str, Path] = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        findings += check_text(str(file), text, _included(file, set()))
        for function in functions(text):
            if function.is_kernel and kernels.setdefault(function.name, file) != file:
                rule = next(rule for rule in RULES if rule.name == "kernel name")
                what = f"a kernel {function.name}, as in {kernels[function.name].name}"
                findings.append(Finding(str(file), function.line, what, rule))
    return findings


def check_kernels() -> list[Finding]:
    """Check all headers and whole kernels of the project."""
    findings = check_files(sorted(KERNELS.glob("*.h")))
    for kernel, instance in instances():
        header = read_source(kernel.header)
        text = whole_text(kernel, instance).removeprefix(header)
        findings += check_text(f"{kernel.entry(instance)}.metal", text, header)
    return findings


def _included(file: Path, seen: set[Path]) -> str:
    """Return the text of all project headers below a file, each once."""
    texts = []
    for name in _INCLUDE.findall(file.read_text(encoding="utf-8")):
        header = file.parent / name
        if header not in seen:
            seen.add(header)
            texts += [_included(header, seen), header.read_text(encoding="utf-8")]
    return "\n".join(texts)
