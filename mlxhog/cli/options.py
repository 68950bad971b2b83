"""List the options of all commands: default, unit, meaning, and whose they are.

With a NAME: an option, in full; or all options of a choice (ssp, muon, cosine) or of a command.
Names are those of YAML and Python (batch_size); flags have dashes (--batch-size). Defaults < YAML <
flags. Counts may be written as 10k or 1e6, durations as 90s, 5 minutes or 1h30m.

Examples:
    options
    options slack
    options ssp
    options mad search --json
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlxhog.cli.frame import CommandResult, Json, argument, command, to_lines
from mlxhog.config.components import RUN_REGISTRIES
from mlxhog.config.options import Option, options, to_flag
from mlxhog.config.sources import suggestion
from mlxhog.errors import ConfigError

MAX_COMMANDS = 3  # they fit into a line of the list
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Options(Json):
    name: tuple[str, ...] = argument(
        "[NAME]", "an option, a choice or a command; all options without", many=True
    )


@command(otherwise="; options are named without dashes: mlxhog options slack")
def run(config: _Options) -> CommandResult:
    name = " ".join(config.name)
    plain = name.replace("-", "_")
    rows = _rows()
    choices = [choice for kind in RUN_REGISTRIES if (choice := kind.known().get(name))]
    exact = [row for row in rows if plain in (row["name"], *row["also"])]
    listed = [row for row in rows if name in (row["of"] if choices else row["commands"])]
    if not name:
        listed = rows
    elif not exact and not choices and not listed:
        names = {n for row in rows for n in (row["name"], *row["also"], *row["commands"])}
        names |= {choice for kind in RUN_REGISTRIES for choice in kind.known()}
        hint = suggestion(name, [one.replace("_", "-") for one in names])
        raise ConfigError(f"no option {name!r}{hint or '; mlxhog options lists all'}")
    listed = [row for row in listed if row not in exact]
    full = ["\n".join([f"{row['name']}: {row['help']}", *to_lines(_details(row))]) for row in exact]
    lines = [f"{choice.registry.title} {name}: {choice.about}" for choice in choices]
    width = max((len(row["name"]) for row in listed), default=0)
    lines += [f"{row['name']:{width}}  {_line(row)}" for row in listed]
    text = "\n\n".join(filter(None, [*full, "\n".join(lines)]))
    return CommandResult([*exact, *listed], text)


def _rows() -> list[Row]:
    from mlxhog.cli import find, names

    known: dict[str, Row] = {}
    for name in names():
        command, _ = find(name.split())
        for spec in command.flags().specs():
            for row in [] if spec.argument else _of_flag(spec):
                row = known.setdefault(json.dumps(row), {**row, "commands": []})
                row["commands"].append(name)
    return list(known.values())


def _of_flag(spec: Option) -> Iterator[Row]:
    """Yield the rows of a flag: one, or one for each default that choices give it."""
    by_default = dict[tuple[str, str], tuple[Option, list[Any]]]()
    for owner in spec.owners:
        own = next(each for each in options(owner).values() if each.flat == spec.name)
        by_default.setdefault((own.default_text, own.help), (own, []))[1].append(owner)
    for own, of in by_default.values() or [(spec, [])]:
        yield {
            "name": spec.name, "also": list(spec.aliases),
            "default": spec.shown or own.default_text or "none",
            "value": "no value" if own.type is bool else own.metavar or own.expected,
            "unit": own.unit, "help": own.help, "kind": of[0].registry.title if of else "",
            "of": [each.name for each in of], "inside": own.name if of else "",
        }  # fmt: skip


def _line(row: Row) -> str:
    unit = f" {row['unit']}" if row["unit"] and row["default"][:1].isdigit() else ""
    commands = row["commands"]
    has = f"{len(commands)} commands" if len(commands) > MAX_COMMANDS else ", ".join(commands)
    has = f"{row['kind']} {', '.join(row['of'])}; {has}" if row["of"] else has
    return f"[{row['default']}{unit}]  {row['help']}  ({has})"


def _details(row: Row) -> dict[str, object]:
    inside = [f'{to_flag(row["kind"])} "{name}({row["inside"]}=...)"' for name in row["of"][:1]]
    return {
        "belongs to": f"{row['kind']} {', '.join(row['of'])}".strip(),
        "default": row["default"],
        "value": f"{row['value']} ({row['unit']})" if row["unit"] else row["value"],
        "written": [*map(to_flag, (row["name"], *row["also"])), *inside],
        "commands": row["commands"],
    }
