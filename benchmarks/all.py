"""Run every experiment and write benchmarks/RESULTS.md: the documents' claims, measured.

    python benchmarks/all.py --quick             few seeds, about an hour and a half on two cores
    python benchmarks/all.py --full              three seeds, the documents' sizes: hours, or days
    python benchmarks/all.py --only scaling      one of them, or several
    python benchmarks/all.py --page              RESULTS.md again, from the results there are

Every script runs in a process of its own. One that fails is shown, and does not stop the others;
Ctrl-C ends the run and still writes the page. The exit code is 0 where every script ran, else 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.claims import EXIT_CODES, MODES, flags, mode_of
from harness.machine import ROOT

from mlxhog.files import plain_json
from mlxhog.files.durable import replace_file
from mlxhog.files.quantities import format_clock

Document = Mapping[str, Any]

MEANS = {
    "met": "every limit that we set ourselves is kept",
    "missed": "a limit that we set ourselves is missed",
    "not_measurable": "others used the machine meanwhile, so times say nothing",
    "cannot_be_told": "the repeats are too few, or too far apart",
    "no_limit": "no limit of our own",
    "failed": "the script ended with an error",
}
MODE_NOTES = {
    "tiny": "a test of the scripts: the numbers mean nothing",
    "quick": "one seed, sizes of minutes",
    "full": "three seeds, the documents' sizes",
}
HERE = Path(__file__).resolve().parent
ORDER = (
    "classic_speed", "paper_tables", "synthetic_svm", "image_svm", "linear_regression",
    "staleness", "scaling", "schemes", "mixed_backends", "sparsified", "backoff",
    "widths", "minute", "teacher", "density", "late_gradients", "stragglers", "local_steps",
    "clients", "outer_steps", "ngram_tables",
)  # fmt: skip
"""The classic problems first; scaling after staleness, which it reads."""

QUICK_S = {
    "classic_speed": 150, "staleness": 540, "scaling": 60, "schemes": 120, "mixed_backends": 60,
    "backoff": 480, "widths": 300, "minute": 280, "teacher": 120, "density": 180,
    "late_gradients": 200, "ngram_tables": 900,
}  # fmt: skip
"""What scripts take with --quick, for the first estimate; the last run's own time is better."""

ELSEWHERE = {
    "classic_speed": {"tiny": ("--turns", "1", "--size", "500"), "quick": ("--quick",), "full": ()}
}
"""Scripts beside this one, which write no file: their flags for each mode."""

UNKNOWN_S = 60
FULL_FACTOR = 40  # how many times as long as --quick, until it has been measured


@dataclass(frozen=True)
class Script:
    """One script and how it is called."""

    name: str
    path: Path
    flags: tuple[str, ...]

    @property
    def command(self) -> str:
        """What a user types."""
        return " ".join(["python", str(self.path.relative_to(ROOT)), *self.flags])


def scripts(mode: str) -> list[Script]:
    """Every experiment there is, in order."""
    entries = [
        Script(name, HERE / f"{name}.py", flags[mode])
        for name, flags in ELSEWHERE.items()
        if (HERE / f"{name}.py").exists()
    ]
    entries += [
        Script(path.stem, path, (f"--{mode}",))
        for path in sorted((HERE / "experiments").glob("*.py"))
    ]
    places = {name: k for k, name in enumerate(ORDER)}
    return sorted(entries, key=lambda script: (places.get(script.name, len(ORDER)), script.name))


def expected_s(script: Script, mode: str, out: Path) -> float:
    """Seconds a script is going to take: as long as last time, or a guess."""
    result = out / f"{script.name}.json"
    if result.exists():
        last = json.loads(result.read_text())
        if last.get("mode") == mode and last.get("seconds"):
            return float(last["seconds"])
    quick = QUICK_S.get(script.name, UNKNOWN_S)
    return quick * {"tiny": 0.3, "quick": 1.0, "full": FULL_FACTOR}[mode]


