"""Write docs/generated/options.md: every option of every command, as `mlxhog options` has them.

python -m tools.option_page
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from mlxhog import cli
from mlxhog.config.options import to_flag

PAGE = Path(__file__).resolve().parents[1] / "docs" / "generated" / "options.md"
HEAD = """# Options

Every option, below the first command that has it. `python -m tools.option_page` writes this page;
do not edit it. In YAML and Python an option is written with underscores and without dashes.
"""
HEADER = "| option | default | meaning | commands |\n|---|---|---|---|\n"
ALL = 12  # commands; an option that more of them have is said to be of most


def text() -> str:
    """Return the page."""
    rows = listed()
    parts = [HEAD]
    for command in dict.fromkeys(row["commands"][0] for row in rows):
        parts.append(f"\n## mlxhog {command}\n\n{HEADER}")
        parts += [_line(row) for row in rows if row["commands"][0] == command]
    return "".join(parts)


def listed() -> list[dict[str, Any]]:
    """Return what `mlxhog options --json` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.main(["options", "--json"])
    rows: list[dict[str, Any]] = json.loads(printed.getvalue())
    return rows


def _line(row: dict[str, Any]) -> str:
    flags = ", ".join(f"`{to_flag(name)}`" for name in (row["name"], *row["also"]))
    owner = f"{row['kind']} {', '.join(row['of'])}: " if row["of"] else ""
    commands = row["commands"]
    used_by = "most" if len(commands) > ALL else ", ".join(commands)
    default = f"{row['default']} {row['unit']}".strip()
    cells = (flags, default, owner + row["help"], used_by)
    quoted = (cell.replace("|", r"\|").replace("<", "&lt;") for cell in cells)
    return f"| {' | '.join(quoted)} |\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text(), encoding="utf-8")
