"""`mlxhog mad tasks`, `mad suites` and `mad layers`: the possible choices of each."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

from mlxhog.cli.flags import plugin_flag
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import options, switch
from mlxhog.report.streams import wrapped


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Options of a list."""

    json: bool = switch("a JSON list")


@dataclass(frozen=True, kw_only=True)
class OwnListConfig(ListConfig):
    """Options of a list that a user's file may add to."""

    plugin: tuple[str, ...] = plugin_flag()


@command(
    "mad tasks",
    "List the tasks: the skill that each tests, and its settings with the values of its baseline,\n"
    "which --set of mad train and mad data changes.",
    ("mad tasks", "mad tasks --plugin examples/my_task.py --json"),
    OwnListConfig,
)
def tasks(config: OwnListConfig) -> Report:
    """List the tasks."""
    from mlxhog.mad.tasks import BENCHMARK, known

    facts = []
    for task in known().values():
        baseline, specs = task(), options(task)
        about = task.about or _first_line(task)
        settings = {n: {"value": getattr(baseline, n), "help": specs[n].help} for n in specs}
        row = {"name": task.name, "short": task.short, "about": about, "settings": settings}
        facts.append(row)

    def lines() -> Iterator[str]:
        for title, published in (("tasks of the benchmark", True), ("other tasks", False)):
            yield title
            for one in facts:
                if (one["name"] in BENCHMARK) == published:
                    settings = {name: each["value"] for name, each in one["settings"].items()}
                    yield f"  {one['name']} ({one['short']})  {one['about']}".rstrip()
                    yield from wrapped(f"      {_assignments(settings)}")
        small = '--set seq_len=32 --layers "mlstm swiglu" --dim 64 --steps 50'
        yield f"next: mlxhog mad train --task CR {small}"

    return Report(facts, lambda: "\n".join(lines()))


@command(
    "mad suites",
    "List the suites of mad bench and mad search: the runs of one candidate with one seed, its "
    "width, and\nthe tasks. The score is the mean over the tasks.",
    ("mad suites", "mad suites --json"),
    ListConfig,
)
def suites(config: ListConfig) -> Report:
    """List the suites."""
    from mlxhog.mad.suites import SUITES

    facts: list[dict[str, Any]] = []
    for make in SUITES.values():
        suite, about = make(), (inspect.getdoc(make) or "").partition("\n")[0]
        runs = Counter(setting.task for setting in suite.settings for _ in suite.points)
        row = {"name": suite.name, "about": about, "dim": suite.dim, "runs": suite.runs}
        facts.append({**row, "tasks": runs})

    def lines() -> Iterator[str]:
        for one in facts:
            tasks = ", ".join(f"{task} {runs}" for task, runs in one["tasks"].items())
            yield f"{one['name']}  {one['about']}"
            yield from wrapped(f"    {one['runs']} runs, width {one['dim']}: {tasks}")
        yield 'next: mlxhog mad bench --layers "mlstm swiglu mlstm swiglu" --suite smoke --dry-run'

    return Report(facts, lambda: "\n".join(lines()))


@command(
    "mad layers",
    "List the possible layers of a candidate: mixers, which mix positions, and channel maps. Each "
    'has its\nnumbers, as in "mlstm(heads=2) swiglu", their defaults, and its source. A number '
    "with the default\nnone follows from the width or from another number.",
    ("mad layers", "mad layers --plugin examples/my_layer.py --json"),
    OwnListConfig,
)
def layers(config: OwnListConfig) -> Report:
    """List the layers."""
    from mlxhog.models.mad.layers import known

    facts = [_layer(layer) for layer in known().values()]

    def lines() -> Iterator[str]:
        for kind, title in (("mixer", "mixers"), ("channel", "channel maps")):
            yield title
            source = ""
            for one in (one for one in facts if one["kind"] == kind):
                numbers = {name: each["default"] for name, each in one["numbers"].items()}
                yield f"  {one['name']}  {one['about']}"
                yield from wrapped(f"      {_assignments(numbers) or 'no numbers'}")
                if one["source"] != source:  # once for layers of the same papers
                    yield from wrapped(f"      {one['source']}")
                source = one["source"]
        yield 'next: mlxhog mad show "mlstm(heads=2) swiglu"'

    return Report(facts, lambda: "\n".join(lines()))


def _assignments(values: dict[str, Any]) -> str:
    """Write values as --set and a line of layers take them."""

    def spelt(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:g}"
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)

    return " ".join(f"{name}={spelt(value)}" for name, value in values.items())


def _layer(layer: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(layer)
    types = {n: getattr(hint, "__name__", "") for n, hint in hints.items()}
    types |= {n: str(hint) for n, hint in hints.items() if not isinstance(hint, type)}
    fields = dataclasses.fields(layer)
    return {
        "name": layer.name,
        "kind": layer.kind,
        "about": getattr(layer, "about", "") or _first_line(layer),
        "numbers": {one.name: {"default": one.default, "type": types[one.name]} for one in fields},
        "source": _source(layer),
    }


def _first_line(cls: type[Any]) -> str:
    """Return the first line of the docstring of a class's file."""
    return (inspect.getdoc(sys.modules[cls.__module__]) or "").partition("\n")[0]


def _source(layer: type[Any]) -> str:
    """Return the papers in the docstring of a layer's file, or the path of a user's file."""
    from mlxhog.config.plugin_file import loaded

    module = layer.__module__
    own = [file.path for file in loaded() if file.module == module]
    text = inspect.getdoc(sys.modules[module]) or ""
    papers = re.search(r"^Sources?: (.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return own[0] if own else " ".join(papers[1].split()) if papers else ""