def run(script: Script, mode: str, out: Path) -> Mapping[str, Any]:
    """Run a script, pass its lines on, and return its result, or what is to be said of its end.

    The result lies in the folder afterwards, whatever happened.
    """
    own = [] if script.name in ELSEWHERE else ["--out", str(out)]
    command = [sys.executable, str(script.path), *script.flags, *own]
    began = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    ) as process:
        try:
            lines = list(_pass_on(process))
        except BaseException:
            process.terminate()
            raise
    seconds = round(time.monotonic() - began, 1)
    result = _last_json(lines)
    if process.returncode not in EXIT_CODES.values() or result is None:
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        result = {
            "experiment": script.name,
            "verdict": "failed",
            "error": f"exit code {process.returncode}: {last.strip()}",
        }
    whole = {
        "experiment": script.name,
        **result,
        "mode": mode,
        "command": script.command,
        "seconds": seconds,
    }
    replace_file(out / f"{script.name}.json", plain_json.dumps(whole, indent=1) + b"\n")
    return whole


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
    parser = flags(__doc__, **MODES, page="only write RESULTS.md")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the experiments")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of results")
    chosen = parser.parse_args(arguments)
    asked = mode_of(chosen)
    out: Path = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    todo = scripts(asked)
    known = [script.name for script in todo]
    if unknown := sorted(set(chosen.only or ()) - set(known)):
        parser.error(f"no experiment {', '.join(unknown)}; there are {', '.join(known)}")
    if chosen.only:
        todo = [script for script in todo if script.name in chosen.only]
    try:
        failed = [] if chosen.page else run_all(todo, asked, out)
    finally:
        results = out.parent / "RESULTS.md"
        documents = read(out, ORDER)
        if documents:
            replace_file(results, page(documents, folder=out.name).encode())
            print(f"\n{results}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_all(todo: Sequence[Script], mode: str, out: Path) -> list[str]:
    """Run scripts one after another; returns the names of those that failed."""
    waits = {script.name: expected_s(script, mode, out) for script in todo}
    began, failed = time.monotonic(), []
    for k, script in enumerate(todo):
        wait_s = sum(waits[later.name] for later in todo[k:])
        print(
            f"\n[{k + 1}/{len(todo)}] {script.command}   "
            f"{format_clock(time.monotonic() - began)} so far, about {format_clock(wait_s)} to go",
            flush=True,
        )
        document = run(script, mode, out)
        if document["verdict"] == "failed":
            failed.append(script.name)
        print(f"    {script.name}: {document['verdict']}, {document['seconds']:.0f} s", flush=True)
        if document["verdict"] == "failed":
            print(f"    {document['error']}", flush=True)
    print(f"\nall took {format_clock(time.monotonic() - began)}", flush=True)
    return failed


def read(folder: Path, order: Sequence[str] = ()) -> list[Document]:
    """Every result of a folder, those that `order` names first."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    names = [name for name in order if name in results]
    return [results[name] for name in [*names, *(name for name in results if name not in names)]]


def page(documents: Sequence[Document], *, folder: str) -> str:
    """The page in Markdown.

    Args:
        documents: results, in the order in which they are shown.
        folder: of the figures, seen from the page.
    """
    lines = [
        "# Results of the experiments",
        "",
        "What the [source documents](../docs/claims.md) (000 to 004) claim, beside what was "
        "measured. Written by "
        "`python benchmarks/all.py` from the JSON files beside the figures; do not edit it.",
        "",
        *_where(documents),
        "",
        "| experiment | claims of the documents | limits of our own | time |",
        "|---|---|---|---|",
        *(_summary(document) for document in documents),
    ]
    for document in documents:
        lines += ["", *_section(document, folder)]
    return "\n".join(lines) + "\n"


def _where(documents: Sequence[Document]) -> list[str]:
    """Machine, versions and commits; each once, since all are usually the same."""
    whole = [document for document in documents if "machine" in document]
    machines = dict.fromkeys(_machine(document["machine"]) for document in whole)
    versions: dict[str, dict[str, None]] = {}
    for document in whole:
        for package, version in document["versions"].items():
            versions.setdefault(package, {})[version or "missing"] = None
    modes = dict.fromkeys(document.get("mode", "") for document in documents)
    commits = dict.fromkeys(document["commit"] or "unknown" for document in whole)
    packages = ", ".join(f"{package} {' and '.join(seen)}" for package, seen in versions.items())
    return [
        f"- Machine: {'; '.join(machines)}",
        f"- Versions: {packages}",
        f"- Commit: {', '.join(commits)} (`+`: with changes)",
        *(f"- Mode {mode}: {MODE_NOTES[mode]}" for mode in modes if mode in MODE_NOTES),
    ]


def _machine(facts: Mapping[str, Any]) -> str:
    memory = facts["memory_bytes"] / 2**30
    return f"{facts['cpu']}, {facts['cores']} cores, {memory:.0f} GiB, {facts['system']}"


def _summary(document: Document) -> str:
    verdicts = [one["verdict"] for one in document.get("compared", [])]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts)) or "-"
    name = document["experiment"]
    seconds = document.get("seconds")
    duration = "-" if seconds is None else f"{seconds:.0f} s"
    return f"| [{name}](#{_anchor(document)}) | {counts} | {document['verdict']} | {duration} |"


def _heading(document: Document) -> str:
    return str(document.get("title") or document["experiment"])


def _anchor(document: Document) -> str:
    """The anchor that a heading gets."""
    letters = "".join(c for c in _heading(document).lower() if c.isalnum() or c in " -_")
    return letters.replace(" ", "-")


def _section(document: Document, folder: str) -> list[str]:
    lines = [f"## {_heading(document)}", ""]
    if document["verdict"] == "failed":
        return [*lines, f"    {document['command']}", "", f"**Failed**: {document['error']}"]
    if "source" in document:
        lines += [f"From {document['source']}. {document['about']}", ""]
    lines += [f"    {document['command']}", ""]
    if document.get("compared"):
        lines += ["| the document says | measured here | so the claim |", "|---|---|---|"]
        lines += [
            _row([one["claim"], one["measured"], f"**{one['verdict']}**"])
            for one in document["compared"]
        ]
        lines.append("")
    lines += _table(document.get("table", []))
    if document.get("figure"):
        lines += [f"![{_heading(document)}]({folder}/{document['figure']})", ""]
    if document.get("claims"):
        lines += ["| limit of our own | measured | wanted | |", "|---|---|---|---|"]
        lines += [
            _row(
                [
                    claim["name"],
                    _cell(claim["value"]),
                    f"{claim['relation']} {claim['limit']:g}",
                    "met" if claim["met"] else "**missed**",
                ]
            )
            for claim in document["claims"]
        ]
        lines.append("")
    if document.get("settings"):
        settings = "; ".join(f"{name} {_setting(v)}" for name, v in document["settings"].items())
        lines += [f"Settings: {settings}.", ""]
    load = f"others used {document['others_load']:.2f} cores meanwhile"
    return [*lines, f"Verdict: {document['verdict']} ({MEANS[document['verdict']]}); {load}."]


def _setting(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_setting(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return _cell(value)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    columns = list(dict.fromkeys(column for row in rows for column in row))
    ruler = ["---:" if _is_number(rows, column) else "---" for column in columns]
    body = [_row([_cell(row.get(column)) for column in columns]) for row in rows]
    return [_row(columns), f"|{'|'.join(ruler)}|", *body, ""]


def _is_number(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    return any(isinstance(row.get(column), int | float) for row in rows)


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
