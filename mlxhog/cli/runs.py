"""`mlxhog runs`: the list of runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxhog.cli.flags import Flags
from mlxhog.config.limits import shown
from mlxhog.config.options import option
from mlxhog.report.metrics import label
from mlxhog.report.streams import printable


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """Options of `mlxhog runs`."""

    out: str = option("runs", "folder that holds the runs")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("runs", "List runs, the newest last.", ("runs", "runs --json"))
    flags.argument("--json", action="store_true", help="one JSON object per line")
    parsed, config = flags.read(RunsConfig, arguments)
    from mlxhog.checkpoint.run import list_runs

    statuses = [
        {**run.read_status(), "run": str(run.directory), "name": run.name}
        for run in list_runs(Path(config.out))
    ]
    if parsed.other.json:
        for status in statuses:
            print(json.dumps(status))
    elif statuses:
        print(_table(statuses))
    else:
        print(f"no runs in {config.out}; `mlxhog train` makes one")
    return 0


def _table(statuses: Sequence[Mapping[str, Any]]) -> str:
    rows = [("run", "status", "steps", "bits per byte", "")]
    for status in statuses:
        result = status.get("result")  # a run that has not ended has none
        bits = result.get("val_bits_per_byte") if isinstance(result, Mapping) else None
        rows.append(
            (
                status["name"],
                _text(status, "status"),
                _text(status, "steps"),
                f"{bits:.3f}" if isinstance(bits, float) else "-",
                label(_text(status, "gpu_write", "cpu"), _text(status, "kernels", "native"))
                or "emulated before" * bool(status.get("emulated")),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(word.ljust(w) for word, w in line).rstrip() for line in lines)


def _text(status: Mapping[str, Any], name: str, otherwise: str = "-") -> str:
    """A field of a run.json, which anybody may have edited, as text for the table."""
    value = status.get(name, otherwise)
    return printable(value if isinstance(value, str) else shown(value))[:40]
