"""Run the benchmarks that the pages of results rest on, and write the pages.

    python benchmarks/all.py --quick             smallest sizes that say something; writes nothing
    python benchmarks/all.py --full              the results of the pages: a day and a half
    python benchmarks/all.py --full --only schemes soak
    python benchmarks/all.py --full --campaign FILE           likewise; again it continues
    python benchmarks/all.py --full --campaign FILE --status  what is done, and what is left
    python benchmarks/all.py --page              docs/results.md and docs/generated/ again

Every script runs in a session of its own; --full lets it write benchmarks/results/NAME.json, so it
asks for a tree without changes, of which the results are. A script that takes four times its
seconds (at least ten minutes) is ended, and has failed. One that fails does not stop the others.
A campaign is of one commit, machine and set of packages, pinned to two cores, and waits before each
script until others are quiet; `harness/campaign.py` says what its FILE records.

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

from harness.campaign import FAILED, Campaign
from harness.claims import EXIT_CODES, REFUTED
from harness.frame import write_rows
from harness.machine import ROOT, not_this_commit
from harness.page import pages, why_stale

from mlxhog.base.durable import replace_file

RESULTS = Path(__file__).resolve().parent / "results"
PATIENCE, MIN_LIMIT_S = 4.0, 600.0
END_S = 30.0  # between SIGTERM and SIGKILL


class Script(NamedTuple):
    """A script, its words for --full and --quick, and the seconds of --full on two idle cores.

    `keep` is its flag for what an interrupted run continues from.
    """

    name: str
    seconds: float
    full: str = "--full"
    quick: str | None = "--quick"
    keep: str = ""


TABLE = (
    Script("schemes", 31_000, keep="--keep"),
    Script("staleness", 2390),
    Script("across_machines", 5400, "--quick", None, "--keep"),
    Script("peers", 8200, "--only peers five_minutes own_text", "--quick", "--keep"),
    Script("defaults", 1000),
    Script("speedup", 680, ""),
    Script("model_speed", 280, "--quick", None),
    Script("live", 1200, "", None),
    Script("state_tracking", 3600, "", None),
    Script("memory", 3900, "--quick", None),
    Script("adapters", 900, "--full", None),
    Script("fine_tuning", 2700, "--full", None),
    Script("moments", 4800, "--full", None),
    Script("mixed_precision", 6400, "--full", None, "--folder"),
    Script("mad_record", 12_600, "--seeds 1", None, "--studies"),
    Script("samplers", 300, "", None),
    Script("chaos", 950, "--minutes 6 --tokens 150000", None),
    Script("soak", 1040, "--pairs 6 --time 10", "--quick --only gate"),
    Script("parity_false_failures", 60, "--runs 50", "--quick"),
    Script("conformance", 240, ""),
    Script("atomic_add", 300, "", None),
    Script("compare_power", 130, "--quick --pairs 8", "--only simulated", "--folder"),
    Script("predicted_speed", 370, "", None),
    Script("late_gradients", 800),
    Script("sparsified", 500),
    Script("backoff", 730),
    Script("one_writer", 100, "--quick", None),
    Script("scaling", 1290, keep="--keep"),
    Script("mixed_backends", 770),
    Script("mad_search", 100, keep="--studies"),
    Script("local_sgd", 360),
    Script("paper_tables", 260),
    Script("course_project", 1060),
    Script("presets_by_text", 35_000, "--quick --limit 1000", None, "--rows"),
    Script("advisor", 40, "--quick"),
)
"""In the order of the rows of the pages."""

NOT_ASKED = {
    "many_cores": "two cores cannot decide what sixteen do: scaling.py --full --only many_cores",
    "unequal_workers": "schemes.py has no part of it any more",
    "classic_speed": "its script is gone",
    "second_machine": "a part of across_machines",
    "cluster_chaos": "pytest counts it: soak.py --only cluster_chaos",
    "first_minute": "it was typed by hand; minute and peers measure the same",
    "optimizer_step": "its script is gone",
    "mad_ranking": "three hours: mad_search.py --only mad_ranking",
    "search_pays": "two hours: mad_search.py --full --only search_pays",
}
"""Results that --full leaves as they are, and why."""

COUNTS = "soak", "parity_false_failures", "conformance", "compare_power", "advisor"
"""Scripts whose limits hold at every size, on any machine: what they count must not happen."""


def run(words, *, limit_s, pass_fds=()):
    """Run a script, pass its lines on, and return its exit code; 4 if it failed or hangs."""
    words = [sys.executable, str(RESULTS.parent / words[0]), *words[1:]]
    code = None
    with subprocess.Popen(words, cwd=ROOT, start_new_session=True, pass_fds=pass_fds) as process:
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(limit_s)
        finally:  # end it and what is left of its session
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
    return code if code in EXIT_CODES.values() else FAILED


def run_all(scripts, *, full, campaign=None):
    """Run scripts one after another; returns their exit codes by name."""
    codes = {}
    for number, script in enumerate(scripts, 1):
        words = [f"{script.name}.py", *shlex.split(script.full if full else script.quick)]
        print(f"\n[{number}/{len(scripts)}] {shlex.join(words)}", flush=True)
        if campaign:
            campaign.start(script, shlex.join(words))
            words += campaign.keep(script)
        limit_s = max(MIN_LIMIT_S, PATIENCE * script.seconds)
        with tempfile.TemporaryDirectory() as scratch:
            out = RESULTS if full else Path(scratch)
            before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
            code = run(
                [*words, "--output", str(out)], limit_s=limit_s,
                pass_fds=[campaign.lock.fileno()] if campaign else (),
            )  # fmt: skip
            results = {
                path.stem: json.loads(path.read_text("utf-8")) for path in out.glob("*.json")
                if path.stat().st_mtime_ns != before.get(path)
            }  # fmt: skip
        if code == 1 and all(one["verdict"] != REFUTED for one in results.values()):
            code = FAILED  # it ended by a traceback
        if campaign:
            campaign.end(code, results)
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
    parser.add_argument("--campaign", type=Path, metavar="FILE", help="--full over several days")
    parser.add_argument("--status", action="store_true", help="only say what is left of --campaign")
    chosen = parser.parse_args(arguments)
    if (chosen.campaign and not chosen.full) or (chosen.status and not chosen.campaign):
        parser.error("--campaign FILE goes with --full, and --status with --full --campaign FILE")
    known = [one for one in TABLE if chosen.full or one.quick is not None]
    if unknown := set(chosen.only or ()) - {one.name for one in known}:
        names = ", ".join(one.name for one in known)
        parser.error(f"no script {min(unknown)} here; there are {names}")
    campaign, codes = None, {}
    with contextlib.ExitStack() as held:
        try:
            if chosen.campaign:
                campaign = Campaign(chosen.campaign, TABLE)
            if chosen.status:
                if not chosen.campaign.exists():
                    parser.error(f"{chosen.campaign} does not exist; without --status it is begun")
                print(*campaign.status(), sep="\n")
                return 0
            if chosen.full and (reason := not_this_commit()):
                parser.error(reason)
            if campaign:
                held.enter_context(campaign.begin(RESULTS))
                known = campaign.left
        except ValueError as error:
            parser.error(str(error))
        todo = [one for one in known if chosen.only is None or one.name in chosen.only]
        if not chosen.page:
            codes = run_all(todo, full=chosen.full, campaign=campaign)
    if not chosen.quick:
        mark_stale(RESULTS)
        for path, text in pages(RESULTS).items():
            path.parent.mkdir(exist_ok=True)
            replace_file(path, text.encode())
            print(path)
    for name, code in codes.items():
        print(f"{code}  {name}")
    if chosen.quick:
        codes = {name: code for name, code in codes.items() if code == FAILED or name in COUNTS}
    return next((code for code in (FAILED, 1, 3) if code in codes.values()), 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its script has to end, too
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
