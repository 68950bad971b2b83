"""Run the benchmarks that the pages of results rest on, and write the pages.

    python benchmarks/all.py --quick             smallest sizes that say something; writes nothing
    python benchmarks/all.py --full              the results of the pages: four hours, in pieces
    python benchmarks/all.py --full --only schemes soak
    python benchmarks/all.py --page              docs/results.md and docs/generated/ again

Every script runs in a session of its own; --full lets it write benchmarks/results/NAME.json, so it
asks for a tree without changes, of which the results are. A script that takes four times its
seconds (at least ten minutes) is ended, and has failed. One that fails does not stop the others.

The exit code is 0 (every limit of our own is kept), 1 (one is missed), 3 (none is missed; one
inconclusive or measured) or 4 (a script failed). With --quick, whose sizes and repeats are too
small for most limits, 1 and 3 count for scripts of counts only (`COUNTS`), and all are printed.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from harness.claims import REFUTED
from harness.frame import EXIT_CODES, write_rows
from harness.machine import ROOT, not_this_commit
from harness.page import pages, why_stale

from mlxhog.base.durable import replace_file

RESULTS = Path(__file__).resolve().parent / "results"
PATIENCE, MIN_LIMIT_S = 4.0, 600.0
END_S = 30.0  # between SIGTERM and SIGKILL


class Script(NamedTuple):
    """A script, its words for --full and --quick, and the seconds of --full on two idle cores."""

    name: str
    seconds: float
    full: str = "--full"
    quick: str | None = "--quick"


TABLE = (
    Script("schemes", 3590),
    Script("peers", 1100, "", "--quick"),
    Script("speedup", 680, ""),
    Script("scaling", 770),
    Script("staleness", 1430),
    Script("mixed_backends", 460),
    Script("sparsified", 500),
    Script("defaults", 600),
    Script("backoff", 730),
    Script("late_gradients", 480),
    Script("local_sgd", 360),
    Script("paper_tables", 260),
    Script("course_project", 1060),
    Script("mad_search", 100),
    Script("chaos", 950, "--minutes 6 --tokens 150000", None),
    Script("soak", 1040, "--pairs 6 --time 10", "--quick --only gate"),
    Script("parity_false_failures", 60, "--runs 50", "--quick"),
    Script("conformance", 240, ""),
    Script("compare_power", 130, "--quick --pairs 8", "--only simulated"),
    Script("predicted_speed", 370, "", None),
    Script("advisor", 40, "--quick"),
    Script("adapters", 900, "--full", None),
    Script("one_writer", 100, "--quick", None),
)

COUNTS = "soak", "parity_false_failures", "conformance", "compare_power", "advisor"
"""Scripts whose limits hold at every size, on any machine: what they count must not happen."""


def run(words, *, limit_s):
    """Run a script, pass its lines on, and return its exit code; 4 if it failed or hangs."""
    words = [sys.executable, str(RESULTS.parent / words[0]), *words[1:]]
    code = None
    with subprocess.Popen(words, cwd=ROOT, start_new_session=True) as process:
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(limit_s)
        finally:  # end it and what is left of its session
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
    return code if code in EXIT_CODES.values() else 4


def run_all(scripts, *, full):
    """Run scripts one after another; returns their exit codes by name."""
    codes = {}
    for number, script in enumerate(scripts, 1):
        words = shlex.split(script.full if full else script.quick)
        print(f"\n[{number}/{len(scripts)}] {script.name}.py {shlex.join(words)}", flush=True)
        limit_s = max(MIN_LIMIT_S, PATIENCE * script.seconds)
        with tempfile.TemporaryDirectory() as scratch:
            out = RESULTS if full else Path(scratch)
            code = run([f"{script.name}.py", *words, "--output", str(out)], limit_s=limit_s)
            results = (json.loads(path.read_text()) for path in Path(scratch).glob("*.json"))
            if not full and code == 1 and all(one["verdict"] != REFUTED for one in results):
                code = 4  # it ended by a traceback
        codes[script.name] = code
    return codes


def mark_stale(folder):
    """Write into each result why this checkout cannot repeat it, until it is measured again."""
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text("utf-8"))
        reason = why_stale(result)
        if result.get("stale", "") != reason:
            result.pop("stale", None)
            write_rows(path, {**result, **({"stale": reason} if reason else {})})


def main(arguments=None):
    """Run what the flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_mutually_exclusive_group(required=True)
    modes.add_argument("--quick", action="store_true", help="an hour or two; writes nothing")
    modes.add_argument("--full", action="store_true", help="the results of the pages")
    modes.add_argument("--page", action="store_true", help="only write the pages")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the scripts")
    chosen = parser.parse_args(arguments)
    known = [one for one in TABLE if chosen.full or one.quick is not None]
    if unknown := set(chosen.only or ()) - {one.name for one in known}:
        names = ", ".join(one.name for one in known)
        parser.error(f"no script {min(unknown)} here; there are {names}")
    if chosen.full and (reason := not_this_commit()):
        parser.error(reason)
    todo = [one for one in known if chosen.only is None or one.name in chosen.only]
    codes = {} if chosen.page else run_all(todo, full=chosen.full)
    if not chosen.quick:
        mark_stale(RESULTS)
        for path, text in pages(RESULTS).items():
            path.parent.mkdir(exist_ok=True)
            replace_file(path, text.encode())
            print(path)
    for name, code in codes.items():
        print(f"{code}  {name}")
    if chosen.quick:
        codes = {name: code for name, code in codes.items() if code == 4 or name in COUNTS}
    return next((code for code in (4, 1, 3) if code in codes.values()), 0)


def _interrupt(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # the script that runs has to end, too
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
