"""`mlxhog options`: the options of all commands, from their own definitions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlxhog.cli.flags import Declared, Json
from mlxhog.cli.frame import Report, command, spelt
from mlxhog.config.choices import KINDS, Choice
from mlxhog.config.options import Option, argument, options, to_flag
from mlxhog.config.sources import suggestion
from mlxhog.errors import ConfigError

MOST_COMMANDS = 3  # they fit into a line of the list

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Words(Json):
    name: tuple[str, ...] = argument(
        "[NAME]", "an option, a choice or a command; all options without", many=True
    )


@command("options", otherwise="; options are named without dashes: mlxhog options slack")
def run(config: _Words) -> Report:
    """List the options of all commands, one a line: name, default, meaning, and who has it.

    With a NAME: an option, in full; or all options of a choice (ssp, muon, cosine) or of a command.
    Names are those of YAML and Python (batch_size); flags have dashes (--batch-size). Defaults <
    YAML < flags. Counts may be written as 10k or 1e6, durations as 90s, 5 minutes or 1h30m.

    Examples:
        options
        options slack
        options ssp
        options mad search
        options lr --json
    """
    name = " ".join(config.name)
    plain = name.replace("-", "_")
    rows = _rows()
    choices = [choice for kind in KINDS if (choice := kind.known().get(name))]
    exact = [row for row in rows if plain in (row["name"], *row["also"])]
    listed = [row for row in rows if name in (row["of"] if choices else row["commands"])]
    if not name:
        listed = rows
    elif not exact and not choices and not listed:
        names = {n for row in rows for n in (row["name"], *row["also"], *row["commands"])}
        names |= {choice for kind in KINDS for choice in kind.known()}
        hint = suggestion(to_flag(name), [to_flag(one) for one in names])
        hint = hint.replace("did you mean '--", "did you mean '") or "; mlxhog options lists all"
        raise ConfigError(f"no option {name!r}{hint}")
    listed = [row for row in listed if row not in exact]
    full = ["\n".join([f"{row['name']}: {row['help']}", *spelt(_details(row))]) for row in exact]
    lines = [f"{choice.kind.title} {name}: {choice.about}" for choice in choices]
    width = max((len(row["name"]) for row in listed), default=0)
    lines += [f"{row['name']:{width}}  {_line(row)}" for row in listed]
    text = "\n\n".join(filter(None, [*full, "\n".join(lines)]))
    return Report([*exact, *listed], text)


def _rows() -> list[Row]:
    from mlxhog.cli import find, names

    known: dict[str, Row] = {}
    for words in names():
        command, _ = find(words.split())
        for one in command.flags().declared.values():
            for row in [] if one.spec.argument else _of_flag(one):
                row = known.setdefault(json.dumps(row), {**row, "commands": []})
                row["commands"].append(words)
    return list(known.values())


def _of_flag(declared: Declared) -> Iterator[Row]:
    """Yield the rows of a flag: one, or one for each default that choices give it."""
    by_number: dict[tuple[str, str], tuple[Option, list[type[Choice]]]] = {}
    spec = declared.spec
    for owner in declared.owners:
        own = next(each for each in options(owner).values() if each.flat == spec.name)
        by_number.setdefault((own.default_text, own.help), (own, []))[1].append(owner)
    for own, of in by_number.values() if by_number else [(spec, [])]:
        usual = "off" if own.switch else "none" if own.many or own.required else own.default_text
        yield {
            "name": spec.name, "also": list(spec.aliases),
            "default": declared.part.default or usual or "none",
            "value": "no value" if own.switch else own.metavar or own.expected,
            "unit": own.unit, "help": own.help, "kind": of[0].kind.title if of else "",
            "of": [each.name for each in of], "inside": own.name if of else "",
        }  # fmt: skip


def _line(row: Row) -> str:
    unit = f" {row['unit']}" if row["unit"] and row["default"][:1].isdigit() else ""
    commands = row["commands"]
    has = f"{len(commands)} commands" if len(commands) > MOST_COMMANDS else ", ".join(commands)
    has = f"{row['kind']} {', '.join(row['of'])}; {has}" if row["of"] else has
    return f"[{row['default']}{unit}]  {row['help']}  ({has})"


def _details(row: Row) -> dict[str, object]:
    written = [to_flag(name) for name in (row["name"], *row["also"])]
    if row["of"]:
        written.append(f'{to_flag(row["kind"])} "{row["of"][0]}({row["inside"]}=...)"')
    return {
        "belongs to": f"{row['kind']} {', '.join(row['of'])}".strip(),
        "default": row["default"],
        "value": f"{row['value']} ({row['unit']})" if row["unit"] else row["value"],
        "written": written,
        "commands": row["commands"],
    }
