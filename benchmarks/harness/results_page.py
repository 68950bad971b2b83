"""benchmarks/RESULTS.md, from the result files of `all.py`: one section per script."""

import json
import tomllib
from collections.abc import Mapping

from harness.claims import (
    FULL,
    MET,
    MISSED,
    NO_LIMIT,
    NOT_MEASURABLE,
    QUICK,
    UNTOLD,
    WORDS,
    Claim,
)
from harness.machine import ROOT

FIGURES = ("paper_tables", "staleness", "scaling", "schemes")
"""Experiments whose figure is committed; others are drawn by their own --draw."""
FAILED = "failed"
MEANS = {
    MET: "every limit that we set ourselves is kept",
    MISSED: "a limit that we set ourselves is missed",
    NOT_MEASURABLE: "others used the machine meanwhile, so times say nothing",
    UNTOLD: "the repeats are too few, or too far apart",
    NO_LIMIT: "it compares with the documents only",
    FAILED: "the script ended with an error",
}
MODE_NOTES = {
    QUICK: "sizes of minutes",
    FULL: "the largest sizes that were run; a section's command says which part of its script",
}


def read(folder, order=()):
    """Every script's result, those that `order` names first; of --full where there is one.

    One that failed gives way to that of the other mode.
    """
    results = {}
    for mode in (FULL, QUICK):
        for path in sorted((folder / mode).glob("*.json")):
            document = json.loads(path.read_text())
            known = results.setdefault(path.stem, document)
            if known["verdict"] == FAILED:
                results[path.stem] = document
    names = [name for name in order if name in results]
    return [results[name] for name in [*names, *(name for name in results if name not in names)]]


def name_of(document):
    """The script's name."""
    return str(document.get("experiment") or document["benchmark"])


def other_version(document):
    """The version of mlxhog that a result is of, where it is not today's."""
    version = document.get("versions", {}).get("mlxhog")
    today = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    return "" if version in (None, today) else str(version)


def results_page(documents, *, folder, expected=()):
    """The page in Markdown.

    Args:
        documents: results, in the order in which they are shown.
        folder: of the results, seen from the page.
        expected: names of scripts that should have a result.
    """
    missing = [name for name in expected if name not in set(map(name_of, documents))]
    lines = [
        "# Results of the experiments",
        "",
        "What the [source documents](../docs/claims.md) (000 to 004) claim, beside what was "
        "measured. Written by `python benchmarks/all.py` from the JSON files beside the figures; "
        "do not edit it. An interval is one of 95 %; n is the number of pairs, runs or trials. "
        "The verdicts of a section are corrected together for their number (Holm). A/A says how "
        "many arms ran twice, and how often the two differ, which no verdict should say; `-` where "
        "none ran twice. A script that tells equal arms apart gives no verdict `met`. Lock-free "
        "trainings of an xLSTM write under locks of 4 KiB (`--write lossless`), share Muon's "
        "moments and look ahead, unless their section says otherwise: no race to a loss ran "
        "`--write racy`, which is Hogwild as published.",
        "",
        *(f"- Mode {mode}: {note}." for mode, note in MODE_NOTES.items() if _has(documents, mode)),
        *_origins(documents),
        *([f"- Without a result: {', '.join(missing)}."] if missing else []),
        "",
        "| script | mode | claims | limits of our own | A/A | time |",
        "|---|---|---|---|---|---|",
        *(_summary(document) for document in documents),
    ]
    for document in documents:
        lines += ["", *_section(document, folder)]
    return "\n".join(lines) + "\n"


def _has(documents, mode):
    return any(document.get("mode") == mode for document in documents)


def _origins(documents):
    """Version, commit and machine of the results, so that a page of several is seen as one."""
    scripts = {}
    for document in documents:
        if "versions" in document:
            facts, commit = document["machine"], document["commit"] or "unknown"
            changed = " with changes" * commit.endswith("+")
            version = f"mlxhog {document['versions'].get('mlxhog')}"
            old = ", not today's version" * bool(other_version(document))
            machine = f"machine {facts.get('letter', 'unknown')}"
            origin = f"{version}{old}, commit {commit.rstrip('+')}{changed}, {machine}"
            scripts.setdefault(origin, []).append(name_of(document))
    if len(scripts) == 1:
        return [f"- All results: {origin}." for origin in scripts]
    return [f"- {origin}: {', '.join(names)}." for origin, names in scripts.items()]


