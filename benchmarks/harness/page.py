"""docs/results.md and benchmarks/documents.md, from the results of the scripts.

`benchmarks/claims.yaml` has the rows: what is said, and which limits of a result decide it. Number
and verdict come from `results/NAME.json`, so they change with it.
"""

import json
import math
import tomllib

import yaml
from harness.claims import MET, NO_LIMIT, UNTOLD, WORDS, Claim, worst
from harness.machine import ROOT

CLAIMS = ROOT / "benchmarks" / "claims.yaml"
PAGES = (
    (ROOT / "docs" / "results.md", "results", ("statement", "measured", "verdict", "script")),
    (ROOT / "benchmarks" / "documents.md", "documents",
     ("document", "claim", "measured", "verdict", "correction", "script")),
)  # fmt: skip
"""Each page, its part of the table, and its columns."""
MOST_LIMITS = 2  # that a row shows; of more, the lowest and the highest, or the first not kept
LACKS = "the result has no"
"""Where a row names a claim or limit that its script no longer has."""


def pages(folder):
    """Path -> text of both pages."""
    table, results = yaml.safe_load(CLAIMS.read_text("utf-8")), read(folder)
    return {path: page(table[name], results, columns) for path, name, columns in PAGES}


def read(folder):
    """Name of a script's part -> its result."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def page(table, results, columns):
    """A table by situation or subject, a row a statement."""
    lines = [table["head"].strip(), ""]
    for group in table["groups"]:
        lines += [f"## {group['title']}", "", *([group["note"], ""] if "note" in group else [])]
        lines += [row(columns), "|" + "---|" * len(columns)]
        for claim in group["rows"]:
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
    if (result := results.get(claim["result"])) is None:
        return "not measured yet", WORDS[UNTOLD]
    compared = result.get("compared", [])
    if "compared" in claim:
        return next(
            ((one["measured"], one["verdict"]) for one in compared
             if one["claim"].startswith(claim["compared"])),
            (f"{LACKS} {claim['compared']}", WORDS[UNTOLD]),
        )  # fmt: skip
    every = [*result["claims"], *(one for each in compared for one in each.get("rests_on", []))]
    every = list({one["name"]: one for one in every}.values())
    starts = claim.get("limit", [one["name"] for one in result["claims"]])
    found = [one for start in starts for one in every if one["name"].startswith(start)]
    chosen = list({one["name"]: one for one in found}.values())
    if lacking := [one for one in starts if not any(c["name"].startswith(one) for c in every)]:
        return f"{LACKS} {' and '.join(lacking)}", WORDS[UNTOLD]
    is_bound = "above" in claim or "below" in claim
    end = worst(one["ended"] for one in chosen)
    shown = chosen
    if len(chosen) > MOST_LIMITS:
        kept = [one for one in chosen if one["ended"] == MET]
        broken = [one for one in chosen if one["ended"] != MET] or kept[:1]
        ordered = sorted(chosen, key=lambda one: one["value"])
        shown = [ordered[0], ordered[-1]] if is_bound else broken[:1]
    text = "; ".join(in_words(one, bare=is_bound) for one in shown)
    if "row" in claim:
        cells = next(one for one in result["table"] if claim["row"] in one.values())
        cells = (f"{name} {value}" for name, value in cells.items() if value != claim["row"])
        text = "; ".join(["; ".join(cells), *([text] if text else [])])
    if is_bound:
        apart = _twins_apart(result)
        text += f"; A/A {apart:.3f}" * (apart > 1)
        return text, _by_bound(claim, [(one["interval"], apart) for one in chosen])
    if shown is not chosen:
        text = f"{len(kept)} of {len(chosen)} limits kept; {text}"
    return text, claim.get("means", {}).get(end, WORDS[end])


def _twins_apart(result):
    """How far equal arms of a script are apart, as a factor; 1 unless it tells them apart."""
    twins = result.get("twins", {"comparisons": [], "false_verdicts": 0})
    ratios = [one["value"] for one in twins["comparisons"]] if twins["false_verdicts"] else []
    return max((max(ratio, 1 / ratio) for ratio in ratios), default=1.0)


def _by_bound(claim, intervals):
    """Whether intervals are on the side of a number that the claim says."""
    above, bound = "above" in claim, claim.get("above", claim.get("below"))
    higher = [low / apart > bound for (low, _), apart in intervals]
    lower = [high * apart < bound for (_, high), apart in intervals]
    kept, broken = (higher, lower) if above else (lower, higher)
    if all(kept):
        return "holds"
    if any(kept) and any(broken):
        return "holds in part"
    return "does not hold" if any(broken) else WORDS[UNTOLD]


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
