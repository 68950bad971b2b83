"""`mlxhog mad vote` and `mlxhog mad scale`: from a study to a model file."""

from __future__ import annotations

import itertools
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlxhog.cli.flags import Flags
from mlxhog.cli.output import print_json, print_sections
from mlxhog.config.options import option
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlxhog.mad.scores import CandidateScore
    from mlxhog.mad.winner import Vote
    from mlxhog.report.table import Section

VOTE_ABOUT = """\
Let the best candidates of a study vote on every slot, and write the result as a model file for
`mlxhog train --model`. The scores are split in two with the least variance within both parts, and
the upper part votes; with --top the K best vote."""
VOTE_EXAMPLES = (
    "mad vote first",
    "mad vote first --top 5 --out winner.yaml",
    "train --model winner.yaml --time 10m",
)


@dataclass(frozen=True, kw_only=True)
class VoteConfig:
    """Options of `mlxhog mad vote`."""

    top: int | None = option(None, "number of voters, the best", low=1, none="auto")
    out: str | None = option(None, "model file to write or replace")


def run_vote(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad vote", VOTE_ABOUT, VOTE_EXAMPLES, ("STUDY",))
    flags.argument("study", metavar="STUDY", help="a name under studies/, or a path")
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object")
    parsed, config = flags.read(VoteConfig, arguments)
    from mlxhog.mad import winner
    from mlxhog.mad.study.store import find
    from mlxhog.mad.winner import vote
    from mlxhog.models.mad.sequence import parse

    path = None if config.out is None else winner.output_path(config.out)
    store = find(parsed.other.study)
    rows = winner.finished(store)
    result = vote([(row.layers, row.worth) for row in rows], config.top)
    cfg = winner.model(store, parse(result.layers))
    if path is not None:
        winner.write(path, cfg)
    measured = next((row for row in rows if row.layers == result.layers), None)
    if parsed.other.json:
        print_json(_facts(result, rows, measured, config.out))
        return 0
    print_sections([_section(result, rows, measured, config, parsed.other.study)])
    return 0


def _slots(result: Vote) -> Iterator[tuple[int, str, Mapping[str, int]]]:
    return zip(itertools.count(1), result.layers, result.slots, strict=False)


def _facts(
    result: Vote, rows: Sequence[CandidateScore], measured: CandidateScore | None, out: str | None
) -> dict[str, object]:
    return {
        "layers": " ".join(result.layers),
        "slots": [
            {"slot": number, "layer": layer, "votes": votes}
            for number, layer, votes in _slots(result)
        ],
        "voters": [{"layers": " ".join(layers), "score": score} for layers, score in result.voters],
        "cluster": len(result.cluster),
        "candidates": len(rows),
        "score": None if measured is None else measured.score,
        "file": out,
    }


def _section(
    result: Vote,
    rows: Sequence[CandidateScore],
    measured: CandidateScore | None,
    config: VoteConfig,
    study: str,
) -> Section:
    from mlxhog.report.table import Section

    layers = " ".join(result.layers)
    cells = [
        (str(number), layer, ", ".join(f"{name} {n}" for name, n in votes.items()))
        for number, layer, votes in _slots(result)
    ]
    return Section(
        _who(result, rows, config.top),
        ("slot", "winner", "votes"),
        cells,
        ["", layers, _measured(measured, rows), *_next(result, config, study)],
    )


def _who(result: Vote, rows: Sequence[CandidateScore], top: int | None) -> str:
    scores = [score for _, score in result.cluster]
    text = (
        f"{len(scores)} of {len(rows)} candidates vote, scores {scores[0]:.3f} to {scores[-1]:.3f}"
    )
    text += ": the upper part" if top is None else f": the best {len(scores)}"
    if others := len(result.cluster) - len(result.voters):
        text += f"; {others} of them have another depth than {len(result.slots)} and do not"
    return text


def _measured(measured: CandidateScore | None, rows: Sequence[CandidateScore]) -> str:
    if measured is None:
        return "no candidate of the study has these layers: their score is unknown"
    rank = rows.index(measured) + 1
    return f"place {rank} of {len(rows)} in the study, score {measured.score:.3f}"


def _next(result: Vote, config: VoteConfig, study: str) -> list[str]:
    if config.out is None:
        top = "" if config.top is None else f" --top {config.top}"
        return [f"next: mlxhog mad vote {shlex.quote(study)}{top} --out winner.yaml"]
    out = shlex.quote(config.out)
    return [
        f"next: mlxhog train --model {out}",
        f"      mlxhog mad scale {out} --depth {2 * len(result.layers)} --out deeper.yaml",
    ]


SCALE_ABOUT = """\
Make an architecture deeper, and write it as a model file for `mlxhog train --model`. WHAT is a
study (its best candidate), or an argument of `mlxhog mad show`: a YAML file, a name, a line of
layers. `stack` repeats the whole sequence, `stretch` every part in its place. Results of a search
with few layers are better stacked, those with 16 or more stretched (Composer, arXiv:2510.00379).
Blocks of a mixer and a channel map stay together."""
SCALE_EXAMPLES = (
    "mad scale first --depth 16 --out deep.yaml",
    "mad scale winner.yaml --depth 24 --how stretch --dim 256 --out deep.yaml",
    'mad scale "mlstm swiglu slstm swiglu" --depth 16 --out deep.yaml',
    "train --model deep.yaml --time 10m",
)


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Options of `mlxhog mad scale`."""

    depth: int | None = option(None, "layers of the new model", low=1)
    how: str = option(
        "stack", "repeat the whole sequence, or every part in place", choices=("stack", "stretch")
    )
    out: str | None = option(None, "model file to write or replace")
    unit: str = option(
        "auto",
        "unit of repetition; auto: blocks if the layers are blocks",
        choices=("auto", "layer", "block"),
    )
    dim: int | None = option(None, "width of the new model", low=1, none="its own")
    vocab: int | None = option(None, "tokens of its vocabulary", low=1, none="its own")


def run_scale(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad scale", SCALE_ABOUT, SCALE_EXAMPLES, ("WHAT",))
    flags.argument("what", nargs="+", metavar="WHAT", help="a study or an architecture")
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object")
    parsed, config = flags.read(ScaleConfig, arguments)
    if config.depth is None or config.out is None:
        lacks = "--depth" if config.depth is None else "--out"
        raise ConfigError(f"mad scale lacks {lacks}, as in `mlxhog {SCALE_EXAMPLES[0]}`")
    from mlxhog.mad import winner
    from mlxhog.mad.winner import scaled, unit_of
    from mlxhog.models.families import param_count
    from mlxhog.models.mad.sequence import canonical

    path = winner.output_path(config.out)
    source, cfg = winner.read_source(" ".join(parsed.other.what))
    unit = {"auto": unit_of(cfg.layers), "layer": 1, "block": max(2, unit_of(cfg.layers))}[
        config.unit
    ]
    deep = replace(
        cfg,
        layers=scaled(
            cfg.layers, config.depth, "stretch" if config.how == "stretch" else "stack", unit
        ),
        hidden_size=config.dim or cfg.hidden_size,
        vocab_size=config.vocab or cfg.vocab_size,
    )
    winner.write(path, deep)
    facts = {
        "from": source,
        "layers": canonical(deep.layers),
        "depth": len(deep.layers),
        "how": config.how,
        "unit": unit,
        "cut": config.how == "stack" and len(deep.layers) % len(cfg.layers) > 0,
        "dim": deep.hidden_size,
        "params": param_count(deep),
        "file": config.out,
    }
    if parsed.other.json:
        print_json(facts)
        return 0
    print(f"{source}\n{config.how} to {len(deep.layers)} layers: {facts['layers']}")
    if facts["cut"]:
        rest = len(deep.layers) % len(cfg.layers)
        print(f"the last copy ends after {rest} of its {len(cfg.layers)} layers")
    print(f"{facts['params']:,} parameters at width {deep.hidden_size}")
    print(f"next: mlxhog train --model {shlex.quote(config.out)}")
    return 0
