"""Run the experiments and benchmarks of `TABLE`, and write the pages of their results.

    python benchmarks/all.py --quick             half an hour on two idle cores
    python benchmarks/all.py --full              more arms and seeds: four hours, in pieces
    python benchmarks/all.py --only scaling      one of them, or several
    python benchmarks/all.py --page              the pages again, from the results there are

Every script runs in a process of its own. Results and logs are in `results/MODE/`; the results of
--full are committed. Figures are drawn by an experiment's own --draw. A script that has ended with
this mode at this commit is not run again without --again, so an interrupted run continues; one that
failed, or that a busy machine disturbed, is run again. A commit of results alone is no other
commit. One that takes four times its seconds (at least ten minutes) is ended, and has failed.
--quick and --full refuse a tree with changes, whose results would be of no commit. A script that
fails does not stop the others.

The exit code is 0 (every limit of our own is kept), 1 (one is missed), 3 (none is missed; one
cannot be told or measured) or 4 (a script failed).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from harness.claims import EXIT_CODES, FULL, NOT_MEASURABLE, QUICK, WORDS, write_rows
from harness.claims_page import CLAIMS, claims_page
from harness.machine import ROOT, commit, not_this_commit
from harness.results_page import FAILED, name_of, read, results_page

from mlxhog.base.durable import replace_file

HERE = Path(__file__).resolve().parent
PATIENCE, LEAST_LIMIT_S = 4.0, 600.0
END_S = 30.0  # between SIGTERM and SIGKILL


class Script(NamedTuple):
    """One result and how it is made.

    Attributes:
        name: of the result.
        script: below benchmarks/, with what it is given in every mode.
        quick_s: seconds of --quick on two idle cores; None where --quick leaves it out.
        full_s: of --full.
        quick: its flags in the mode --quick.
        full: in the mode --full.
    """

    name: str
    script: str
    quick_s: float | None
    full_s: float
    quick: str = "--quick"
    full: str = "--full"

    def command(self, mode):
        """What a user types."""
        own = self.quick if mode == QUICK else self.full
        return f"python benchmarks/{self.script} {own}".rstrip()


def _experiment(name, quick_s, full_s, part_of=""):
    return Script(
        name, f"experiments/{part_of or name}.py{part_of and f' {name}'}", quick_s, full_s
    )


TABLE = (
    Script("classic_speed", "classic_speed.py", None, 100, full="--quick"),
    _experiment("paper_tables", 190, 260),
    _experiment("synthetic_svm", 70, 260),
    _experiment("image_svm", 45, 690),
    _experiment("linear_regression", 25, 110),
    _experiment("staleness", 250, 1430),
    _experiment("scaling", 110, 770),
    _experiment("architecture_search", 60, 100),
    _experiment("schemes", 210, 1910),
    _experiment("mixed_backends", 60, 460),
    _experiment("sparsified", 80, 500),
    _experiment("backoff", 190, 300),
    _experiment("lock_free_schedules", None, 430, "defaults"),
    _experiment("widths", None, 90, "defaults"),
    _experiment("minute", None, 120, "defaults"),
    _experiment("density", 40, 210),
    _experiment("late_gradients", 170, 480),
    _experiment("stragglers", 35, 90),
    _experiment("local_steps", 70, 140),
    _experiment("clients", 70, 90),
    _experiment("outer_steps", 100, 130),
    _experiment("ngram_tables", None, 200, "defaults"),
    Script("chaos", "chaos.py", None, 950, full="--minutes 6 --tokens 150000"),
    Script("faults", "soak.py faults", None, 420, full=""),
    Script("parity_false_failures", "parity_false_failures.py", None, 60, full="--runs 50"),
    Script("replays", "soak.py replays", None, 110, full="--runs 10"),
    Script("gate", "soak.py gate", None, 90, full="--runs 30"),
    Script("feeding", "feeding.py", None, 20, full="--examples 2000"),
    Script("compare_power", "compare_power.py", 20, 130, "--only simulated", "--quick --pairs 8"),
    Script("predicted_speed", "predicted_speed.py", None, 370, full=""),
    Script("advisor", "advisor.py", None, 40, full="--quick"),
    Script("repeatability", "soak.py repeatability", None, 170, full="--threads 1 2"),
    Script("one_writer", "one_writer.py", None, 100, full="--quick"),
    Script("recording_cost", "soak.py recording_cost", None, 250, full="--pairs 6 --time 10"),
    Script("speedup", "speedup.py", None, 470, full="--only default-loss"),
    Script("unequal_workers", "unequal_workers.py", None, 500,
           full="--quick --only loss --condition 'random sleeps'"),
)  # fmt: skip
"""In the order of the pages."""


def finished(name, mode, out, at):
    """Whether its result is of this mode, of this commit without changes, and was measurable."""
    path = out / f"{name}.json"
    last = json.loads(path.read_text()) if path.exists() else {}
    clean = at is not None and not at.endswith("+")
    again = last.get("verdict") in (None, FAILED, NOT_MEASURABLE)
    return clean and not again and (last.get("mode"), last.get("commit")) == (mode, at)


def run(script, mode, out, at, *, limit_s=0.0):
    """Run a script, pass its lines on, and return its result, or what is to be said of its end.

    Result and log lie in the folder afterwards, whatever happened. A result of another commit than
    `at`, because somebody changed the checkout meanwhile, is a failure, and so is one that hangs.
    """
    command = script.command(mode)
    words = [sys.executable, *shlex.split(command)[1:]]
    if script.script.startswith("experiments/"):
        words += ["--out", str(out)]
    stated = script.full_s if mode == FULL else script.quick_s or 0.0
    limit_s = limit_s or max(LEAST_LIMIT_S, PATIENCE * stated)
    began, lines = time.monotonic(), []
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,  # so that what it starts ends with it
    ) as process:
        alarm = threading.Timer(limit_s, _end, (process,))
        alarm.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                if not line.startswith('{"'):
                    print(f"    {lines[-1]}".rstrip(), flush=True)
        except BaseException:
            _end(process)
            raise
        finally:
            alarm.cancel()
    seconds = round(time.monotonic() - began, 1)
    result = _result(lines)
    if seconds >= limit_s:
        result = _failed(f"it was ended after {limit_s:g} s")
    elif process.returncode not in EXIT_CODES.values() or result is None:
        last = next((line for line in reversed(lines) if line), "it said nothing")
        result = _failed(f"exit code {process.returncode}: {last.strip()}")
    elif result.get("commit") != at:
        result = _failed(f"it began at commit {at} and ended at {result.get('commit')}")
    whole = {"experiment": script.name, **result, "mode": mode, "command": command,
             "seconds": seconds}  # fmt: skip
    text = "\n".join([f"$ {command}", *(line for line in lines if not line.startswith('{"'))])
    replace_file(out / f"{script.name}.txt", f"{text}\n".encode())
    write_rows(out / f"{script.name}.json", whole)
    return whole


def _end(process):
    """End a script and the processes of its session; those that do not end in time are killed."""
    give_up = time.monotonic() + END_S
    with contextlib.suppress(ProcessLookupError):  # none is left
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < give_up:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)


def _failed(error):
    return {"verdict": FAILED, "error": error}


def _result(lines):
    """The last JSON line; None where it is not one of a result."""
    last = next((line for line in reversed(lines) if line.startswith('{"')), "{}")
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(last)
        return value if "verdict" in value else None
    return None


def run_all(todo, mode, out, *, again=False):
    """Run scripts one after another; returns the verdicts of those and of the results kept."""
    at, verdicts = commit(), []
    out.mkdir(parents=True, exist_ok=True)
    for k, script in enumerate(todo):
        print(f"\n[{k + 1}/{len(todo)}] {script.command(mode)}", flush=True)
        if not again and finished(script.name, mode, out, at):
            print(f"    kept, of commit {at} (--again runs it again)", flush=True)
            result = json.loads((out / f"{script.name}.json").read_text())
        else:
            result = run(script, mode, out, at)
            print(f"    {result['seconds']:.0f} s {result.get('error', '')}".rstrip(), flush=True)
        verdict = result["verdict"]
        print(f"    {script.name}: {WORDS.get(verdict, verdict)}", flush=True)
        verdicts.append(verdict)
    return verdicts


def exit_code(verdicts):
    """The worst of the scripts' exit codes; 4 if one failed."""
    codes = {4 if verdict == FAILED else EXIT_CODES[verdict] for verdict in verdicts}
    return next((code for code in (4, 1, 3) if code in codes), 0)