def where(document):
    """Date, machine, commit, versions and seeds of a result, in one line."""
    if "machine" not in document:
        return ""
    facts = document["machine"]
    memory = facts["memory_bytes"] / 2**30
    packages = ", ".join(f"{name} {v or 'missing'}" for name, v in document["versions"].items())
    seeds = ", ".join(map(str, document.get("seeds", ())))
    commit = document["commit"] or "unknown"
    parts = [
        f"Mode: {document['mode']}",
        f"Date: {document.get('date', 'not recorded')}",
        f"Machine: {facts.get('letter', 'unknown')} ({facts['cpu']}, {facts['cores']} cores, "
        f"{memory:.0f} GiB, {facts['system']})",
        f"Commit: {commit.rstrip('+')}" + " with changes" * commit.endswith("+"),
        f"Versions: {packages}",
        *([f"Seeds: {seeds}"] if seeds else []),
    ]
    return ". ".join(parts) + "."


def _summary(document):
    verdicts = [one["verdict"] for one in document.get("compared", [])]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts)) or "-"
    ends = [ended(claim) for claim in document.get("claims", [])]
    own = ", ".join(f"{ends.count(word)} {WORDS[word]}" for word in dict.fromkeys(ends))
    twins = document.get("twins", {"comparisons": []})
    n = len(twins["comparisons"])
    same = f"{twins['false_verdicts']} of {n} false" if n else "-"
    seconds = document.get("seconds")
    duration = "-" if seconds is None else f"{seconds:.0f} s"
    link = f"[{name_of(document)}](#{anchor(document)})"
    own = own or verdict_word(document)
    return row([link, str(document.get("mode", "-")), counts, own, same, duration])


def verdict_word(document):
    """The verdict of a result in words."""
    return WORDS.get(document["verdict"], document["verdict"])


def ended(claim):
    """How a recorded claim ended."""
    return str(claim.get("ended") or (MET if claim["met"] else MISSED))


def measured(claim):
    """A recorded claim's value with interval and n."""
    fields = {name: claim.get(name) for name in ("interval", "n")}
    fields["interval"] = fields["interval"] and tuple(map(_number, fields["interval"]))
    return Claim(
        claim["name"], _number(claim["value"]), claim["relation"], claim["limit"], **fields
    ).measured


def _number(value):
    return float("nan") if value is None else float(value)


def _heading(document):
    return str(document.get("title") or name_of(document))


def anchor(document):
    """The anchor that a heading gets."""
    letters = "".join(c for c in _heading(document).lower() if c.isalnum() or c in " -_")
    return letters.replace(" ", "-")


def _section(document, folder):
    lines = [f"## {_heading(document)}", ""]
    if document["verdict"] == FAILED:
        return [*lines, f"    {document['command']}", "", f"**Failed**: {document['error']}"]
    if "source" in document:
        lines += [f"From {document['source']}. {document['about']}", ""]
    lines += [f"    {document['command']}", ""]
    if facts := where(document):
        lines += [facts, ""]
    if "note" in document:  # what a later reading says of it
        lines += [f"**Note.** {document['note']}", ""]
    if document.get("compared"):
        lines += ["| the claim | measured here | verdict |", "|---|---|---|"]
        lines += [
            row([one["claim"], one["measured"], f"**{one['verdict']}**"])
            for one in document["compared"]
        ]
        lines.append("")
    lines += _table(document.get("table", []))
    if document.get("mode") == FULL and name_of(document) in FIGURES:
        path = f"{folder}/{FULL}/{name_of(document)}.png"
        lines += [f"![{_heading(document)}]({path})", ""]
    if document.get("claims"):
        lines += ["| limit of our own | measured | wanted | |", "|---|---|---|---|"]
        lines += [
            row([claim["name"], measured(claim), wanted(claim), f"**{WORDS[ended(claim)]}**"])
            for claim in document["claims"]
        ]
        lines.append("")
    for twin in document.get("twins", {}).get("comparisons", []):
        within = f"{_cell(twin['low'])} to {_cell(twin['high'])}, n {twin['n']}"
        lines += [f"A/A, {twin['name']}: {_cell(twin['value'])} ({within}).", ""]
    if document.get("settings"):
        settings = "; ".join(f"{name} {_setting(v)}" for name, v in document["settings"].items())
        lines += [f"Settings: {settings}.", ""]
    load = f"others used {document['others_load']:.2f} cores meanwhile"
    word = verdict_word(document)
    return [*lines, f"Verdict: {word} ({MEANS[document['verdict']]}); {load}."]


def wanted(claim):
    """A recorded claim's limit."""
    return Claim("", 0.0, claim["relation"], claim["limit"], least=claim.get("least")).wanted


def _setting(value):
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_setting(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return _cell(value)


def _table(rows):
    if not rows:
        return []
    columns = list(dict.fromkeys(column for row in rows for column in row))
    ruler = ["---:" if _is_number(rows, column) else "---" for column in columns]
    body = [row([_cell(one.get(column)) for column in columns]) for one in rows]
    return [row(columns), f"|{'|'.join(ruler)}|", *body, ""]


def _is_number(rows, column):
    return any(isinstance(row.get(column), int | float) for row in rows)


def row(cells):
    """A row of a table."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _cell(value):
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
