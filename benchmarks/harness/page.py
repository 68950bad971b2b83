"""docs/results.md, its picture, and the pages of docs/generated/, from the results of the scripts.

`benchmarks/claims.yaml` has the rows: what is said, which quantities of a result decide it, and
where they should lie. Numbers and verdicts come from `results/NAME.json`, so they change with it.
"""

import json
import math
import re
import shlex
import tomllib
from collections import Counter

import yaml
from harness.claims import NOT_MEASURED, SEVERITY, WORDS, Claim
from harness.estimates import ROUNDING, Share
from harness.machine import ROOT, defaults_digest
from harness.picture import picture
from harness.verdicts import Expected, Family, control_ratios, interval_of, named

CLAIMS = ROOT / "benchmarks" / "claims.yaml"
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
COLUMNS = {
    "results": ("statement", "measured", "expected", "verdict", "source"),
    "documents": ("document", "claim", "measured", "expected", "verdict", "correction", "source"),
}
"""Each list of statements, and the columns of its tables."""
MAX_SHOWN = 2  # quantities that a row shows; more are counted, and the worst is shown
OTHERS = "sync", "speed-weighted sync"
NONE = "none"
"""Where a row has no verdict."""
QUOTED = re.compile(r"\{(=?)(1/)?(\w+): ([^{}]+)\}")


def pages(folder=RESULTS):
    """Path -> text of every generated page, and of the picture."""
    table, results = yaml.safe_load(CLAIMS.read_text("utf-8")), read(folder)
    drawn = [
        (text, *(ratio(results[name], f"{condition}: {other} / hogwild") for other in OTHERS))
        for text, name, condition in table["page"]["parallel"]["rows"]
    ]
    return {
        DOCS / "results.md": short_page(table, results),
        DOCS / "pictures" / "lock-free.svg": picture(drawn),
        DOCS / "generated" / "results.md": full_page(table, results, "results")
        + every_quantity(results),
        DOCS / "generated" / "documents.md": full_page(table, results, "documents"),
    }


