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
from dataclasses import dataclass

from mlxhog.cli.frame import CommandResult, Json, Plugins, argument, command, option, writable
from mlxhog.config.options import option_of
from mlxhog.mad.options import DeepenOptions


@dataclass(frozen=True, kw_only=True)
class _Deepen(Plugins, Json):
    what: tuple[str, ...] = argument("WHAT...", "a study or an architecture")
    depth: int = option_of(DeepenOptions, "depth")
    how: str = option_of(DeepenOptions, "how")
    output: str = option("", "model file to write or replace", required=True)
    dim: int | None = option_of(DeepenOptions, "dim")
    vocab: int | None = option_of(DeepenOptions, "vocab")


@command(writes=True)
def run(config: _Deepen) -> CommandResult:
    from mlxhog.mad import deepen

    deep = deepen(
        " ".join(config.what), depth=config.depth, how=config.how, dim=config.dim,
        vocab=config.vocab, output=writable("--output", config.output),
    )  # fmt: skip
    return CommandResult(
        payload := deep.to_json() | {"file": config.output},
        [payload, f"next: mlxhog train --model {shlex.quote(config.output)}"],
    )
