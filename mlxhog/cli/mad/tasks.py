"""List the tasks: the skill that each tests, and its settings.

--task-set of mad train and mad data changes them.

Examples:
    mad tasks
    mad tasks --plugin examples/my_task.py --json
"""

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlxhog.cli.frame import CommandResult, Json, Plugins, command
from mlxhog.config.options import options
from mlxhog.display.streams import wrapped


def listing(rows: Iterable[tuple[str, dict[str, Any], Sequence[str]]], after: str) -> CommandResult:
    """Return entries, each (words after its name, payload, details), and the next command."""
    payload, lines = list[dict[str, Any]](), list[str]()
    for words, one, details in rows:
        payload.append(one)
        lines.append(f"{one['name']}{words}  {one['about']}".rstrip())
        lines += [line for text in filter(None, details) for line in wrapped("    " + text)]
    return CommandResult(payload, [*lines, f"next: {after}"])


@command()
def run(plugins: Plugins, config: Json) -> CommandResult:
    from mlxhog.mad.tasks import BENCHMARK, known

    rows = []
    for task in sorted(known().values(), key=lambda task: task.name not in BENCHMARK):
        specs, baseline = options(task), task()
        values = {name: getattr(baseline, name) for name in specs}
        payload = {
            "name": task.name,
            "short": task.short,
            "about": task.about or first_line(task),
            "settings": {n: {"value": v, "help": specs[n].help} for n, v in values.items()},
        }
        rows.append((f" ({task.short})", payload, [assignments_text(values)]))
    small = '--task CR --task-set seq_len=32 --layers "mlstm swiglu" --dim 64 --steps 50'
    return listing(rows, f"mlxhog mad train {small}")


def assignments_text(values: Mapping[str, Any]) -> str:
    """Write values as --task-set and a line of layers take them."""
    texts = {n: f"{x:g}" if isinstance(x, float) else str(x) for n, x in values.items()}
    words = {"None": "none", "True": "true", "False": "false"}
    return " ".join(f"{name}={words.get(text, text)}" for name, text in texts.items())


def first_line(cls: type[Any]) -> str:
    """Return the first line of the docstring of a class's file."""
    return (inspect.getdoc(sys.modules[cls.__module__]) or "").partition("\n")[0]
