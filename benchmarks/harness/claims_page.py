"""docs/claims.md: what README and the source documents claim, beside the results of `all.py`.

`benchmarks/claims.yaml` has the claims. Number and verdict of a row with a `result` come from that
script's result file, so they change with it; a row without one states what is derived, or what was
measured once.
"""

import yaml
from harness.claims import UNTOLD, WORDS, worst
from harness.machine import ROOT
from harness.results_page import (
    FAILED,
    anchor,
    ended,
    measured,
    name_of,
    other_version,
    row,
    wanted,
    where,
)

CLAIMS = ROOT / "benchmarks" / "claims.yaml"
RESULTS = "../benchmarks/RESULTS.md"
HEAD = """\
# Claims and measurements

The project began from five texts about lock-free training, the *source documents*. They are not in the repository. Some of their claims hold, others do
not. This page puts each claim of theirs, and each promise of README, beside a measurement. `python benchmarks/all.py` writes it from
`benchmarks/claims.yaml` and the results that [RESULTS.md](../benchmarks/RESULTS.md) shows in full; do not edit it.

| document | content |
|---|---|
| 000 | a note on one process that trains a large model with APOLLO while a server (vLLM) reads the same weights, without a lock or a pause |
| 001 | an analysis of Hogwild (Niu et al. 2011) for xLSTM models on Apple silicon: why their gradients would be sparse, the expected gain of 24 cores, four tests |
| 002 | slides of a course, *Lifting Synchronization Barriers*: slow workers in synchronous rounds, Hogwild on sparse problems, a proof of its rate |
| 003 | a chapter of a textbook, *Asynchrony and Local SGD*: parameter servers, staleness, local steps, a decision tree, exercises |
| 004 | a course project of 2020 that reimplements Hogwild and compares it with synchronous SGD: three experiments |

Where a number has an interval, it is one of 95 %, and n is the number of pairs, runs or trials. If the limit lies inside the interval, the verdict is "cannot be told";
the verdicts of one script are corrected together for their number (Holm). Limits are our own. "follows from the definitions" says that no measurement could end otherwise; the text beside it says
whether the claim is right. "derived" is a statement without a measurement of ours, "measured once" a number without an interval. A result of another version of mlxhog than today's begins with that version.
"""  # noqa: E501
NOT_YET = "not measured by this version yet"
LACKS = "the result has no"
"""Where a row names a claim or limit that its script no longer has."""


def claims_page(table, documents):
    """The page in Markdown.

    Args:
        table: text of `CLAIMS`.
        documents: results of `all.py`.
    """
    results = {name_of(document): document for document in documents}
    lines, used = [HEAD], dict.fromkeys(results, False)
    for group in yaml.safe_load(table):
        lines += [f"## {group['title']}", "", *([group["note"], ""] if "note" in group else [])]
        lines += ["| document | claim | measured | verdict | correction |", "|---|---|---|---|---|"]
        for claim in group["rows"]:
            text, verdict = measured_of(claim, results)
            if version := other_version(results.get(claim.get("result", ""), {})):
                text = f"mlxhog {version}: {text}"
            used[claim.get("result", "")] = True
            fix = f"{claim['correction']} {_link(claim, results)}".strip()
            document = claim.get("document", "README")
            lines.append(row([document, claim["claim"], text, f"**{verdict}**", fix]))
        lines.append("")
    lines += ["## How it was measured", "", "| script | command | where |", "|---|---|---|"]
    lines += [
        row([name, f"`{result['command']}`", where(result)])
        for name, result in results.items()
        if used[name]
    ]
    return "\n".join(lines) + "\n"


def measured_of(claim, results):
    """What was measured of a row's claim, and the verdict in words."""
    if "result" not in claim:
        once = "once" in claim
        text = f"measured once: {claim['once']}" if once else f"derived: {claim['derived']}"
        return text, str(claim["verdict"])
    result = results.get(claim["result"])
    if result is None:
        return NOT_YET, WORDS[UNTOLD]
    if result["verdict"] == FAILED:
        return "the script failed", WORDS[UNTOLD]
    key, starts = ("claim", [claim["compared"]]) if "compared" in claim else ("name", [])
    starts = starts or claim.get("limit", [])
    entries = result["compared" if "compared" in claim else "claims"]
    if "above" in claim or "below" in claim:
        entries = [
            *entries,
            *(one for c in result.get("compared", []) for one in c.get("rests_on", [])),
        ]
        entries = list({one["name"]: one for one in entries}.values())
    chosen = [one for start in starts for one in entries if one[key].startswith(start)]
    lacking = [one for one in starts if not any(other[key].startswith(one) for other in entries)]
    if lacking:
        return f"{LACKS} {' and '.join(lacking)}", WORDS[UNTOLD]
    if "compared" in claim:
        return chosen[0]["measured"], chosen[0]["verdict"]
    limits = chosen or entries
    if not limits:
        compared = result.get("compared", [])
        return (
            " ".join(one["measured"] for one in compared),
            "; ".join(dict.fromkeys(one["verdict"] for one in compared)) or WORDS[UNTOLD],
        )
    if "above" in claim or "below" in claim:
        text = "; ".join(f"{one['name']}: {measured(one)}" for one in limits)
        apart = _twins_apart(result)
        if apart > 1:
            text += f"; two equal arms differ by a factor of {apart:.3f} (A/A)"
        ends = [(low / apart, high * apart) for low, high in (one["interval"] for one in limits)]
        return text, _by_bound(claim, ends)
    end = worst(ended(limit) for limit in limits)
    text = "; ".join(f"{one['name']}: {measured(one)}, limit {wanted(one)}" for one in limits)
    return text, claim.get("means", {}).get(end, WORDS[end])


def _twins_apart(result):
    """How far equal arms of a script are apart, as a factor; 1 unless it tells them apart."""
    twins = result.get("twins", {"comparisons": [], "false_verdicts": 0})
    ratios = [one["value"] for one in twins["comparisons"]] if twins["false_verdicts"] else []
    return max((max(ratio, 1 / ratio) for ratio in ratios), default=1.0)


def _by_bound(claim, intervals):
    """Whether intervals are on the side of a number that the claim says."""
    above, bound = "above" in claim, claim.get("above", claim.get("below"))
    higher = [low > bound for low, _ in intervals]
    lower = [high < bound for _, high in intervals]
    kept, broken = (higher, lower) if above else (lower, higher)
    if all(kept):
        return "holds"
    if any(kept) and any(broken):
        return "holds in part"
    return "does not hold" if any(broken) else WORDS[UNTOLD]


def _link(claim, results):
    """Where a row's claim is described: its page, or its section of RESULTS.md."""
    if target := claim.get("link"):
        return f"[{target.partition('.md')[0]}]({target})"
    name = claim.get("result")
    return f"[{name}]({RESULTS}#{anchor(results[name])})" if name in results else ""
