"""From a study to a model for `mlxhog train`: the consensus architecture, or a deeper one.

*Consensus.* The scores are split in two with the least variance within both parts; the upper part
(or the K best) decides by majority. The model has their most frequent depth, and in each slot the
layer of most candidates of that depth; a tie goes to the higher mean score.

*Deeper*, from L layers in units u1 .. um (single layers, or blocks of a mixer and a channel mixer):

    stack     u1 u2 .. um u1 u2 .. um ..         whole copies; the last one may be cut
    stretch   u1 u1 .. u2 u2 .. um um ..         unit j of M is u[j m // M]: proportions are kept

Source: Composer (Acun et al. 2025, arXiv:2510.00379): a majority per slot was better than the best
candidate, results of a search at 6 layers were stacked, those at 16 and more stretched. The split
of the scores is ours.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.base.paths import expanded
from mlxhog.errors import ConfigError, StudyError
from mlxhog.mad.objectives import OUT
from mlxhog.mad.report.leaderboard import read_ranking
from mlxhog.mad.scores import LOST, UNFINISHED, CandidateScore
from mlxhog.mad.study.store import ROOT, Store, find
from mlxhog.models.layers import at_width
from mlxhog.models.layers.layer import Layer
from mlxhog.models.mad.config import VOCABULARY, MADConfig
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.models.registry import load_candidate, to_yaml


def finished(store: Store) -> list[CandidateScore]:
    """Return the complete candidates of a study, the best first; StudyError if all are lost."""
    rows = read_ranking(store).rows
    finished_rows = [row for row in rows if row.status not in UNFINISHED]
    if not finished_rows:
        raise StudyError(
            f"study {store.name} has no candidate with all its runs ({len(rows)} have some); "
            f"continue it: mlxhog mad resume {store.word}"
        )
    if finished_rows[0].status in LOST:
        raise StudyError(
            f"every complete candidate of study {store.name} diverged or failed; the reasons: "
            f"mlxhog mad leaderboard {store.word}"
        )
    return finished_rows


def model(store: Store, layers: tuple[Layer, ...], row: CandidateScore | None) -> MADConfig:
    """Return layers as a language model for bytes, of the width of a candidate or the study."""
    study = store.study()
    dim = int((row.measures if row else {}).get("dim", study.measured.dim))
    return MADConfig(vocab_size=VOCABULARY, hidden_size=dim, layers=layers, position=study.position)


def read_source(what: str) -> tuple[str, MADConfig]:
    """Return the best candidate of a study, or an architecture: its description and model.

    `what` is the name or path of a study, or an argument of `load_candidate`; else a ConfigError.
    """
    if Store(ROOT / what).exists or Store(expanded(what)).exists:
        store = find(what)
        best = finished(store)[0]
        words = f"best of study {store.name}, score {best.score:.3f}: {best.candidate}"
        return words, model(store, parse(best.candidate), best)
    try:
        cfg = load_candidate(what)
    except ConfigError as error:
        if " " in what or os.path.exists(what):
            raise
        raise ConfigError(f"{what!r} is neither a study nor an architecture: {error}") from error
    return f"architecture: {canonical(cfg.layers)}", cfg


def check_file(path: str | Path) -> None:
    """Raise a ConfigError if a file to write is not YAML."""
    if Path(path).suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output is {path}; name a YAML file, such as winner.yaml")


def write(path: Path, cfg: MADConfig) -> None:
    """Write a model file with every hyperparameter of every layer, or replace it."""
    whole = replace(cfg, layers=at_width(cfg.layers, cfg.hidden_size))
    with disk_errors(f"writing {path}"):
        replace_file(path, to_yaml(whole).encode())


def elected(store: Store, top: int | None = None, output: Path | None = None) -> dict[str, Any]:
    """Return the consensus architecture of a study as `mlxhog mad consensus --json` prints it.

    Without `top` the upper part of the candidates votes; `output` is a model file to write.
    """
    rows = finished(store)
    trained = [row for row in rows if row.status not in LOST]
    within = [row for row in trained if row.selection_score > OUT] or trained  # the study's limits
    # A final, and ranks by text and tasks, order candidates against their scores; so the first has
    # the best score here, the second the next one.
    falling = sorted((row.selection_score for row in within), reverse=True)
    slots, voters = consensus([*zip((row.layers for row in within), falling, strict=True)], top)
    shown = {row.layers: row.score for row in within}
    winners = tuple(next(iter(votes)) for votes in slots)
    layers = " ".join(winners)
    best, own = rows[0], next((row for row in rows if row.layers == winners), None)
    if output is not None:
        write(output, model(store, parse(layers), own))
    return {
        "layers": layers,
        "slots": [
            {"slot": n, "layer": one, "votes": votes}
            for n, (one, votes) in enumerate(zip(winners, slots, strict=True), start=1)
        ],
        "voters": [{"layers": " ".join(own), "score": shown[own]} for own, _ in voters],
        "candidates": len(rows),
        "score": own and own.score,  # None if no candidate of the study has these layers
        "best": {"layers": best.candidate, "score": best.score},
        "file": output and str(output),
    }


Scored = tuple[tuple[str, ...], float]
"""Layers of a candidate as texts, and its score."""


def consensus(
    scored: Sequence[Scored], top: int | None = None
) -> tuple[list[dict[str, int]], list[Scored]]:
    """Return the majority of the best candidates, in each slot: the `top`, or the upper part.

    `scored` has the best candidate first, and falling scores.

    Returns:
        Layer -> votes in each slot, the winner first; and the candidates that voted, the best
        first. Those of another depth than most do not vote.
    """
    best = scored[: upper_part([score for _, score in scored]) if top is None else top]
    depths = Counter(len(layers) for layers, _ in best)
    depth, _ = depths.most_common(1)[0]  # of equally frequent ones that of the better candidate
    voters = [one for one in best if len(one[0]) == depth]
    return [_slot(voters, number) for number in range(depth)], voters


def upper_part(falling: Sequence[float]) -> int:
    """Return the number of scores, of falling ones, in the upper of two parts.

    The parts are those of Jenks's natural breaks, with the least sum of squared distances to the
    mean of the part. With fewer than three scores, or equal ones, all are in the upper part.
    """
    values = np.asarray(falling)
    if len(values) < 3 or values[0] == values[-1]:
        return len(values)
    within = [
        float(values[:k].var() * k + values[k:].var() * (len(values) - k))
        for k in range(1, len(values))
    ]
    return int(np.argmin(within)) + 1


def _slot(voters: Sequence[Scored], number: int) -> dict[str, int]:
    scores: dict[str, list[float]] = {}
    for layers, score in voters:
        scores.setdefault(layers[number], []).append(score)
    order = sorted(scores, key=lambda layer: (-len(scores[layer]), -fmean(scores[layer])))
    return {layer: len(scores[layer]) for layer in order}


def unit_of(layers: tuple[Layer, ...]) -> int:
    """Return the layers of a block, a mixer and a channel mixer; 1 if the layers are not blocks.

    A block has 4 layers if the same layer is before each mixer and each channel mixer.
    """
    for step in (1, 2):
        kinds = [layer.kind for layer in layers[step - 1 :: step]]
        before = set(layers[::2]) if step == 2 else ()
        if kinds and len(before) < 2 and kinds == ["mixer", "channel"] * (len(kinds) // 2):
            return 2 * step
    return 1


def deepened(layers: tuple[Layer, ...], depth: int, *, stack: bool) -> tuple[Layer, ...]:
    """Return a sequence of `depth` layers in units of `unit_of` it, stacked or stretched.

    Raises:
        ConfigError: the depth is not possible; it names possible ones.
    """
    unit = unit_of(layers)
    if depth < len(layers):
        raise ConfigError(
            f"depth {depth} is less than the {len(layers)} layers of the model; give {len(layers)} "
            "or more"
        )
    if depth % unit:
        below = depth - depth % unit
        raise ConfigError(
            f"depth {depth} is not a whole number of blocks of {unit} layers; give {below} or "
            f"{below + unit}"
        )
    units = [layers[k : k + unit] for k in range(0, len(layers), unit)]
    m, M = len(units), depth // unit
    numbers = [j % m if stack else j * m // M for j in range(M)]
    return tuple(layer for number in numbers for layer in units[number])
