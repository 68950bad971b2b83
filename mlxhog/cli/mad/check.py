"""`mlxhog mad check`: do rows of a task have the properties they must have?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.cli.flags import Flags
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.mad.check import Findings

ABOUT = """\
Hold data sets of MAD tasks against the 18 invariants that every row must keep, and the bounds of
what is random, whoever made them: .npz files as `mlxhog mad data` writes them.
Exit code 1 if anything is broken: which invariant, which row, what was found.

  1-7    in-context recall, noisy recall      13-15  selective copying
  8-12   fuzzy recall                         16     compression
                                              17-18  memorization"""
EXAMPLES = (
    "mad check cr.npz",
    "mad check data/*.npz --json",
)


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad check", ABOUT, EXAMPLES, ("FILE...",))
    flags.argument("files", nargs="+", metavar="FILE", help=".npz files of rows")
    flags.argument("--json", action="store_true", help="one JSON object with ok and failed")
    parsed = flags.parse(arguments)
    if parsed.problems:
        raise ConfigError("\n".join(parsed.problems))
    # These import NumPy: wrong flags are answered before.
    from mlxhog.mad.check import check
    from mlxhog.mad.tasks.dataset import read

    data = {file: read(Path(file).expanduser()) for file in parsed.other.files}
    found = {}
    for file, rows in data.items():
        found[file] = check(rows)
        if not parsed.other.json:
            _print(file, rows.task, found[file])
    ok = all(findings.ok for findings in found.values())
    if parsed.other.json:
        _print_json(found, ok)
    return 0 if ok else 1


def _print(file: str, task: str, found: Findings) -> None:
    rules = ", ".join(map(str, found.invariants))
    said = f"invariants {rules} and {len(found.bounds)} bounds"
    print(f"{file}: {task}, {said}: {'ok' if found.ok else 'FAIL'}")
    for note in found.notes:
        print(f"  note: {note}")
    for failure in found.failures:
        print(f"  {failure}")


def _print_json(found: dict[str, Findings], ok: bool) -> None:
    from mlxhog.files import plain_json

    failed = [
        {"file": file, **failure.to_json()}
        for file, findings in found.items()
        for failure in findings.failures
    ]
    files = [
        {
            "file": file,
            "ok": findings.ok,
            "invariants": findings.invariants,
            "bounds": findings.bounds,
            "notes": findings.notes,
        }
        for file, findings in found.items()
    ]
    print(plain_json.dumps({"files": files, "ok": ok, "failed": failed}).decode())
