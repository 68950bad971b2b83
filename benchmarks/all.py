"""Run the experiments and benchmarks that state a budget, and write the pages of their results.

    python benchmarks/all.py --quick             half an hour on two idle cores
    python benchmarks/all.py --full              more arms and seeds: four hours, in pieces
    python benchmarks/all.py --only scaling      one of them, or several
    python benchmarks/all.py --page              the pages again, from the results there are

A script takes part by a literal `BUDGET`:

    BUDGET = {"order": 30, "quick_s": 120, "full_s": 5400}                         # an experiment
    BUDGET = {"order": 10, "quick_s": 60, "quick": ["--quick"], "full_s": 600, "full": []}

`order` is its place, `quick_s` and `full_s` are seconds on two idle cores. Experiments have the
modes' own flags; another benchmark is run in the modes for which it states flags, and by --tiny
without a budget. A mode without seconds is left out.

Every script runs in a process of its own. Results and logs are in `results/MODE/`; the results of
--full are committed. Figures are drawn by an experiment's own --draw. A script that
has ended with this mode at this commit is not run again without --again, so a run continues where
it was interrupted; one that failed, or that a busy machine disturbed, is run again. A commit of
results alone is no other commit. One that takes four times its seconds (at least ten minutes) is
ended, and has failed. Elsewhere a run continues in a checkout of the same commit, after
`python -m pip install -e .` there, with a copy of `results/`. --quick and --full refuse a tree with
changes, whose results would be of no commit. A script that fails does not stop the others.

The exit code is 0 (every limit of our own is kept), 1 (one is missed), 3 (none is missed; one
cannot be told or measured) or 4 (a script failed).
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.claims import (
    EXIT_CODES,
    MET,
    MISSED,
    MODES,
    NO_LIMIT,
    NOT_MEASURABLE,
    TINY,
    WORDS,
    flags,
    mode_of,
    write_rows,
)
from harness.claims_page import CLAIMS, claims_page
from harness.machine import ROOT, commit, not_this_commit
from harness.results_page import FAILED, ended, measured, read, results_page

from mlxhog.files.durable import replace_file
from mlxhog.files.quantities import format_clock

HERE = Path(__file__).resolve().parent
UNKNOWN_S = 60.0
TINY_SHARE = 0.3  # of --quick's seconds
PATIENCE, LEAST_LIMIT_S = 4.0, 600.0
END_S = 30.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Script:
    """One script and how it is called.

    Attributes:
        name: of the script and its files.
        path: of the script.
        flags: of the mode.
        order: place among the others.
        expected_s: seconds that it states for the mode.
        writes: whether it writes its result itself, as experiments do.
    """

    name: str
    path: Path
    flags: tuple[str, ...]
    order: int = 0
    expected_s: float = UNKNOWN_S
    writes: bool = False

    @property
    def command(self) -> str:
        """What a user types."""
        return " ".join(["python", str(self.path.relative_to(ROOT)), *self.flags])


def budget(path: Path) -> Mapping[str, Any]:
    """Return the literal `BUDGET` of a script, without importing it; empty without one."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BUDGET":
            value: Mapping[str, Any] = ast.literal_eval(node.value)
            return value
    return {}


def scripts(mode: str) -> list[Script]:
    """Every script that takes part in a mode, in order."""
    entries = []
    for folder in (HERE / "experiments", HERE):
        for path in sorted(folder.glob("*.py")):
            stated, experiment = budget(path), folder != HERE
            own = [f"--{mode}"] if experiment or mode == TINY else stated.get(mode)
            if path == Path(__file__) or own is None:
                continue
            if mode != TINY and f"{mode}_s" not in stated:
                continue
            quick_s = stated.get("quick_s", UNKNOWN_S)
            seconds = stated.get(f"{mode}_s", TINY_SHARE * quick_s)
            order = stated.get("order", sys.maxsize)
            entries.append(Script(path.stem, path, tuple(own), order, seconds, experiment))
    return sorted(entries, key=lambda script: (script.order, script.name))