def read(folder):
    """Name of a script's part -> its result."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


# -- the short page --------------------------------------------------------------------------------


def short_page(table, results):
    """The answer, the picture, three tables, and how all of it was measured."""
    page = table["page"]
    lines = [quoted(page["head"], results)]

    def section(name, columns, rows):
        lines.extend([f"## {page[name]['title']}", "", page[name]["note"].strip(), ""])
        lines.extend([row(columns), "|" + "---|" * len(columns), *map(row, rows), ""])

    def found(name, start):
        return first(results[name], start)

    def origin(name, default=None):
        return source(name, results, up="../", default=default, brief=True)

    section("parallel", ("situation", "than `sync`", "than speed-weighted `sync`", "source"), [
        (text, *(cell(found(name, f"{condition}: {other} / hogwild"))
                 for other in OTHERS), origin(name))
        for text, name, condition in page["parallel"]["rows"]
    ])  # fmt: skip
    by_default = {one["result"] for one in rows_of(table["results"]) if one.get("default")}
    since = str(table["default_since"])
    section("others", ("quantity", "beside", "mlxhog is better by", "source"), [
        (what, other, cell(found(name, start)), origin(name, since if name in by_default else None))
        for what, other, name, start in page["others"]["rows"]
    ])  # fmt: skip
    section("counted", ("event", "seen", "trials", "rate at most", "source"), [
        (what, *counts(found(name, start)), origin(name))
        for what, name, start in page["counted"]["rows"]
    ])  # fmt: skip
    lengths, rows = presets(results)
    section("presets", ("preset", "tokenizer", "tokens", *lengths, "tokens/s", "source"), [
        (*cells, "; ".join(map(origin, names))) for *cells, names in rows
    ])  # fmt: skip
    return "\n".join([*lines, page["foot"]])


def presets(results):
    """Megabytes of text; for each preset and tokenizer bits per byte, tokens/s, and their files."""
    cells = {}
    for one in results["presets_by_text"]["sizes"]:
        size, minutes, *arm = one["cell"]
        if minutes == 1:
            cells.setdefault(tuple(arm), {})[size] = one
    per_s = {one["preset"]: f"{one['tokens per second']:,}"
             for one in results.get("preset_speed", {"table": ()})["table"]}  # fmt: skip
    cells |= {(preset, "sotu"): {} for preset in per_s if (preset, "sotu") not in cells}
    lengths = sorted({size for row in cells.values() for size in row})
    rows = []
    for (preset, tokenizer), row in cells.items():
        steps = max((one["steps"] for one in row.values()), default=0)
        bits = (f"{row[size]['best']:.2f}" if size in row else "-" for size in lengths)
        of_speed = per_s.get(preset) if tokenizer == "sotu" else None
        unless = WORDS[NOT_MEASURED] if tokenizer == "sotu" else "-"
        names = ["presets_by_text"] * bool(row) + ["preset_speed"] * bool(of_speed)
        tokens = f"{steps * 1024 / 1e6:.2f} M" if row else "-"
        rows.append((f"`{preset}`", f"`{tokenizer}`", tokens, *bits, of_speed or unless, names))
    return [f"{size:g} MB" for size in lengths], rows


def first(result, start):
    """The first quantity, or else the first A/A arm, whose name begins so; None without one."""
    every = *result["claims"], *result["controls"]["comparisons"]
    return next((one for one in every if one["name"].startswith(start)), None)


def ratio(result, start):
    """A ratio and the ends of its interval; None where there is none."""
    one = first(result, start)
    if one is None or one["value"] is None:
        return None
    return one["value"], *(interval_of(one) or (one["value"], one["value"]))


def cell(quantity, *, inverse=False):
    """A value with its interval and n, or a dash."""
    if quantity is None or quantity["value"] is None:
        return "-"
    values = [quantity["value"], *(interval_of(quantity) or ())]
    if inverse:
        values = [1 / values[0], *(1 / end for end in reversed(values[1:]))]
    shown = [f"{value * (1 + ROUNDING):.2f}" for value in values]  # .005 is rounded up
    return f"{shown[0]} ({shown[1]} to {shown[2]}, n {quantity['n']})" if shown[1:] else shown[0]


def counts(quantity):
    """How often something happened, in how many trials, and the highest rate that is possible."""
    n, value = quantity["n"], quantity["value"]
    high = (interval_of(quantity) or (0, Share.of(round(value), n).high))[1]
    return f"{value:g}", f"{n:,}", f"{high:.2g}"


def quoted(text, results):
    """A text with its `{result: quantity}` replaced by the number."""

    def number(match):
        bare, inverse, name, start = match.groups()
        if (one := first(results[name], start)) is None:
            raise LookupError(f"{name}.json has no quantity that begins with {start!r}")
        text = cell(one, inverse=bool(inverse))
        return text.partition(" ")[0] if bare else text

    return QUOTED.sub(number, text)


# -- the full lists --------------------------------------------------------------------------------


def full_page(table, results, part):
    """A table by situation or subject, a row a statement."""
    head, groups, columns = table[part]["head"], table[part]["groups"], COLUMNS[part]
    known = families(table[part], results)
    since = str(table["default_since"])
    lines = [quoted(head, results).strip(), ""]
    for group in groups:
        lines += [f"## {group['title']}", "", *([group["note"], ""] if "note" in group else [])]
        lines += [row(columns), "|" + "---|" * len(columns)]
        for claim in group["rows"]:
            text, verdict = measured_of(claim, results, known)
            name = claim.get("result")
            default = since if claim.get("default") else None
            cells = {
                **claim, "statement": f"{claim['claim']} {claim.get('note', '')}".strip(),
                "measured": text, "verdict": "-" if verdict == NONE else f"**{verdict}**",
                "expected": str(claim.get("expected", "-")),
                "source": source(name, results, up="../../", default=default) if name else "",
            }  # fmt: skip
            lines.append(row([cells[column] for column in columns]))
        lines.append("")
    return "\n".join(lines)


def rows_of(part):
    """Every row of a list of statements."""
    return [claim for group in part["groups"] for claim in group["rows"]]


def families(part, results):
    """Result -> the comparisons that a list of statements plans of it."""
    rows = rows_of(part)
    names = dict.fromkeys(claim["result"] for claim in rows if "result" in claim)
    return {
        name: Family(results[name], [one for one in rows if one.get("result") == name])
        for name in names
    }


def measured_of(claim, results, known):
    """What was measured of a row's statement, and its verdict in words."""
    if "result" not in claim:
        once = "once" in claim
        text = f"no result file: {claim['once']}" if once else f"derived: {claim['derived']}"
        return text, claim.get("verdict", NONE)
    result, family = results[claim["result"]], known[claim["result"]]
    chosen = named(result, claim)
    for start in claim.get("quantity", ()):
        if not any(one["name"].startswith(start) for one in chosen):
            raise LookupError(f"{claim['result']}.json has no quantity that begins with {start!r}")
    expected = claim.get("expected")
    if expected is None:
        return f"{listed(chosen)}{noise(result, chosen)}", NONE
    verdicts = [family.verdict(one, expected) for one in chosen]
    text = listed(chosen, limits=expected == "limits")
    if len(chosen) > MAX_SHOWN:
        text = f"{tally(verdicts)}; {farthest(chosen, verdicts, expected)}"
    return f"{text}{noise(result, chosen)}", WORDS[family.row(chosen, expected)]


