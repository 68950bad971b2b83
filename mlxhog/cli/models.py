"""List the architectures, or print one as a YAML file to change.

Such a file, with a comment for every field, is for `mlxhog train --model FILE`. Parameters are
counted with the shown vocabulary; a run has the vocabulary of its tokenizer.

Examples:
    models
    models 10m > my.yaml
    models tiny --set hidden_size=256 --set num_hidden_layers=6
    models --json
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxhog.cli.frame import CommandResult, Json, Plugins, argument, command, option
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.models.families import ModelConfig


@dataclass(frozen=True, kw_only=True)
class _Models(Plugins, Json):
    name: str | None = argument(
        "[NAME]", "a name, a YAML file, or a checkpoint; without it all names"
    )
    set: tuple[str, ...] = option(
        (), "another value for a field, as in mlxhog train --set", many=True, metavar="NAME=VALUE"
    )


@command()
def run(config: _Models) -> CommandResult:
    changes = ", ".join(config.set)
    if changes and config.name is None:
        raise ConfigError(
            "--set is for one model; name it: mlxhog models tiny --set hidden_size=256"
        )
    from mlxhog.models import registry

    if config.name is None:
        rows = [
            _fields(name, registry.load_architecture(name)) for name in registry.architectures()
        ]
        rows.sort(key=lambda row: (row["family"], row["parameters"]))
        after = ["", "next: mlxhog train --model 5m --time 10m", "      mlxhog models 5m > my.yaml"]
        return CommandResult(rows, [rows, *after])
    model = registry.load_architecture(config.name, changes)
    payload = _fields(config.name, model)
    changed = f" with {changes}" if changes else ""
    text = [
        f"# {config.name}{changed}: {payload['parameters']:,} parameters with this vocabulary.",
        "# Train it: mlxhog train --model FILE",
    ]
    if config.name in registry.architectures() and not changes:
        own = registry.source(config.name).splitlines()  # the comments of its file
        text += [line for line in own if line.startswith("#")]
    text.append(registry.to_yaml(model).removesuffix("\n"))
    return CommandResult({**payload, "fields": registry.as_mapping(model)}, text)


def _fields(name: str, model: "ModelConfig") -> dict[str, Any]:
    from mlxhog.models.families import param_count

    return {
        "name": name,
        "family": model.model_type,
        "parameters": param_count(model),
        "hidden_size": model.hidden_size,
        "blocks": model.num_hidden_layers,
        "vocab_size": model.vocab_size,
    }
