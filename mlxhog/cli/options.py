"""`mlxhog options`: the options of all commands, from their own definitions."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlxhog.cli.flags import Json
from mlxhog.cli.frame import Report, command, spelt
from mlxhog.config.choices import KINDS, Choice
from mlxhog.config.options import Option, argument, options, to_flag
from mlxhog.config.sources import suggestion
from mlxhog.errors import ConfigError

ABOUT = """\
List the options of all commands, one a line: name, default, meaning, and who has it. With a NAME:
an option, in full; or all options of a choice (ssp, muon, cosine) or of a command. Names are those
of YAML and Python (batch_size); flags have dashes (--batch-size). Defaults < YAML < flags. Counts
may be written as 10k or 1e6, durations as 90s, 5 minutes or 1h30m."""
EXAMPLES = ("options", "options slack", "options ssp", "options mad search", "options lr --json")
PARTS = ("runs rm", "cluster numa")
"""Parts of commands with options of their own, beside those of `mlxhog mad`."""
MOST_COMMANDS = 3  # they fit into a line of the list

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class OptionsConfig(Json):
    """Options of `mlxhog options`."""

    name: tuple[str, ...] = argument(
        "[NAME]", "an option, a choice or a command; all options without", many=True
    )


@command(
    "options",
    ABOUT,
    EXAMPLES,
    OptionsConfig,
    otherwise="; options are named without dashes: mlxhog options slack",
)
def run(config: OptionsConfig) -> Report:
    """List the options."""
    name = " ".join(config.name)
    every = _rows()
    plain = name.replace("-", "_")
    exact = [row for row in every if plain in (row["name"], *row["also"])]
    choices = [choice for kind in KINDS if (choice := kind.known().get(name))]
    listed = [
        row
        for row in every
        if any(row["kind"] == one.kind.title and name in row["of"] for one in choices)
    ]
    if not exact and not choices:
        listed = [row for row in every if name in ("", *row["commands"])]
        if not listed:
            raise ConfigError(f"no option {name!r}{_hint(name, every)}")
    abouts = [f"{choice.kind.title} {name}: {choice.about}" for choice in choices]
    full = ["\n".join([f"{row['name']}: {row['help']}", *spelt(_full(row))]) for row in exact]
    lines = "\n".join([*abouts, *_listed(listed)])
    return Report([*exact, *listed], text=lambda: "\n\n".join(filter(None, [*full, lines])))


def _rows() -> list[Row]:
    """Return every option with the commands that have it, in the order of the commands."""
    from mlxhog.cli import COMMANDS, find
    from mlxhog.cli.mad import COMMANDS as MAD

    mine = [name for name in COMMANDS if name != "mad"]
    known: dict[str, Row] = {}
    for words in (*mine, *PARTS, *(f"mad {name}" for name in MAD)):
        command, _ = find(words.split())
        for spec, owners, default in command.flags().declared.values():
            for row in [] if spec.argument else _of_flag(spec, owners, default):
                row = known.setdefault(json.dumps(row), {**row, "commands": []})
                row["commands"].append(words)
    return list(known.values())


def _of_flag(spec: Option, owners: Sequence[type[Choice]], default: str | None) -> Iterator[Row]:
    """Yield the rows of a flag: one, or one for each default that choices give it."""
    by_number: dict[tuple[str, str], tuple[Option, list[type[Choice]]]] = {}
    for owner in owners:
        own = next(each for each in options(owner).values() if each.flat == spec.name)
        by_number.setdefault((own.default_text, own.help), (own, []))[1].append(owner)
    for own, of in by_number.values() if owners else [(spec, [])]:
        usual = "off" if own.switch else "none" if own.many or own.required else own.default_text
        yield {
            "name": spec.name, "also": list(spec.aliases), "default": default or usual or "none",
            "value": "no value" if own.switch else own.metavar or own.expected,
            "unit": own.unit, "help": own.help, "kind": of[0].kind.title if of else "",
            "of": [each.name for each in of], "inside": own.name if of else "",
        }  # fmt: skip


def _listed(rows: Sequence[Row]) -> Iterator[str]:
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        unit = f" {row['unit']}" if row["unit"] and row["default"][:1].isdigit() else ""
        commands = row["commands"]
        has = f"{len(commands)} commands" if len(commands) > MOST_COMMANDS else ", ".join(commands)
        has = "; ".join(filter(None, [_owners(row), has]))
        yield f"{row['name']:{width}}  [{row['default']}{unit}]  {row['help']}  ({has})"


def _full(row: Row) -> dict[str, object]:
    written = [to_flag(name) for name in (row["name"], *row["also"])]
    if row["of"]:
        written.append(f'{to_flag(row["kind"])} "{row["of"][0]}({row["inside"]}=...)"')
    return {
        "belongs to": _owners(row),
        "default": row["default"],
        "value": f"{row['value']} ({row['unit']})" if row["unit"] else row["value"],
        "written": written,
        "commands": row["commands"],
    }


def _owners(row: Row) -> str:
    return f"{row['kind']} {', '.join(row['of'])}".strip()


def _hint(name: str, rows: Sequence[Row]) -> str:
    """Return the end of an error for an unknown name."""
    names = [each for row in rows for each in (row["name"], *row["also"], *row["commands"])]
    names += [choice for kind in KINDS for choice in kind.known()]
    hint = suggestion(to_flag(name), list(map(to_flag, names)))
    return hint.replace("did you mean '--", "did you mean '") or "; mlxhog options lists all"
