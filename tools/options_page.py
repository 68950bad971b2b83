"""Writes docs/options.md from the options' own definitions: `python -m tools.options_page`.

A test compares the committed page with what this module would write.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from mlxhog.classic.config import ClassicConfig
from mlxhog.cli.compare import CompareConfig
from mlxhog.cli.generate import GenerateConfig
from mlxhog.cli.replay import ReplayConfig
from mlxhog.config.choices import Choice, Kind
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import Option, options
from mlxhog.live.serving.config import ServeConfig
from mlxhog.mad.options import Protocol
from mlxhog.theory.advisor import AdviseConfig
from mlxhog.theory.simulator.inputs import SimulateConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"

_BEGINNING = """\
# Options

This page is generated: `python -m tools.options_page` writes it, and a test compares.

The same names in YAML (`batch_size: 8`), as flags (`--batch-size 8`) and in Python
(`TrainConfig(batch_size=8)`). Defaults < YAML < flags. Counts may be written as `10k` or `1e6`,
durations as `90s`, `5 minutes` or `1h30m`. Unknown names and wrong values are reported together,
with the file and line and the nearest legal name. Every command explains its own options with
`--help`, or, where they are many, those that matter most; `--help-all` then shows all.
"""
_COMMANDS: tuple[tuple[str, type], ...] = (
    ("mlxhog train", TrainConfig),
    ("mlxhog generate", GenerateConfig),
    ("mlxhog serve", ServeConfig),
    ("mlxhog compare", CompareConfig),
    ("mlxhog advise", AdviseConfig),
    ("mlxhog simulate", SimulateConfig),
    ("mlxhog replay", ReplayConfig),
    ("mlxhog classic", ClassicConfig),
    ("mlxhog mad train, bench and search: how a candidate is trained", Protocol),
)


def page() -> str:
    """Return the whole page as Markdown."""
    parts = [_BEGINNING]
    for command, config in _COMMANDS:
        parts.append(f"## {command}\n")
        for group, members in groupby(options(config).values(), lambda each: each.group):
            title = f"### {group}\n\n" if group else ""
            listed = list(members)
            parts.append(title + _table(listed) + "\n")
            for kind in (one.kind for one in listed if isinstance(one.kind, Kind)):
                parts += map(_choice, kind.known().values())
    return "\n".join(parts)


def _choice(choice: type[Choice]) -> str:
    """Return the section of a choice: what it is, and its numbers."""
    title = (
        f"#### {choice.kind.title} {choice.name}\n\n{choice.about[:1].upper()}{choice.about[1:]}."
    )
    numbers = options(choice).values()
    return f"{title}\n\n{_table(numbers)}\n" if numbers else f"{title} It has no numbers.\n"


def _table(members: Iterable[Option]) -> str:
    rows = ["| option | default | value | what it does |", "|---|---|---|---|"]
    return "\n".join([*rows, *(_row(member) for member in members)])


def _row(spec: Option) -> str:
    unit = f" ({spec.unit})" if spec.unit not in ("", "s") else ""
    names = ", ".join(f"`{alias}`" for alias in spec.aliases)
    also = f"; also {names}" if names else ""
    also += f"; outside of it `{spec.flat}`" * (spec.flat != spec.name)
    return f"| `{spec.name}` | {spec.default_text} | {spec.expected}{unit} | {spec.help}{also} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