def pages(folder):
    """RESULTS.md beside a folder of results; and docs/claims.md, if it is the one of this tree."""
    names = [script.name for script in TABLE]
    today = {(one.name, mode): one.command(mode) for one in TABLE for mode in (QUICK, FULL)}
    documents = [
        {**one, "command": today.get((name_of(one), one["mode"]), one["command"])}
        for one in read(folder, names)
    ]
    path = folder.parent / "RESULTS.md"
    texts = {path: results_page(documents, folder=folder.name, expected=names)}
    if folder == HERE / "results":
        texts[ROOT / "docs" / "claims.md"] = claims_page(CLAIMS.read_text("utf-8"), documents)
    return texts


def main(arguments=None):
    """Run what the flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--quick", action="store_true", help="minutes (default)")
    modes.add_argument("--full", action="store_true", help="more seeds, the documents' sizes")
    modes.add_argument("--page", action="store_true", help="only write the pages")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the scripts")
    parser.add_argument("--again", action="store_true", help="also those of this commit and mode")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of results")
    chosen = parser.parse_args(arguments)
    mode = FULL if chosen.full else QUICK
    known = [one for one in TABLE if mode == FULL or one.quick_s is not None]
    if unknown := set(chosen.only or ()) - {one.name for one in known}:
        names = ", ".join(one.name for one in known)
        parser.error(f"no script {min(unknown)} with --{mode}; there are {names}")
    if not chosen.page and (reason := not_this_commit()):
        parser.error(reason)
    todo = [one for one in known if chosen.only is None or one.name in chosen.only]
    folder, verdicts = chosen.out.resolve(), []
    try:
        if not chosen.page:
            verdicts = run_all(todo, mode, folder / mode, again=chosen.again)
    finally:
        for path, text in pages(folder).items():
            replace_file(path, text.encode())
            print(f"\n{path}")
    return exit_code(verdicts)


def _interrupt(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # the script that runs has to end, too
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
