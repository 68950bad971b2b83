"""`mlxhog runs`: the list of runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxhog.cli.flags import Flags
from mlxhog.config_sources import resolve
from mlxhog.metrics import label
from mlxhog.options import option


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """Options of `mlxhog runs`."""

    out: str = option("runs", "folder that holds the runs")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("runs", "List runs, the newest last.", ("runs", "runs --json"))
    flags.argument("--json", action="store_true", help="one JSON object per line")
    flags.options(RunsConfig)
    parsed = flags.parse(arguments)
    config = resolve(RunsConfig, [parsed.given], parsed.problems)
    from mlxhog.run import list_runs

    found = [
        {"run": str(run.directory), "name": run.name, **run.read_status()}
        for run in list_runs(Path(config.out))
    ]
    if parsed.other.json:
        for status in found:
            print(json.dumps(status))
    elif found:
        print(_table(found))
    else:
        print(f"no runs in {config.out}; `mlxhog train` makes one")
    return 0


def _table(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [("run", "status", "steps", "bits per byte", "")]
    for status in found:
        result = status.get("result", {})  # a run that has not ended has none
        bits = result.get("val_bits_per_byte")
        rows.append(
            (
                status["name"],
                str(status.get("status", "-")),
                str(status.get("steps", "-")),
                "-" if bits is None else f"{bits:.3f}",
                label(status.get("gpu_write", "cpu"), status.get("kernels", "native"))
                or "emulated before" * bool(status.get("emulated")),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(word.ljust(w) for word, w in line).rstrip() for line in lines)
