"""`mlxhog options`: the options of all commands; `completion`: their completion in a shell.

The shell's function runs `mlxhog completion SHELL -- WORDS` at every completion, so the words come
from the parsers. It imports the same modules as the `--help` of a command.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mlxhog.cli.flags import Json, words_of
from mlxhog.cli.frame import Report, command, spelt
from mlxhog.config.components import RUN_REGISTRIES
from mlxhog.config.options import Option, argument, options, to_flag
from mlxhog.config.sources import suggestion
from mlxhog.errors import ConfigError

MAX_COMMANDS = 3  # they fit into a line of the list

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Options(Json):
    name: tuple[str, ...] = argument(
        "[NAME]", "an option, a choice or a command; all options without", many=True
    )


@command("options", otherwise="; options are named without dashes: mlxhog options slack")
def run(config: _Options) -> Report:
    """List the options of all commands, one a line: name, default, meaning, and who has it.

    With a NAME: an option, in full; or all options of a choice (ssp, muon, cosine) or of a command.
    Names are those of YAML and Python (batch_size); flags have dashes (--batch-size). Defaults <
    YAML < flags. Counts may be written as 10k or 1e6, durations as 90s, 5 minutes or 1h30m.

    Examples:
        options
        options slack
        options ssp
        options mad search --json
    """
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
    full = ["\n".join([f"{row['name']}: {row['help']}", *spelt(_details(row))]) for row in exact]
    lines = [f"{choice.registry.title} {name}: {choice.about}" for choice in choices]
    width = max((len(row["name"]) for row in listed), default=0)
    lines += [f"{row['name']:{width}}  {_line(row)}" for row in listed]
    text = "\n\n".join(filter(None, [*full, "\n".join(lines)]))
    return Report([*exact, *listed], text)


def _rows() -> list[Row]:
    from mlxhog.cli import find, names

    known: dict[str, Row] = {}
    for words in names():
        command, _ = find(words.split())
        for spec in command.flags().specs():
            for row in [] if spec.argument else _of_flag(spec):
                row = known.setdefault(json.dumps(row), {**row, "commands": []})
                row["commands"].append(words)
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
            "value": "no value" if own.switch else own.metavar or own.expected,
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


SCRIPTS = {
    "bash": """\
_mlxhog() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <("${COMP_WORDS[0]}" completion bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _mlxhog mlxhog""",
    "zsh": """\
_mlxhog() {
    local -a found
    found=("${(@f)$("${words[1]}" completion zsh -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    [[ -n "${found[1]}" ]] && compadd -- "${found[@]}" || _files
}
compdef _mlxhog mlxhog""",
}
BREAKS = (":", "=")
"""Characters at which bash splits words."""

RUNS = {"run", "run_or_checkpoint", "config_or_run", "subject", "resume"}
MODELS = {"model", "config_or_run", "subject", "name_or_file"}


@dataclass(frozen=True, kw_only=True)
class _Completion(Json):
    shell: str = argument("SHELL", "bash or zsh", choices=tuple(SCRIPTS))
    words: tuple[str, ...] = argument("[-- WORDS]", "a command line", metavar="WORDS", many=True)


@command("completion")
def completion(config: _Completion) -> Report:
    """Print a script for completion of commands, options, their values and the names of runs.

    Without a match, the shell completes files.

      bash: eval "$(mlxhog completion bash)" in ~/.bashrc
      zsh:  eval "$(mlxhog completion zsh)" in ~/.zshrc, after compinit

    With -- and the words of a command line, it prints the possible completions of the last word,
    one per line.

    Examples:
        completion bash
        completion zsh
        completion bash -- train --st
    """
    if not config.words:
        return Report({"script": SCRIPTS[config.shell]}, SCRIPTS[config.shell])
    words = list(candidates(config.words, config.shell))
    return Report(words, words)


def candidates(words: Sequence[str], shell: str) -> Iterator[str]:
    """Yield the completions of the last word.

    bash splits words at `BREAKS` and gets the part after the last one.
    """
    joined = [""]
    for before, word in zip(["", *words], words, strict=False):
        if shell == "bash" and joined[-1] and (before in BREAKS or word in BREAKS):
            joined[-1] += word
        else:
            joined.append(word)
    *before_it, current = joined[1:] or [""]
    begin = max(current.rfind(mark) for mark in BREAKS) + 1 if shell == "bash" else 0
    for text in _completions(before_it, current):
        if text.startswith(current):
            yield text[begin:]


def _completions(before: Sequence[str], current: str) -> Iterable[str]:
    """Return the words that may follow some words."""
    from mlxhog.cli import COMMANDS, FAMILIES, find

    if not before:
        return [*COMMANDS, "--help", "--version"]
    _, own = FAMILIES.get(before[0], ("", {}))
    if own and len(before) == 1:
        return own
    if before[0] not in COMMANDS or (own and before[1] not in own):
        return []
    command, rest = find(before)
    flags = command.flags()
    flag, equals, _ = current.partition("=")
    spec = flags.by_flag.get(flag if equals else ["", *rest][-1])
    if spec is not None and spec.type is not bool:
        return [f"{flag}={one}" if equals else one for one in _values(spec)]
    if current.startswith("-"):
        return ["--help", *flags.by_flag]
    places = (spec for spec in flags.specs() if spec.argument)
    return dict.fromkeys(one for spec in places for one in _values(spec))


def _values(spec: Option) -> Iterator[str]:
    yield from words_of(spec)
    names = {spec.argument.strip("[].").lower() or spec.name, spec.metavar.lower()}
    if names & RUNS:
        yield "latest"
        yield from sorted(path.parent.name for path in Path("runs").glob("*/run.json"))
    if names & MODELS:
        files = sorted(Path(file.name) for file in resources.files("mlxhog.models").iterdir())
        named = (file.stem for file in files if file.suffix == ".yaml")
        yield from (name for name in named if not name.startswith("space-"))
    if spec.name == "problem":
        from mlxhog.research.classic.problems import PROBLEMS

        yield from PROBLEMS
