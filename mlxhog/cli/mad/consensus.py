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

from mlxhog.cli.frame import CommandResult, command, command_line, option
from mlxhog.cli.mad.deepen import model_file
from mlxhog.cli.mad.leaderboard import OneStudy


@dataclass(frozen=True, kw_only=True)
class _Consensus(OneStudy):
    top: int | None = option(None, "number of candidates that vote, the best", low=1, none="auto")
    output: str | None = option(None, "model file to write or replace")


@command()
def run(config: _Consensus) -> CommandResult:
    from mlxhog.mad import winner
    from mlxhog.mad.study.store import find
    from mlxhog.models.mad.sequence import parse

    path = None if config.output is None else model_file(config.output)
    store = find(config.study)
    rows = winner.finished(store)
    slots, voters = winner.consensus(
        [(row.layers, row.selection_score) for row in rows], config.top
    )
    winners = tuple(next(iter(votes)) for votes in slots)
    layers = " ".join(winners)
    if path is not None:
        winner.write(path, winner.model(store, parse(layers)))
    best, own = rows[0], next((row for row in rows if row.layers == winners), None)
    payload = {
        "layers": layers,
        "slots": [
            {"slot": n, "layer": one, "votes": votes}
            for n, (one, votes) in enumerate(zip(winners, slots, strict=True), start=1)
        ],
        "voters": [{"layers": " ".join(own), "score": score} for own, score in voters],
        "candidates": len(rows),
        "score": own and own.score,  # None if no candidate of the study has these layers
        "best": {"layers": best.candidate, "score": best.score},
        "file": config.output,
    }
    head = f"{len(voters)} of {len(rows)} candidates vote, those with {len(slots)} layers of the "
    head += "upper part" if config.top is None else f"best {config.top}"
    behind = []
    if own is None or own.selection_score < best.selection_score:
        is_what = "was not measured" if own is None else f"is behind the best, with {own.score:.3f}"
        name, depth = shlex.quote(config.study), len(best.layers)
        behind = [
            f"this architecture {is_what}; the best candidate has {best.score:.3f}: "
            f"{best.candidate} (mlxhog mad deepen {name} --depth {depth} --output best.yaml)"
        ]
    if config.output is None:
        after = [f"next: mlxhog mad consensus {command_line(config)} --output winner.yaml"]
    else:
        out, depth = shlex.quote(config.output), 2 * len(slots)
        after = [
            f"next: mlxhog train --model {out}",
            f"      mlxhog mad deepen {out} --depth {depth} --output deeper.yaml",
        ]
    return CommandResult(payload, [head, payload, *behind, *after])