def listed(quantities, *, limits=False):
    """All of some quantities, with the limits that their script has if those decide."""
    words = [(in_words(one, bare=not limits), limits) for one in quantities]
    return "; ".join(
        f"{one.name}: {one.measured}{f', limit {one.wanted}' * limit}" for one, limit in words
    )


def tally(verdicts):
    """How many quantities have which verdict."""
    number = Counter(verdicts)
    return ", ".join(f"{number[one]} of {len(verdicts)} {WORDS[one]}"
                     for one in SEVERITY if number[one])  # fmt: skip


def farthest(quantities, verdicts, expected):
    """The quantity that is farthest from what is expected, relative to its limit."""

    def margin(k):
        inside, value = Expected.of(expected, quantities[k]), quantities[k]["value"]
        scale = max(abs(bound) for bound in inside.bounds) or 1.0
        lacks = value is None or math.isnan(value)
        return SEVERITY.index(verdicts[k]), -math.inf if lacks else inside.margin(value) / scale

    worst_one = quantities[min(range(len(quantities)), key=margin)]
    return f"worst: {listed([worst_one], limits=expected == 'limits')}"


def noise(result, quantities):
    """How far equal arms are apart (A/A), in the sentence of a number with an interval."""
    controls = control_ratios(result)
    if not controls or not any(map(interval_of, quantities)):
        return ""
    one = max(controls, key=lambda one: abs(math.log(one["value"])))
    ends = "" if one["low"] is None else f" ({one['low']:.3f} to {one['high']:.3f})"
    return f"; A/A, {one['name']}, ratio {one['value']:.3f}{ends}"


def every_quantity(results):
    """Every result with all of its quantities, none left out."""
    about = "Each quantity of a file, and the limit set in its script; a document's is in brackets."
    lines = ["## Every quantity", "", about, ""]
    for name, result in results.items():
        command = result["command"]
        ran = f"`{command}`"
        if "command" in result.get("stale", ""):
            ran = command.capitalize() if " script " in command else f"Recorded by {command}"
        lines += [f"### {name}", "", f"{ran}: {source(name, results, up='../../')}"]
        lines += ["", *([result["note"], ""] if result.get("note") else [])]
        if result["claims"]:
            lines += [row(("quantity", "measured", "limit")), "|---|---|---|"]
        for one in result["claims"]:
            words = in_words(one, bare=False)
            limit = "-" if one["ended"] == "no_limit" else words.wanted
            limit = f"({limit})" if one.get("document") else limit
            lines.append(row((words.name, words.measured, limit)))
        lines.append("")
    return "\n".join(lines)


# -- where a result is from ------------------------------------------------------------------------


def source(name, results, *, up, default=None, brief=False):
    """Which script measured a row, and when, on which machine, and what is stale about it."""
    result = results[name]
    letter = result["machine"].get("letter", "unknown")
    stale = result.get("stale")
    marks = ["stale" if brief else f"stale ({stale})"] if stale else []
    if default and is_of_earlier_default(result, default):
        marks.append("an earlier default")
    version = result.get("versions", {}).get("mlxhog")
    if not brief and version not in (None, today()):
        marks.append(f"version {version}")
    path = f"{up}benchmarks/results/{name}.json"
    return ", ".join([f"[{name}]({path})", letter, result["date"], *marks])


def is_of_earlier_default(result, since):
    """Whether `mlxhog train` without options was another one: by digest, or by date without it."""
    if "defaults" in result:
        return result["defaults"] != defaults_digest()
    return result["date"] < since


def why_stale(result):
    """Why this checkout cannot repeat a result; empty where it can."""
    lacks = [name for name in ("mode", "commit") if not result.get(name)]
    if not result["machine"].get("cpu"):
        lacks.append("processor")
    reasons = [f"no {', '.join(lacks)}"] if lacks else []
    words = shlex.split(result["command"])
    script = ROOT / words[1] if words[0] == "python" else None
    if script is None or not script.is_file():
        reasons.append("its command does not exist")
    elif "--only" in words and any(
        f'"{part}"' not in (text := script.read_text("utf-8")) and f"def {part}(" not in text
        for part in words[words.index("--only") + 1 :] if not part.startswith("-")
    ):  # fmt: skip
        reasons.append("its command has a part that does not exist")
    return "; ".join(reasons)


def today():
    """The version of this checkout."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def in_words(quantity, *, bare):
    """A recorded quantity as the harness prints one; its limit unless it is bare."""
    ends, value = quantity.get("interval"), quantity["value"]
    return Claim(
        quantity["name"], math.nan if value is None else value,
        "" if bare and quantity["relation"] != "==" else quantity["relation"], quantity["limit"],
        interval=ends and tuple(math.nan if end is None else end for end in ends),
        n=quantity.get("n"), least=quantity.get("least"), timing=quantity.get("timing", True),
    )  # fmt: skip


def row(cells):
    """A row of a table."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
