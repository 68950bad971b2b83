"""`mlxhog mad vote` and `mlxhog mad scale`: from a study to a model file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from mlxhog.cli.flags import Json, Plugins
from mlxhog.cli.frame import Report, command, writable
from mlxhog.config.options import argument, option
from mlxhog.errors import ConfigError


def _target(out: str) -> Path:
    """Return the path of a model file to write."""
    if Path(out).suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out is {out}; name a YAML file, such as winner.yaml")
    return writable("--out", out)


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
class VoteConfig(Plugins, Json):
    """Options of `mlxhog mad vote`."""

    study: str = argument("STUDY", "a name under studies/, or a path")
    top: int | None = option(None, "number of voters, the best", low=1, none="auto")
    out: str | None = option(None, "model file to write or replace")


@command("mad vote", VOTE_ABOUT, VOTE_EXAMPLES, VoteConfig)
def vote(config: VoteConfig) -> Report:
    """Let the best candidates vote."""
    from mlxhog.mad import winner
    from mlxhog.mad.study.store import find
    from mlxhog.models.mad.sequence import parse

    path = None if config.out is None else _target(config.out)
    store = find(config.study)
    rows = winner.finished(store)
    slots, voters = winner.vote([(row.layers, row.worth) for row in rows], config.top)
    winners = tuple(next(iter(votes)) for votes in slots)
    layers = " ".join(winners)
    if path is not None:
        winner.write(path, winner.model(store, parse(layers)))
    places = {row.layers: (place, row.score) for place, row in enumerate(rows, start=1)}
    place, score = places.get(winners, (None, None))
    facts = {
        "layers": layers,
        "slots": [
            {"slot": n, "layer": one, "votes": votes}
            for n, (one, votes) in enumerate(zip(winners, slots, strict=True), start=1)
        ],
        "voters": [{"layers": " ".join(own), "score": worth} for own, worth in voters],
        "candidates": len(rows),
        "score": score,
        "file": config.out,
    }
    part = f"the best {config.top}" if config.top else "the upper part"
    head = (
        f"{len(voters)} of {len(rows)} candidates vote, scores {voters[0][1]:.3f} to "
        f"{voters[-1][1]:.3f}: {part}, those of {len(slots)} layers"
    )
    measured = "no candidate of the study has these layers: their score is unknown"
    if place is not None:
        measured = f"place {place} of {len(rows)} in the study, score {score:.3f}"
    top = "" if config.top is None else f" --top {config.top}"
    after = [f"next: mlxhog mad vote {shlex.quote(config.study)}{top} --out winner.yaml"]
    if config.out is not None:
        out, depth = shlex.quote(config.out), 2 * len(slots)
        after = [
            f"next: mlxhog train --model {out}",
            f"      mlxhog mad scale {out} --depth {depth} --out deeper.yaml",
        ]
    words = {"slots": facts["slots"], "layers": layers, "score": measured}
    return Report(facts, head, words=words, notes=after)


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
class ScaleConfig(Plugins, Json):
    """Options of `mlxhog mad scale`."""

    what: tuple[str, ...] = argument("WHAT...", "a study or an architecture")
    depth: int = option(0, "layers of the new model", low=1, required=True)
    how: str = option(
        "stack", "repeat the whole sequence, or every part in place", choices=("stack", "stretch")
    )
    out: str = option("", "model file to write or replace", required=True)
    unit: str = option(
        "auto",
        "unit of repetition; auto: blocks if the layers are blocks",
        choices=("auto", "layer", "block"),
    )
    dim: int | None = option(None, "width of the new model", low=1, none="its own")
    vocab: int | None = option(None, "tokens of its vocabulary", low=1, none="its own")


@command("mad scale", SCALE_ABOUT, SCALE_EXAMPLES, ScaleConfig)
def scale(config: ScaleConfig) -> Report:
    """Make an architecture deeper."""
    from mlxhog.mad import winner
    from mlxhog.models.families import param_count
    from mlxhog.models.mad.sequence import canonical

    path = _target(config.out)
    source, cfg = winner.read_source(" ".join(config.what))
    own, stack = winner.unit_of(cfg.layers), config.how == "stack"
    unit = {"auto": own, "layer": 1, "block": max(2, own)}[config.unit]
    deep = replace(
        cfg,
        layers=winner.scaled(cfg.layers, config.depth, unit, stack=stack),
        hidden_size=config.dim or cfg.hidden_size,
        vocab_size=config.vocab or cfg.vocab_size,
    )
    winner.write(path, deep)
    rest = len(deep.layers) % len(cfg.layers) if stack else 0
    facts = {
        "from": source,
        "layers": canonical(deep.layers),
        "depth": len(deep.layers),
        "how": config.how,
        "unit": unit,
        "cut": rest > 0,
        "dim": deep.hidden_size,
        "params": param_count(deep),
        "file": config.out,
    }
    notes = [f"the last copy ends after {rest} of its {len(cfg.layers)} layers"] * bool(rest)
    notes.append(f"next: mlxhog train --model {shlex.quote(config.out)}")
    return Report(facts, notes=notes)
