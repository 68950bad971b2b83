"""The structure of the package as its imports show it: folders, their order, circles, sizes.

    python -m tools.structure        the numbers, an edge a line where one points up, every circle

`tests/test_imports.py` asserts what has to hold of it.
"""

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"mlxhog": "mlxhog", "mlxhog.models": "models", "mlxhog.metal": "metal"}
"""Name of an installed package -> its folder in the repository."""

ORDER = (
    "errors", "_native", "base", "config", "progress", "arena", "baselines", "data", "metal",
    "models", "optim", "backends", "checkpoint", "nn", "strategies", "display", "decoding",
    "cluster", "training", "experiments", "serving", "mad", "research", "conformance", "doctor",
    "cli", "__main__",
)  # fmt: skip
"""The folders and files of `mlxhog`: imports stay inside one, or point to one further up here."""


@dataclass(frozen=True)
class Import:
    """One edge: `module` imports `target` in a line of a file, maybe only inside a function."""

    module: str
    target: str
    file: Path
    line: int

    @property
    def inside(self) -> bool:
        """Whether the target is a module of the package other than its front door."""
        return self.target in modules() and self.target != "mlxhog"

    @property
    def points_up(self) -> bool:
        """Whether it runs against `ORDER`."""
        return self.inside and ORDER.index(part(self.module)) < ORDER.index(part(self.target))

    def __str__(self) -> str:
        """Name the place and both modules."""
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.module} imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    """Every module of the installed package by its name."""
    files = {}
    for name, folder in PACKAGES.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join([name, *parts]).removesuffix(".__init__")] = file
    return files


@cache
def imports() -> tuple[Import, ...]:
    """Every import statement but the front door's, also in functions and for types only."""
    return tuple(edge for module in modules() if module != "mlxhog" for edge in _of(module))


def _of(module: str) -> Iterator[Import]:
    file = modules()[module]
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, file, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") + ["_"] * (file.name == "__init__.py")
                base = ".".join([*package[: -node.level], *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                target = inner if inner in modules() or inner == "mlxhog._native" else base
                yield Import(module, target, file, node.lineno)
        waiting += ast.iter_child_nodes(node)


def part(module: str) -> str:
    """The first name below `mlxhog`; the front door counts as `mlxhog` itself."""
    return (module.split(".") + ["mlxhog"])[1]


def circles() -> list[list[str]]:
    """Modules that import each other in a circle, lazily or not: each group once, sorted."""
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for edge in imports():
        if edge.inside:
            graph[edge.module].add(edge.target)
    reached: dict[str, set[str]] = {}
    for module in graph:
        seen, waiting = set[str](), [module]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[module] = seen
    groups = {
        tuple(sorted(other for other in seen if module in reached[other]))
        for module, seen in reached.items()
        if module in seen
    }
    return sorted(map(list, groups))


def main() -> int:
    """Print the numbers; exit code 1 where an edge points up or a circle exists."""
    kinds = {".py", ".pyi", ".h", ".cpp"}
    every = (file for folder in PACKAGES.values() for file in (ROOT / folder).rglob("*"))
    lines = {
        file: len(file.read_text(encoding="utf-8").splitlines())
        for file in every
        if file.suffix in kinds and file.is_file()
    }
    own = [lines[file] for file in modules().values()]
    edges = {(edge.module, edge.target) for edge in imports() if edge.inside}
    importers = Counter(target for module, target in edges if module != target)
    between = {(part(a), part(b)) for a, b in edges if part(a) != part(b)}
    upward = [edge for edge in imports() if edge.points_up]
    print(f"{len(own)} Python files, median {statistics.median(own):.0f} lines")
    print(f"{sum(lines.values()):,} lines of Python, C++ and Metal in {len(lines)} files")
    print(f"{sum(n > 500 for n in own)} Python files of more than 500 lines")
    print(f"{sum(n == 1 for n in importers.values())} modules with one importer")
    print(f"{len(between)} import edges between folders and files of mlxhog/")
    print(f"{len(upward)} imports that point up")
    print(f"{len(circles())} circles")
    print(*(f"  up: {edge}\n" for edge in upward), sep="", end="")
    print(*(f"  circle: {', '.join(circle)}\n" for circle in circles()), sep="", end="")
    return int(bool(upward or circles()))


if __name__ == "__main__":
    sys.exit(main())
