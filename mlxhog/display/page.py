"""An HTML page in one file, with light, dark and print styles.

Its texts may come from untrusted files, so it names the hashes of its own scripts, and a browser
runs no others.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib import resources

from mlxhog.base import plain_json
from mlxhog.display.charts import DARK, LIGHT


def document(
    title: str,
    body: str,
    *,
    styles: Iterable[str] = (),
    scripts: Sequence[str] = (),
    data: object = None,
    talks: bool = False,
) -> str:
    """Return a page with a plain-text title and a body of HTML.

    Scripts run at its end, with `data` as JSON in the element `data`; with `talks` they may connect
    to its server.
    """
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += "base-uri 'none'; form-action 'none'"
    policy += f"; script-src {hashes}" * bool(scripts) + "; connect-src 'self'" * talks
    after = "".join(f"\n<script>{script}</script>" for script in scripts)
    if data is not None:
        text = plain_json.dumps(data).decode().replace("<", "\\u003c")  # no </script> inside
        after = f'\n<script type="application/json" id="data">{text}</script>{after}'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="{policy}">
<title>{escape(title)}</title>
<style>{"".join([asset("page.css"), *styles])}</style>
</head>
<body>
{body}{after}
</body>
</html>
"""


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def asset(name: str) -> str:
    """Return a file of `web/`: scripts and styles, also of uPlot (MIT license)."""
    return resources.files("mlxhog.display").joinpath("web", name).read_text(encoding="utf-8")


def chart_scripts() -> list[str]:
    """Return the scripts of a run's charts: uPlot 1.6.32 with its license, then run.js."""
    notice = asset("uPlot-LICENSE.txt").strip().replace("*/", "")
    return [f"/*\n{notice}\n*/\n{asset('uPlot.iife.min.js')}", asset("run.js")]


def chart_styles() -> list[str]:
    """Return the styles of a run's charts, with line colors as --ink-0, --ink-1, ..."""
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
    """Return a table of HTML rows; in a narrow window it scrolls sideways.

    With `cards` its rows become cards there; `data-head` of a cell is the name of its column.
    Columns named in `left` are aligned to the left.
    """
    columns = "".join(
        f'<th{" class=t" * (head in left)} scope="col">{escape(head)}</th>' for head in header
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    heads = f"<thead><tr>{columns}</tr></thead>\n" if header else ""
    kind = "scroll cards" if cards else "scroll"
    return f'<div class="{kind}"><table>\n{heads}<tbody>\n{body}\n</tbody></table></div>'


def text_cards(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts, whose rows become cards in a narrow window; "" without rows."""

    def cell(head: str, text: str) -> str:
        return f'<td class="t" data-head="{escape(head)}">{escape(text)}</td>'

    cells = ["".join(map(cell, header, row)) for row in rows]
    return table(header, cells, left=header, cards=True) if cells else ""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values, as texts."""
    rows = (
        f'<th class="t" scope="row">{escape(name)}</th><td class="t">{escape(value)}</td>'
        for name, value in pairs
    )
    return table((), rows)
