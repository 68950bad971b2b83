"""RESULTS.md from the JSON files of a results folder, and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Document = Mapping[str, Any]

MEANS = {
    "met": "every limit that we set ourselves is kept",
    "missed": "a limit that we set ourselves is missed",
    "not_measurable": "others used the machine meanwhile, so times say nothing",
    "failed": "the script ended with an error",
}
MODES = {
    "tiny": "a test of the scripts: the numbers mean nothing",
    "quick": "one seed, sizes of minutes",
    "full": "three seeds, the documents' sizes",
}


def read(folder: Path, order: Sequence[str] = ()) -> list[Document]:
    """Every result of a folder, those that `order` names first."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    names = [name for name in order if name in found]
    return [found[name] for name in [*names, *(name for name in found if name not in names)]]


def page(documents: Sequence[Document], *, folder: str) -> str:
    """The page in Markdown.

    Args:
        documents: results, in the order in which they are shown.
        folder: of the figures, seen from the page.
    """
    lines = [
        "# Results of the experiments",
        "",
        "What the source documents claim, beside what was measured. Written by "
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
    told = ", ".join(f"{package} {' and '.join(found)}" for package, found in versions.items())
    return [
        f"- Machine: {'; '.join(machines)}",
        f"- Versions: {told}",
        f"- Commit: {', '.join(commits)} (`+`: with changes)",
        *(f"- Mode {mode}: {MODES[mode]}" for mode in modes if mode in MODES),
    ]


def _machine(found: Mapping[str, Any]) -> str:
    memory = found["memory_bytes"] / 2**30
    return f"{found['cpu']}, {found['cores']} cores, {memory:.0f} GiB, {found['system']}"


def _summary(document: Document) -> str:
    verdicts = [one["verdict"] for one in document.get("compared", [])]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts)) or "-"
    name = document["experiment"]
    seconds = document.get("seconds")
    taken = "-" if seconds is None else f"{seconds:.0f} s"
    return f"| [{name}](#{_anchor(document)}) | {counts} | {document['verdict']} | {taken} |"


def _heading(document: Document) -> str:
    return str(document.get("title") or document["experiment"])


def _anchor(document: Document) -> str:
    """The anchor that a heading gets."""
    kept = "".join(c for c in _heading(document).lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


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
        told = "; ".join(f"{name} {_setting(v)}" for name, v in document["settings"].items())
        lines += [f"Settings: {told}.", ""]
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
