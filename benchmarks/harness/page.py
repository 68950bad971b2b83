"""docs/results.md and benchmarks/documents.md, from the results of the scripts.

`benchmarks/claims.yaml` has the rows: what is said, and which limits of a result decide it. Number
and verdict come from `results/NAME.json`, so they change with it.
"""

import json
import math
import tomllib

import yaml
from harness.claims import (
    INCONCLUSIVE,
    NO_LIMIT,
    NOT_MEASURED,
    REFUTED,
    SUPPORTED,
    WORDS,
    Claim,
    worst,
)
from harness.machine import ROOT

CLAIMS = ROOT / "benchmarks" / "claims.yaml"
PAGES = (
    (ROOT / "docs" / "results.md", "results", ("statement", "measured", "verdict", "script")),
    (ROOT / "benchmarks" / "documents.md", "documents",
     ("document", "claim", "measured", "verdict", "correction", "script")),
)  # fmt: skip
"""Each page, its part of the table, and its columns."""
MAX_LIMITS = 2  # that a row shows; of more, the lowest and the highest, or the first not kept
LACKS = "the result has no"
"""Where a row names a limit that its script no longer has."""
HERE = "inconclusive"


def pages(folder):
    """Path -> text of both pages."""
    table, results = yaml.safe_load(CLAIMS.read_text("utf-8")), read(folder)
    return {path: page(table[name], results, columns) for path, name, columns in PAGES}


def read(folder):
    """Name of a script's part -> its result."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def page(table, results, columns):
    """A table by situation or subject, a row a statement; one without a result yet is left out."""
    lines = [table["head"].strip(), ""]
    for group in table["groups"]:
        lines += [f"## {group['title']}", "", *([group["note"], ""] if "note" in group else [])]
        lines += [row(columns), "|" + "---|" * len(columns)]
        for claim in group["rows"]:
            if claim.get("result", "") not in {"", *results}:
                continue
            text, verdict = measured_of(claim, results)
            cells = {
                **claim, "statement": f"{claim['claim']} {claim.get('note', '')}".strip(),
                "measured": text, "verdict": f"**{verdict}**", "script": origin(claim, results),
            }  # fmt: skip
            lines.append(row([cells[name] for name in columns]))
        lines.append("")
    return "\n".join(lines)


def origin(claim, results):
    """Which script measured a row, and when, on which machine, of another version than today's."""
    if (name := claim.get("result")) not in results:
        return claim.get("link", "")
    result = results[name]
    version, now = result.get("versions", {}).get("mlxhog"), today()
    old = f", version {version}" * (version not in (None, now))
    letter = result["machine"].get("letter", "unknown")
    return f"[{name}](../benchmarks/results/{name}.json), {letter}, {result['date']}{old}"


def today():
    """The version of this checkout."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def measured_of(claim, results):
    """What was measured of a row's claim, and the verdict in words."""
    if "result" not in claim:
        once = "once" in claim
        text = f"measured once: {claim['once']}" if once else f"derived: {claim['derived']}"
        return text, str(claim["verdict"])
    result = results[claim["result"]]
    every = result["claims"]
    starts = claim.get("limit", [one["name"] for one in every if not one.get("document")])
    found = [one for start in starts for one in every if one["name"].startswith(start)]
    chosen = list({one["name"]: one for one in found}.values())
    if lacking := [one for one in starts if not any(c["name"].startswith(one) for c in every)]:
        return f"{LACKS} {' and '.join(lacking)}", WORDS[INCONCLUSIVE]
    is_bound, ends = "above" in claim or "below" in claim, [one["ended"] for one in chosen]
    shown, kept = chosen, ends.count(SUPPORTED)
    if len(chosen) > MAX_LIMITS and "claimed" not in claim:
        first = [one for one in chosen if one["ended"] != SUPPORTED] or chosen
        ordered = sorted(chosen, key=lambda one: one["value"])
        shown = [ordered[0], ordered[-1]] if is_bound else first[:1]
    text = "; ".join(in_words(one, bare=is_bound or "claimed" in claim) for one in shown)
    if is_bound:
        apart = _noise_floor(result)
        text += f"; A/A {apart:.3f}" * (apart > 1)
        verdict = _by_bound(claim, [(one["interval"], apart) for one in chosen])
    elif "claimed" in claim:
        verdict = _as_claimed(claim, set(ends))
    else:
        if shown is not chosen:
            text = f"{kept} of {len(chosen)} limits kept; {text}"
        verdict = claim.get("means", {}).get(worst(ends), WORDS[worst(ends)])
    return text, claim.get("verdict", verdict)


def _as_claimed(claim, ends):
    """What becomes of a sentence whose limits ended so; one missed limit may refute it whole."""
    if REFUTED not in ends or NOT_MEASURED in ends:
        return "supported" if ends == {SUPPORTED} else HERE
    return "partly supported" if SUPPORTED in ends and claim["claimed"] == "parts" else "refuted"


def _noise_floor(result):
    """How far equal arms of a script are apart, as a factor; 1 unless it tells them apart."""
    controls = result.get("controls", {"comparisons": [], "false_verdicts": 0})
    ratios = [one["value"] for one in controls["comparisons"]] if controls["false_verdicts"] else []
    return max((max(ratio, 1 / ratio) for ratio in ratios), default=1.0)


def _by_bound(claim, intervals):
    """Whether intervals are on the side of a number that the claim says."""
    above, bound = "above" in claim, claim.get("above", claim.get("below"))
    higher = [low / apart > bound for (low, _), apart in intervals]
    lower = [high * apart < bound for (_, high), apart in intervals]
    kept, broken = (higher, lower) if above else (lower, higher)
    if all(kept):
        return "supported"
    if any(kept) and any(broken):
        return "partly supported"
    return "refuted" if any(broken) else WORDS[INCONCLUSIVE]


def in_words(claim, *, bare):
    """A recorded claim: its value with interval and n, and its limit unless it is bare."""
    ends, value = claim.get("interval"), claim["value"]
    one = Claim(
        claim["name"], math.nan if value is None else value, claim["relation"], claim["limit"],
        interval=ends and tuple(math.nan if end is None else end for end in ends),
        n=claim.get("n"), least=claim.get("least"),
    )  # fmt: skip
    limit = "" if bare or claim["ended"] == NO_LIMIT else f", limit {one.wanted}"
    return f"{one.name}: {one.measured}{limit}"


def row(cells):
    """A row of a table."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
