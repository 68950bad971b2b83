"""`mlxhog mad vote`: the architecture that the best candidates of a study agree on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.cli.flags import Flags
from mlxhog.config.options import option
from mlxhog.config.sources import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlxhog.mad.scores import Row
    from mlxhog.mad.winner.vote import Vote
    from mlxhog.report.table import Section

ABOUT = """\
Let the best candidates of a study vote on every slot, and write what they agree on as a model file
that `mlxhog train --model` takes. The scores are split in two where the variance within both parts
is least, and the upper part votes; --top takes the K best instead."""
EXAMPLES = (
    "mad vote first",
    "mad vote first --top 5 --out winner.yaml",
    "train --model winner.yaml --time 10m",
)


@dataclass(frozen=True, kw_only=True)
class VoteConfig:
    """Options of `mlxhog mad vote`."""

    top: int | None = option(None, "so many of the best vote", low=1, none="auto")
    out: str | None = option(None, "model file to write; one that is there is replaced")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad vote", ABOUT, EXAMPLES, ("STUDY",))
    flags.argument("study", metavar="STUDY", help="a name under studies/, or a path")
    flags.argument("--json", action="store_true", help="one JSON object")
    flags.options(VoteConfig)
    parsed = flags.parse(arguments)
    config = resolve(VoteConfig, [parsed.given], parsed.problems)
    from mlxhog.mad import winner
    from mlxhog.mad.study.store import find
    from mlxhog.mad.winner.vote import vote
    from mlxhog.models.mad.sequence import parse

    path = None if config.out is None else winner.place(config.out)
    store = find(parsed.other.study)
    rows = winner.finished(store)
    found = vote([(row.layers, row.worth) for row in rows], config.top)
    cfg = winner.model(store, parse(found.layers))
    if path is not None:
        winner.write(path, cfg)
    measured = next((row for row in rows if row.layers == found.layers), None)
    if parsed.other.json:
        from mlxhog.files import plain_json

        print(plain_json.dumps(_facts(found, rows, measured, config.out)).decode())
        return 0
    from mlxhog.report.table import show

    show([_section(found, rows, measured, config)], sys.stdout, plain=not sys.stdout.isatty())
    return 0


def _facts(
    found: Vote, rows: Sequence[Row], measured: Row | None, out: str | None
) -> dict[str, object]:
    return {
        "layers": " ".join(found.layers),
        "slots": [
            {"slot": number, "layer": slot.winner, "votes": dict(slot.votes)}
            for number, slot in enumerate(found.slots, start=1)
        ],
        "voters": [{"layers": " ".join(layers), "score": score} for layers, score in found.voters],
        "cluster": len(found.cluster),
        "candidates": len(rows),
        "score": None if measured is None else measured.score,
        "file": out,
    }


def _section(found: Vote, rows: Sequence[Row], measured: Row | None, config: VoteConfig) -> Section:
    from mlxhog.report.table import Section

    layers = " ".join(found.layers)
    cells = [
        (str(number), slot.winner, ", ".join(f"{name} {n}" for name, n in slot.votes.items()))
        for number, slot in enumerate(found.slots, start=1)
    ]
    return Section(
        _who(found, rows, config.top),
        ("slot", "winner", "votes"),
        cells,
        ["", layers, _measured(measured, rows), *_next(layers, config.out)],
    )


def _who(found: Vote, rows: Sequence[Row], top: int | None) -> str:
    scores = [score for _, score in found.cluster]
    said = (
        f"{len(scores)} of {len(rows)} candidates vote, scores {scores[0]:.3f} to {scores[-1]:.3f}"
    )
    said += ": the upper part" if top is None else f": the best {len(scores)}"
    if others := len(found.cluster) - len(found.voters):
        said += f"; {others} of them have another depth than {len(found.slots)} and do not"
    return said


def _measured(measured: Row | None, rows: Sequence[Row]) -> str:
    if measured is None:
        return "no candidate of the study has these layers: their score is not known"
    rank = rows.index(measured) + 1
    return f"place {rank} of {len(rows)} in the study, score {measured.score:.3f}"


def _next(layers: str, out: str | None) -> list[str]:
    if out is None:
        return ["next: the same with --out winner.yaml"]
    return [
        f"next: mlxhog train --model {out}",
        f"      mlxhog mad scale {out} --depth {2 * len(layers.split())} --out deeper.yaml",
    ]
