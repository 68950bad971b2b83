"""An HTML page in one file that loads nothing else; it has a light, a dark and a print style.

Texts of the page may come from untrusted files. So the page names the hashes of its own scripts,
and a browser runs no others.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib import resources

from mlxhog.base import plain_json
from mlxhog.report.charts import DARK, LIGHT

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #d5d9de; --soft: #59636e;
  --heat: 0 114 178; --warn: #9a4b00; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e4e6e9;
  --faint: #3a3f47; --soft: #9aa4b0; --heat: 77 178 255; --warn: #ffc14d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.sum, figcaption, footer, p.note { color: var(--soft); }
.partial { border-left: 4px solid var(--warn); padding-left: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--faint); text-align: right; }
th { font-weight: 600; vertical-align: bottom; } .t { text-align: left; }
td.h { background: rgb(var(--heat) / calc(var(--v) * .45)); }
@media screen and (max-width: 40rem) { .cards thead { display: none; }
  .cards tr { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); padding: .4rem 0;
    border-bottom: 1px solid var(--faint); } .cards table, .cards tbody { display: block; }
  .cards td, .cards th { border: 0; padding: 0 .3rem; text-align: left; overflow-wrap: anywhere; }
  .cards th { grid-column: 1 / -1; } .cards td::before, .cards th::before { font-weight: 400;
    content: attr(data-head) " "; color: var(--soft); font-size: .82rem; } }
code { font: .92em ui-monospace, monospace; } li { margin: .15rem 0; }
figure { margin: 1rem 0 1.6rem; } .figures { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.figures figure { min-width: 0; } .figures h2 { margin-top: .6rem; } footer { margin-top: 2rem; }
img { max-width: 100%; height: auto; }
@media print { body { max-width: none; margin: 0; font-size: 10pt; }
  figure, tr { break-inside: avoid; } .scroll { overflow: visible; }
  td.h { print-color-adjust: exact; } }
"""
"""Style of every page."""


def document(
    title: str,
    body: str,
    *,
    styles: Iterable[str] = (),
    scripts: Sequence[str] = (),
    data: object = None,
    talks: bool = False,
) -> str:
    """Return a page.

    Args:
        title: title of the window, plain text.
        body: HTML.
        styles: styles in addition to `STYLE`.
        scripts: scripts, run in this order at the end of the page.
        data: data for the scripts, as JSON in the element `data`.
        talks: whether the scripts may connect to the server of the page.
    """
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            "style-src 'unsafe-inline'",
            *([f"script-src {hashes}"] if scripts else []),
            *(["connect-src 'self'"] if talks else []),
        ]
    )
    embedded = "" if data is None else f"\n{_json_block(data)}"
    after = embedded + "".join(f"\n<script>{script}</script>" for script in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="{policy}">
<title>{escape(title)}</title>
<style>{"".join([STYLE, *styles])}</style>
</head>
<body>
{body}{after}
</body>
</html>
"""


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json_block(data: object) -> str:
    text = plain_json.dumps(data).decode().replace("<", "\\u003c")  # no </script> inside
    return f'<script type="application/json" id="data">{text}</script>'


@cache
def asset(name: str) -> str:
    """Return a file of `web/`: our scripts and styles, and those of uPlot (MIT licence)."""
    return resources.files("mlxhog.report").joinpath("web", name).read_text(encoding="utf-8")


def chart_scripts() -> list[str]:
    """Scripts of the charts of a run: uPlot 1.6.32 with its licence, then our own."""
    licence = asset("uPlot-LICENSE.txt").strip().replace("*/", "")
    return [f"/*\n{licence}\n*/\n{asset('uPlot.iife.min.js')}", asset("run.js")]


def chart_styles() -> list[str]:
    """Styles of the charts of a run, with the colors of lines as --ink-0, --ink-1, ..."""
    light, dark = (
        " ".join(f"--ink-{k}: {ink};" for k, ink in enumerate(theme.inks))
        for theme in (LIGHT, DARK)
    )
    in_dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    inks = f":root {{ {light} }}\n{in_dark}\n"
    return [asset("uPlot.min.css"), inks, asset("run.css")]


def table(
    header: Sequence[str], rows: Iterable[str], left: Sequence[str] = (), *, cards: bool = False
) -> str:
    """Return a table that scrolls sideways in a narrow window.

    Args:
        header: names of the columns, plain texts; empty for no header.
        rows: cells of each row, as HTML.
        left: names of the columns that are aligned to the left.
        cards: whether rows become cards in a narrow window instead; `data-head` of a cell is the
            name of its column.
    """
    columns = "".join(
        f'<th class="t" scope="col">{escape(head)}</th>'
        if head in left
        else f'<th scope="col">{escape(head)}</th>'
        for head in header
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    heads = f"<thead><tr>{columns}</tr></thead>\n" if header else ""
    kind = "scroll cards" if cards else "scroll"
    return f'<div class="{kind}"><table>\n{heads}<tbody>\n{body}\n</tbody></table></div>'


def text_cards(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain texts, whose rows become cards in a narrow window."""
    cells = (
        "".join(
            f'<td class="t" data-head="{escape(head)}">{escape(text)}</td>'
            for head, text in zip(header, row, strict=True)
        )
        for row in rows
    )
    return table(header, cells, left=header, cards=True)


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values, given as plain texts."""
    rows = (
        f'<th class="t" scope="row">{escape(name)}</th><td class="t">{escape(value)}</td>'
        for name, value in pairs
    )
    return table((), rows)
