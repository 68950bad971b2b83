"""The tree is the architecture: imports point one way, and frameworks stay at the edge."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The folders of `mlxhog`. Imports point to the same folder or to one further up in this list.
ORDER = (
    "errors", "_native", "config", "files", "machine", "report", "arena", "data", "metal",
    "models", "optim", "backends", "checkpoint", "strategies", "decoding", "training",
    "classic", "theory", "mad", "doctor", "parity", "cli", "__main__",
)  # fmt: skip
RANK = {name: rank for rank, name in enumerate(ORDER)}
NATIVE_USERS = {
    "arena", "data", "models", "optim", "strategies", "training", "theory", "mad", "classic",
}  # fmt: skip
KNOWN_CIRCLES = {
    "mlxhog.models.mad.sequence",
    "mlxhog.strategies",
    "mlxhog.mad.tasks.streams",
    "mlxhog.mad.report.board",
}
FRAMEWORKS = {"torch", "mlx", "transformers", "xlstm", "mlstm_kernels"}


@dataclass(frozen=True)
class Import:
    """One edge: `module` imports `target` in a line of a file, maybe only inside a function."""

    module: str
    target: str
    file: Path
    line: int
    at_import: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.module} imports {self.target}"


def modules() -> dict[str, Path]:
    """Every module of the installed package by its name."""
    found = {}
    for name, folder in (
        ("mlxhog", "mlxhog"),
        ("mlxhog.models", "models"),
        ("mlxhog.metal", "metal"),
    ):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join([name, *parts])] = file
    return found


MODULES = modules()


def imports(module: str) -> Iterator[Import]:
    """Every import statement of a module, also inside functions; not those for types only."""
    file = MODULES[module]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    waiting: list[tuple[ast.AST, bool]] = [(tree, True)]
    while waiting:
        node, at_import = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += [(child, at_import) for child in node.orelse]
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, file, node.lineno, at_import)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") + ["_"] * (file.name == "__init__.py")
                base = ".".join([*package[: -node.level], *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                target = inner if inner in MODULES or inner == "mlxhog._native" else base
                yield Import(module, target, file, node.lineno, at_import)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        waiting += [(child, at_import and not inside) for child in ast.iter_child_nodes(node)]


EDGES = [edge for module in MODULES if module != "mlxhog" for edge in imports(module)]


def part(module: str) -> str:
    """The first name below `mlxhog`; the front door counts as `mlxhog` itself."""
    return (module.split(".") + ["mlxhog"])[1]


def test_every_folder_has_a_place_in_the_order():
    assert {part(module) for module in MODULES if module != "mlxhog"} <= set(RANK)


def test_imports_point_one_way():
    wrong = [
        str(edge)
        for edge in EDGES
        if edge.target in MODULES.keys() - {"mlxhog"}
        and RANK[part(edge.module)] < RANK[part(edge.target)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_the_front_door():
    assert not [str(edge) for edge in EDGES if edge.target == "mlxhog"]


def test_modules_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for edge in EDGES:
        if edge.target in MODULES:
            graph.setdefault(edge.module, set()).add(edge.target)
    for node in KNOWN_CIRCLES:  # being removed
        graph.pop(node, None)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_the_shared_memory_parts_use_the_native_module():
    wrong = [
        str(edge)
        for edge in EDGES
        if edge.target == "mlxhog._native" and part(edge.module) not in NATIVE_USERS
    ]
    assert not wrong, "\n".join(wrong)


def test_only_backends_and_twins_import_a_framework():
    wrong = [
        str(edge)
        for edge in EDGES
        if edge.target.split(".")[0] in FRAMEWORKS
        and part(edge.module) != "backends"
        and not edge.file.stem.endswith(("_mlx", "_torch"))
    ]
    assert not wrong, "\n".join(wrong)


def test_models_and_metal_are_imported_by_their_installed_names():
    wrong = [str(edge) for edge in EDGES if edge.target.split(".")[0] in ("models", "metal")]
    assert not wrong, "\n".join(wrong)


def loaded_after(code: str) -> set[str]:
    """The modules of a fresh process, started where `import models` would work by accident."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_mlxhog_loads_no_framework_and_nothing_slow():
    loaded = loaded_after("import mlxhog; mlxhog.TrainConfig; mlxhog.ConfigError")
    assert not loaded & {"torch", "mlx", "mlx.core", "rich", "numpy", "transformers"}


def test_importing_everything_makes_no_second_copy_of_models_or_metal():
    names = [name for name in MODULES if name != "mlxhog.__main__"]
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert set(names) <= loaded
    assert not loaded & {"models", "metal"}


def test_the_front_door_offers_what_it_lists():
    import mlxhog

    for name in mlxhog.__all__:
        assert getattr(mlxhog, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Arenaa'"):
        mlxhog.Arenaa  # noqa: B018
