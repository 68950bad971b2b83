"""Do damaged files and interrupted runs end as they should, and how often at most do they not?

    python benchmarks/faults.py            4,000 damaged files, 3 interruptions of each kind
    python benchmarks/faults.py --quick    400 and 1

`tests.faults.fuzz_loaders` damages files of every kind and loads them: each is refused by an error
that names it, in bounded time and memory. `tests.faults.interrupted_runs` ends runs by every signal
and a closed pipe, before, in and after their steps. Counts, which no load can spoil; the upper end
of an interval says how often a fault that was not seen may happen.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from argparse import Namespace

from harness.claims import Findings, flags, measured
from harness.estimates import Share
from harness.machine import ROOT, smallest

MOST_FILES, MOST_RUNS = 0.001, 0.1


def lines_of(module: str, *arguments: str) -> list[str]:
    """What a module prints; its lines are shown as well.

    Raises:
        SystemExit: it ended by an exception, so its last line counts nothing.
    """
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(ended.stdout, end="", flush=True)
    if ended.returncode not in (0, 1) or "Traceback" in ended.stderr:
        raise SystemExit(f"{module} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    return ended.stdout.splitlines()


def damaged_files(mutations: int) -> Share:
    """How many damaged files were not refused as they should be."""
    counts = json.loads(lines_of("tests.faults.fuzz_loaders", "--mutations", f"{mutations}")[-1])
    return Share(counts["failures"], counts["mutations"])


def interrupted_runs(repeat: int) -> Share:
    """How many interrupted runs ended wrongly."""
    last = lines_of("tests.faults.interrupted_runs", "--repeat", f"{repeat}")[-1]
    counts = {how: int(n) for how, n in re.findall(r"([^,]+) (\d+)(?:, |$)", last)}
    return Share(counts.get("WRONG", 0), sum(counts.values()))


def measure(findings: Findings, chosen: Namespace) -> None:
    """Count both."""
    files = damaged_files(smallest(10, 400 if chosen.quick else 4000))
    runs = interrupted_runs(1 if chosen.quick else 3)
    findings.exact("damaged files that are not refused as they should be", files.events, 0)
    findings.at_most("share of such files", files, MOST_FILES, timing=False)
    findings.exact("interrupted runs that end wrongly", runs.events, 0)
    findings.at_most("share of such runs", runs, MOST_RUNS, timing=False)


if __name__ == "__main__":
    chosen = flags(__doc__, quick="a tenth of the files, a third of the runs").parse_args()
    raise SystemExit(measured("faults", chosen, measure))
