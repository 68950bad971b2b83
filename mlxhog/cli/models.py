"""`mlxhog models`: the architectures of the package, and one of them as a file to change."""

import json
from typing import Any

from mlxhog.base.quantities import format_count
from mlxhog.cli.flags import Flags
from mlxhog.errors import ConfigError

ABOUT = """\
List the architectures of the package, or print one as YAML with a comment for every field, for
`mlxhog train --model FILE`. The numbers of parameters are those with the shown vocabulary; a run
takes that of its tokenizer."""
EXAMPLES = (
    "models",
    "models 10m > my.yaml",
    "models tiny --set hidden_size=256 --set num_hidden_layers=6",
    "models --json",
)


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("models", ABOUT, EXAMPLES, ("[NAME]",))
    flags.argument(
        "name", nargs="?", help="a name, a YAML file, or a checkpoint; without it all names"
    )
    flags.argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value for a field, as in mlxhog train --set",
    )
    flags.plugin()
    flags.argument("--json", action="store_true", help="one line of JSON")
    parsed = flags.parse(arguments)
    name, changes = parsed.other.name, ", ".join(parsed.other.set)
    problems = list(parsed.problems)
    if changes and name is None:
        problems.append("--set is for one model; name it: mlxhog models tiny --set hidden_size=256")
    if problems:
        raise ConfigError("\n".join(problems))
    from mlxhog.models import registry

    if name is None:
        rows = [_facts(one) for one in registry.architectures()]
        rows.sort(key=lambda row: (row["family"], row["parameters"]))
        print(json.dumps(rows) if parsed.other.json else _table(rows))
        return 0
    facts = _facts(name, changes)
    if parsed.other.json:
        fields = registry.as_mapping(registry.load_architecture(name, changes))
        print(json.dumps({**facts, "fields": fields}))
        return 0
    print(_heading(name, facts, changes), end="")
    print(registry.to_yaml(registry.load_architecture(name, changes)), end="")
    return 0


def _facts(name: str, changes: str = "") -> dict[str, Any]:
    """Return the facts of a model for the list."""
    from mlxhog.models import families, registry

    cfg = registry.load_architecture(name, changes)
    return {
        "name": name,
        "family": cfg.model_type,
        "parameters": families.param_count(cfg),
        "hidden_size": cfg.hidden_size,
        "blocks": cfg.num_hidden_layers,
        "vocab_size": cfg.vocab_size,
    }


def _heading(name: str, facts: dict[str, Any], changes: str) -> str:
    """Return the comments above a model's fields: its size, and those of its file."""
    from mlxhog.models import registry

    changed = f" with {changes}" if changes else ""
    lines = [
        f"# {name}{changed}: {facts['parameters']:,} parameters with this vocabulary.",
        "# Train it: mlxhog train --model FILE",
    ]
    if name in registry.architectures() and not changes:
        own = registry.source(name).splitlines()
        lines += [line for line in own if line.startswith("#")]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> str:
    from mlxhog.report.table import aligned

    titles = ("name", "family", "parameters", "hidden size", "blocks", "vocabulary")
    cells = [
        (
            row["name"],
            row["family"],
            format_count(row["parameters"]),
            str(row["hidden_size"]),
            str(row["blocks"]),
            str(row["vocab_size"]),
        )
        for row in rows
    ]
    return "\n".join(
        [
            *aligned(titles, cells, words=(0, 1)),
            "",
            "next: mlxhog train --model 5m --time 10m",
            "      mlxhog models 5m > my.yaml",
        ]
    )
