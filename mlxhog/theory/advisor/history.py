"""What was advised on this machine before, and how it came out.

<cache>/advice.jsonl   one line for each advice: time, subject, profile, prediction, trial
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxhog.config import limits
from mlxhog.errors import DataError
from mlxhog.files import plain_json
from mlxhog.files.cache import user_cache_directory
from mlxhog.files.durable import disk_errors
from mlxhog.report.table import Section


def path() -> Path:
    """Where it is kept."""
    return user_cache_directory() / "advice.jsonl"


def remember(advice: Mapping[str, Any]) -> None:
    """Append one advice.

    Raises:
        EnvironmentLacks: the disk is full, or the system refuses.
    """
    line = plain_json.dumps({"t_s": time.time(), **advice}) + b"\n"
    with disk_errors(f"writing {path()}"):
        path().parent.mkdir(parents=True, exist_ok=True)
        with path().open("ab") as file:
            file.write(line)


def read() -> list[dict[str, Any]]:
    """Every advice, oldest first; a torn last line is left out.

    Raises:
        DataError: the file is damaged.
    """
    if not path().exists():
        return []
    found = []
    try:
        for line in limits.read_bytes(path()).split(b"\n")[:-1]:
            entry = plain_json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError("a line is no JSON object")
            found.append(entry)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path()} is damaged after {len(found)} lines ({error}); remove it to begin anew"
        ) from error
    return found


def score(entries: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Count the trials, and those in which the prediction was the outcome or tied with it."""
    tried = [entry for entry in entries if entry.get("trial")]
    right = [
        one for one in tried if one["trial"]["tie"] or one["trial"]["winner"] == one["advised"]
    ]
    return len(tried), len(right)


def sections(entries: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    """Arrange the history for `mlxhog.report.table.show`."""
    tried, right = score(entries)
    if not entries:
        yield Section(f"nothing was advised here yet ({path()})")
        return
    yield Section(
        f"of {tried} trials {right} came out as predicted, or as a tie"
        if tried
        else "no advice was tried yet"
    )
    rows = []
    for entry in entries:
        trial = entry.get("trial")
        outcome = "not tried"
        if trial:
            outcome = "tie" if trial["tie"] else trial["winner"]
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["t_s"]))
        rows.append((when, str(entry["subject"]), str(entry["advised"]), outcome))
    yield Section("", ("when", "subject", "advised", "outcome"), rows)
