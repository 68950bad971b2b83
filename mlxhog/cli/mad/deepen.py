"""Make an architecture deeper, as a model file for `mlxhog train --model`.

WHAT is a study (its best candidate), or an argument of `mlxhog mad show`: a YAML file, a name, a
line of layers. `stack` repeats the whole sequence, `stretch` every part in its place. Results of a
search with few layers are better stacked, those with 16 or more stretched (Composer,
arXiv:2510.00379). Blocks of a sequence mixer and a channel mixer stay together.

Examples:
    mad deepen first --depth 16 --output deep.yaml
    mad deepen winner.yaml --depth 24 --how stretch --dim 256 --output deep.yaml
    mad deepen "mlstm swiglu slstm swiglu" --depth 16 --output deep.yaml
    train --model deep.yaml --time 10m
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from mlxhog.cli.frame import CommandResult, Json, Plugins, argument, command, option, writable
from mlxhog.errors import ConfigError


def model_file(out: str) -> Path:
    """Return the path of --output, a YAML file to write."""
    if Path(out).suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output is {out}; name a YAML file, such as winner.yaml")
    return writable("--output", out)


@dataclass(frozen=True, kw_only=True)
class _Deepen(Plugins, Json):
    what: tuple[str, ...] = argument("WHAT...", "a study or an architecture")
    depth: int = option(0, "layers of the new model", low=1, required=True)
    how: str = option(
        "stack", "repeat the whole sequence, or every part in place", choices=("stack", "stretch")
    )
    output: str = option("", "model file to write or replace", required=True)
    dim: int | None = option(None, "width of the new model", low=1, none="its own")
    vocab: int | None = option(None, "tokens of its vocabulary", low=1, none="its own")


@command(writes=True)
def run(config: _Deepen) -> CommandResult:
    from mlxhog.mad import winner
    from mlxhog.models.families import param_count
    from mlxhog.models.mad.sequence import canonical

    path = model_file(config.output)
    source, cfg = winner.read_source(" ".join(config.what))
    stack = config.how == "stack"
    deep = replace(
        cfg,
        layers=winner.deepened(cfg.layers, config.depth, stack=stack),
        hidden_size=config.dim or cfg.hidden_size,
        vocab_size=config.vocab or cfg.vocab_size,
    )
    winner.write(path, deep)
    payload = {
        "from": source,
        "layers": canonical(deep.layers),
        "depth": len(deep.layers),
        "how": config.how,
        "unit": winner.unit_of(cfg.layers),
        "cut": stack and len(deep.layers) % len(cfg.layers) > 0,  # the last copy
        "dim": deep.hidden_size,
        "params": param_count(deep),
        "file": config.output,
    }
    return CommandResult(
        payload, [payload, f"next: mlxhog train --model {shlex.quote(config.output)}"]
    )