def expected_s(script: Script, mode: str, out: Path) -> float:
    """Seconds a script is going to take: as long as last time, or what it states."""
    last = _result(script, out)
    if last.get("mode") == mode and last.get("seconds"):
        return float(last["seconds"])
    return script.expected_s


def finished(script: Script, mode: str, out: Path, at: str | None) -> bool:
    """Whether its result is of this mode, of this commit without changes, and was measurable."""
    last = _result(script, out)
    clean = at is not None and not at.endswith("+")
    again = last.get("verdict") in (None, FAILED, NOT_MEASURABLE)
    return clean and not again and (last.get("mode"), last.get("commit")) == (mode, at)


def _result(script: Script, out: Path) -> Mapping[str, Any]:
    path = out / f"{script.name}.json"
    result: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return result


def run(script: Script, mode: str, out: Path, at: str | None) -> Mapping[str, Any]:
    """Run a script, pass its lines on, and return its result, or what is to be said of its end.

    Result and log lie in the folder afterwards, whatever happened. A result of another commit than
    `at`, because somebody changed the checkout meanwhile, is a failure, and so is one that hangs.
    """
    own = ["--out", str(out)] if script.writes else []
    command = [sys.executable, str(script.path), *script.flags, *own]
    began, limit_s = time.monotonic(), max(LEAST_LIMIT_S, PATIENCE * script.expected_s)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        close_fds=False,  # of `take_alone`
        start_new_session=True,  # so that what it starts ends with it
    ) as process:
        alarm = threading.Timer(limit_s, _end, (process,))
        alarm.start()
        try:
            lines = list(_pass_on(process))
        except BaseException:
            _end(process)
            raise
        finally:
            alarm.cancel()
    seconds = round(time.monotonic() - began, 1)
    result = _last_json(lines)
    if seconds >= limit_s:
        result = _failed(f"it was ended after {limit_s:g} s; it states {script.expected_s:g} s")
    elif process.returncode not in EXIT_CODES.values() or result is None:
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        result = _failed(f"exit code {process.returncode}: {last.strip()}")
    elif result.get("commit") != at:
        result = _failed(f"it began at commit {at} and ended at {result.get('commit')}")
    whole = {
        "experiment": script.name,
        **result,
        "mode": mode,
        "command": script.command,
        "seconds": seconds,
    }
    text = "".join(line for line in lines if not line.startswith('{"'))
    replace_file(out / f"{script.name}.txt", f"$ {script.command}\n{text}".encode())
    write_rows(out / f"{script.name}.json", whole)
    return whole


def _end(process: subprocess.Popen[str]) -> None:
    """End a script and the processes of its session; those that do not end in time are killed."""
    give_up = time.monotonic() + END_S
    with contextlib.suppress(ProcessLookupError):  # none is left
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < give_up:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)


def _failed(error: str) -> dict[str, Any]:
    return {"verdict": FAILED, "error": error}


def _pass_on(process: subprocess.Popen[str]) -> Iterator[str]:
    """Every line of a process; shown, but for the JSON at its end."""
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith('{"'):
            print(f"    {line.rstrip()}" if line.strip() else "", flush=True)
        yield line


def _last_json(lines: Sequence[str]) -> dict[str, Any] | None:
    for line in reversed(lines):
        if line.startswith('{"'):
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                return None
            return value if isinstance(value, dict) and "verdict" in value else None
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the flags ask for."""
    parser = flags(__doc__, **MODES, page="only write the pages")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the scripts")
    parser.add_argument("--again", action="store_true", help="also those of this commit and mode")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of results")
    chosen = parser.parse_args(arguments)
    asked = mode_of(chosen)
    if asked != TINY and not chosen.page and (reason := not_this_commit()):
        parser.error(reason)
    folder: Path = chosen.out.resolve()
    out = folder / asked
    out.mkdir(parents=True, exist_ok=True)
    todo = scripts(asked)
    known = [script.name for script in todo]
    if unknown := sorted(set(chosen.only or ()) - set(known)):
        parser.error(f"no script {', '.join(unknown)} with --{asked}; there are {', '.join(known)}")
    if chosen.only:
        todo = [script for script in todo if script.name in chosen.only]
    lock = None if chosen.page else take_alone(folder)
    try:
        ends = {} if chosen.page else run_all(todo, asked, out, again=chosen.again)
    finally:
        for path, text in pages(folder).items():
            replace_file(path, text.encode())
            print(f"\n{path}")
        if lock is not None:
            os.close(lock)
    return exit_code(ends)


def take_alone(folder: Path) -> int:
    """Lock a folder of results, until this process and the script it runs have ended.

    A script outlives a killed `all.py`; one that runs beside it would spoil both.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise SystemExit(f"another run, or a script of it, still works for {folder}") from None
    os.set_inheritable(lock, True)
    return lock


