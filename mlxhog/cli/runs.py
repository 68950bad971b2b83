"""`mlxhog runs`: the list of runs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mlxhog.cli.flags import Flags
from mlxhog.config_sources import resolve
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

    found = list_runs(Path(config.out))
    if parsed.other.json:
        for info in found:
            print(json.dumps(asdict(info), default=str))
        return 0
    if not found:
        print(f"no runs in {config.out}; `mlxhog train` makes one")
        return 0
    rows = [("run", "status", "steps", "bits/byte")]
    for info in found:
        bits = info.val_bits_per_byte
        rows.append(
            (info.name, info.status, str(info.steps), "-" if bits is None else f"{bits:.3f}")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(word.ljust(w) for word, w in zip(row, widths, strict=True)).rstrip())
    return 0
