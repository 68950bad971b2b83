"""List the suites of mad bench and mad search: tasks, runs and width.

A suite has a number of runs of one candidate with one seed, a width, and tasks. The score is the
mean over the tasks.

Examples:
    mad suites
    mad suites --json
"""

import inspect
from collections import Counter

from mlxhog.cli.frame import CommandResult, Json, command
from mlxhog.cli.mad.tasks import listing


@command()
def run(config: Json) -> CommandResult:
    from mlxhog.mad.suites import SUITES

    rows = []
    for make in SUITES.values():
        suite, about = make(), (inspect.getdoc(make) or "").partition("\n")[0]
        runs = Counter(setting.task for setting in suite.task_configs for _ in suite.sweep)
        payload = {"name": suite.name, "about": about, "dim": suite.dim, "runs": suite.runs}
        each = ", ".join(f"{task} {n}" for task, n in runs.items())
        detail = f"{suite.runs} runs, width {suite.dim}: {each}"
        rows.append(("", {**payload, "tasks": runs}, [detail]))
    words = '--layers "mlstm swiglu mlstm swiglu" --suite smoke --dry-run'
    return listing(rows, f"mlxhog mad bench {words}")