def pages(folder: Path) -> dict[Path, str]:
    """RESULTS.md beside a folder of results; and docs/claims.md, if it is the one of this tree."""
    order = {script.name: script.order for script in [*scripts("full"), *scripts("quick")]}
    documents = read(folder, sorted(order, key=lambda name: order[name]))
    texts = {
        folder.parent / "RESULTS.md": results_page(
            documents, folder=folder.name, expected=list(order)
        )
    }
    if folder == HERE / "results":
        texts[ROOT / "docs" / "claims.md"] = claims_page(CLAIMS.read_text("utf-8"), documents)
    return texts


def run_all(
    todo: Sequence[Script], mode: str, out: Path, *, again: bool = False
) -> dict[str, Mapping[str, Any]]:
    """Run scripts one after another; returns the result of each, also of those kept."""
    at = commit()
    ends = {
        script.name: _result(script, out)
        for script in todo
        if not again and finished(script, mode, out, at)
    }
    if ends:
        print(f"kept, of commit {at}: {', '.join(ends)} (--again runs them again)", flush=True)
    todo = [script for script in todo if script.name not in ends]
    waits = {script.name: expected_s(script, mode, out) for script in todo}
    began = time.monotonic()
    for k, script in enumerate(todo):
        if (now := commit()) != at:
            raise SystemExit(f"the checkout was at {at} and is at {now}; go back, and run it again")
        wait_s = sum(waits[later.name] for later in todo[k:])
        print(
            f"\n[{k + 1}/{len(todo)}] {script.command}   "
            f"{format_clock(time.monotonic() - began)} so far, about {format_clock(wait_s)} to go",
            flush=True,
        )
        document = ends[script.name] = run(script, mode, out, at)
        took = f"{document['seconds']:.0f} s, stated {script.expected_s:.0f} s"
        print(f"    {script.name}: {_word(document)}, {took}", flush=True)
        if document["verdict"] == FAILED:
            print(f"    {document['error']}", flush=True)
    print(f"\nall took {format_clock(time.monotonic() - began)}", flush=True)
    _summarise(ends)
    return ends


def _word(document: Mapping[str, Any]) -> str:
    return WORDS.get(document["verdict"], document["verdict"])


def _summarise(ends: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the scripts by verdict, every limit that is missed, and the A/A arms."""
    for word in dict.fromkeys(map(_word, ends.values())):
        print(f"{word}: {', '.join(name for name, one in ends.items() if _word(one) == word)}")
    for name, document in ends.items():
        for claim in document.get("claims", []):
            if ended(claim) == MISSED:
                print(f"  missed in {name}: {claim['name']}: {measured(claim)}")
    twins = [one["twins"] for one in ends.values() if "twins" in one]
    n, wrong = (sum(len(t["comparisons"]) for t in twins), sum(t["false_verdicts"] for t in twins))
    print(f"A/A: {wrong} false verdicts in {n} comparisons of an arm with itself")


def exit_code(ends: Mapping[str, Mapping[str, Any]]) -> int:
    """The worst of the scripts' exit codes; 4 if one failed."""
    verdicts = {document["verdict"] for document in ends.values()}
    if FAILED in verdicts:
        return 4
    if MISSED in verdicts:
        return 1
    return 3 if verdicts - {MET, NO_LIMIT} else 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # the script that runs has to end, too
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
