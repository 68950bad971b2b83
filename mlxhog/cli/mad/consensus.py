"""Build the consensus architecture of the best candidates, slot by slot.

Each slot gets the layer that most of them have there. They are the K best with --top; else the
scores are split in two with the least variance within both groups, and the upper group votes. The
result is written as a model file for `mlxhog train --model`.

Examples:
    mad consensus first --top 5 --output winner.yaml
    train --model winner.yaml --time 10m
"""

import shlex
from dataclasses import dataclass

from mlxhog.cli.frame import CommandResult, command, command_line, option, writable
from mlxhog.cli.mad.leaderboard import OneStudy


@dataclass(frozen=True, kw_only=True)
class _Consensus(OneStudy):
    top: int | None = option(None, "number of candidates that vote, the best", low=1, none="auto")
    output: str | None = option(None, "model file to write or replace")


@command(writes=True)
def run(config: _Consensus) -> CommandResult:
    from mlxhog.mad import winner
    from mlxhog.mad.study.store import find

    path = None
    if config.output is not None:
        winner.check_file(config.output)
        path = writable("--output", config.output)
    payload = winner.elected(find(config.study), config.top, path) | {"file": config.output}
    voters, score, best = len(payload["voters"]), payload["score"], payload["best"]
    depth = len(payload["slots"])
    head = f"{voters} of {payload['candidates']} candidates vote, those with {depth} layers of the "
    head += "upper part" if config.top is None else f"best {config.top}"
    behind = []
    if score is None or score < best["score"]:
        is_what = "was not measured" if score is None else f"is behind the best, with {score:.3f}"
        name, of_best = shlex.quote(config.study), len(best["layers"].split())
        behind = [
            f"this architecture {is_what}; the best candidate has {best['score']:.3f}: "
            f"{best['layers']} (mlxhog mad deepen {name} --depth {of_best} --output best.yaml)"
        ]
    if config.output is None:
        after = [f"next: mlxhog mad consensus {command_line(config)} --output winner.yaml"]
    else:
        out = shlex.quote(config.output)
        after = [
            f"next: mlxhog train --model {out}",
            f"      mlxhog mad deepen {out} --depth {2 * depth} --output deeper.yaml",
        ]
    return CommandResult(payload, [head, payload, *behind, *after])
