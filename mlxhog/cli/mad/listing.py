"""`mlxhog mad tasks`, `mad suites` and `mad layers`: the possible choices of each."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_type_hints

from mlxhog.cli.flags import Flags
from mlxhog.cli.output import print_json
from mlxhog.errors import ConfigError
from mlxhog.report.streams import wrapped

if TYPE_CHECKING:
    from mlxhog.mad.suites import Suite

TASKS_ABOUT = """\
List the tasks: the skill that each tests, and its settings with the values of its baseline,
which --set of mad train and mad data changes."""
TASKS_EXAMPLES = (
    "mad tasks",
    "mad tasks --plugin examples/my_task.py --json",
)


def run_tasks(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad tasks", TASKS_ABOUT, TASKS_EXAMPLES)
    flags.plugin()
    as_json = _as_json(flags, arguments)
    from mlxhog.mad.tasks import BENCHMARK, known

    facts = [_task(task) for task in known().values()]
    if as_json:
        print_json(facts)
        return 0
    for title, published in (("tasks of the benchmark", True), ("other tasks", False)):
        print(title)
        for one in facts:
            if (one["name"] in BENCHMARK) == published:
                settings = {name: each["value"] for name, each in one["settings"].items()}
                print(f"  {one['name']} ({one['short']})  {one['about']}".rstrip())
                print("\n".join(wrapped(f"      {_assignments(settings)}")))
    small = '--set seq_len=32 --layers "mlstm swiglu" --dim 64 --steps 50'
    print(f"next: mlxhog mad train --task CR {small}")
    return 0


def _task(task: Any) -> dict[str, Any]:
    from mlxhog.config.options import options

    baseline = task()
    settings = {
        name: {"value": getattr(baseline, name), "help": one.help}
        for name, one in options(task).items()
    }
    about = task.about or _first_line(task)
    return {"name": task.name, "short": task.short, "about": about, "settings": settings}


SUITES_ABOUT = """\
List the suites of mad bench and mad search: the runs of one candidate with one seed, its width, and
the tasks. The score is the mean over the tasks."""
SUITES_EXAMPLES = (
    "mad suites",
    "mad suites --json",
)


def run_suites(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    as_json = _as_json(Flags("mad suites", SUITES_ABOUT, SUITES_EXAMPLES), arguments)
    from mlxhog.mad.suites import SUITES

    facts = [_suite(make) for make in SUITES.values()]
    if as_json:
        print_json(facts)
        return 0
    for one in facts:
        tasks = ", ".join(f"{task} {runs}" for task, runs in one["tasks"].items())
        print(f"{one['name']}  {one['about']}")
        print("\n".join(wrapped(f"    {one['runs']} runs, width {one['dim']}: {tasks}")))
    print('next: mlxhog mad bench --layers "mlstm swiglu mlstm swiglu" --suite smoke --dry-run')
    return 0


def _suite(make: Callable[[], Suite]) -> dict[str, Any]:
    suite = make()
    return {
        "name": suite.name,
        "about": (inspect.getdoc(make) or "").partition("\n")[0],
        "dim": suite.dim,
        "runs": suite.runs,
        "tasks": Counter(setting.task for setting in suite.settings for _ in suite.points),
    }


LAYERS_ABOUT = """\
List the possible layers of a candidate: mixers, which mix positions, and channel maps. Each has its
numbers, as in "mlstm(heads=2) swiglu", their defaults, and its source. A number with the default
none follows from the width or from another number."""
LAYERS_EXAMPLES = (
    "mad layers",
    "mad layers --plugin examples/my_layer.py --json",
)


def run_layers(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad layers", LAYERS_ABOUT, LAYERS_EXAMPLES)
    flags.plugin()
    as_json = _as_json(flags, arguments)
    from mlxhog.models.mad.layers import known

    facts = [_layer(layer) for layer in known().values()]
    if as_json:
        print_json(facts)
        return 0
    for kind, title in (("mixer", "mixers"), ("channel", "channel maps")):
        print(title)
        source = ""
        for one in facts:
            if one["kind"] != kind:
                continue
            numbers = {name: each["default"] for name, each in one["numbers"].items()}
            print(f"  {one['name']}  {one['about']}")
            print("\n".join(wrapped(f"      {_assignments(numbers) or 'no numbers'}")))
            if one["source"] != source:  # once for layers of the same papers
                print("\n".join(wrapped(f"      {one['source']}")))
            source = one["source"]
    print('next: mlxhog mad show "mlstm(heads=2) swiglu"')
    return 0


def _assignments(values: dict[str, Any]) -> str:
    """Write values as --set and a line of layers take them."""
    return " ".join(f"{name}={_spelt(value)}" for name, value in values.items())


def _spelt(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _layer(layer: type[Any]) -> dict[str, Any]:
    types = get_type_hints(layer)
    numbers = {
        field.name: {"default": field.default, "type": _type_name(types[field.name])}
        for field in dataclasses.fields(layer)
    }
    return {
        "name": layer.name,
        "kind": layer.kind,
        "about": getattr(layer, "about", "") or _first_line(layer),
        "numbers": numbers,
        "source": _source(layer),
    }


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


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


def _as_json(flags: Flags, arguments: list[str]) -> bool:
    """Read a command line whose one flag is `--json`.

    Raises:
        ConfigError: it has others.
    """
    flags.argument("--json", action="store_true", help="a JSON list")
    parsed = flags.parse(arguments)
    if parsed.problems:
        raise ConfigError("\n".join(parsed.problems))
    return bool(parsed.other.json)
