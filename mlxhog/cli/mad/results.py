"""`mlxhog mad leaderboard`, `plot`, `consensus` and `deepen`: a study's results, and its models."""

import shlex
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from mlxhog.base.durable import explained, replace_file
from mlxhog.base.inside import subfolder
from mlxhog.base.paths import expanded
from mlxhog.cli.flags import Json, Plugins, Tabular
from mlxhog.cli.frame import Report, command, tabular, writable, written
from mlxhog.config.options import argument, option
from mlxhog.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _StudyArgument(Plugins, Json):
    study: str = argument("STUDY", "a name under studies/, or a path")


@command("mad leaderboard")
def leaderboard(config: _StudyArgument, how: Tabular) -> Report:
    """Print the leaderboard of a study, from its directory only, during the study and after it.

    Scores are in [0, 1]: the mean over the tasks, +- the 95 % interval over seeds. Incomplete
    candidates are last; the last line counts them.

    Examples:
        mad leaderboard first
    """
    from mlxhog.mad.report.leaderboard import read_ranking, section, to_json
    from mlxhog.mad.study.store import find

    ranking = read_ranking(find(config.study))
    part = section(ranking, exact=how.format == "csv")
    return tabular(to_json(ranking), part, how.format)


@dataclass(frozen=True, kw_only=True)
class _Plot(_StudyArgument):
    output: str | None = option(None, "folder for the files; none: plots/ in the study's")


@command("mad plot", writes=True)
def plot(config: _Plot) -> Report:
    """Write the plots of a study as PNG files, and one HTML page with them and the leaderboard.

    The page needs no network, has a light and a dark theme, and can be printed. The plots are
    learning curves per task; score with its interval against parameters, state and time, with the
    Pareto front. The study may be running.

    Examples:
        mad plot first --output figures
    """
    from mlxhog.mad.report.leaderboard import read_ranking
    from mlxhog.mad.report.page import page, plots
    from mlxhog.mad.study.store import find

    store = find(config.study)
    ranking = read_ranking(store)
    folder = expanded(config.output) if config.output else store.directory / "plots"
    try:
        if config.output:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            subfolder(store.directory, "plots")
    except OSError as error:
        raise ConfigError(f"--output {folder}: {explained(error)}") from error
    drawn, target = list(plots(ranking)), folder / "index.html"
    paths = {plot.name: str(folder / f"{plot.name}.png") for plot in drawn}
    for plot in drawn:
        replace_file(Path(paths[plot.name]), plot.file(ranking.study))
    replace_file(target, page(ranking, drawn, version=version("mlxhog")).encode())
    facts = {"page": str(target), "plots": paths, "partial": ranking.lacking}
    return Report(facts, [*paths.values(), str(target), *filter(None, [ranking.lacking])])


def _target(out: str) -> Path:
    if Path(out).suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output is {out}; name a YAML file, such as winner.yaml")
    return writable("--output", out)


@dataclass(frozen=True, kw_only=True)
class _Consensus(_StudyArgument):
    top: int | None = option(None, "number of voters, the best", low=1, none="auto")
    output: str | None = option(None, "model file to write or replace")


@command("mad consensus")
def consensus(config: _Consensus) -> Report:
    """Let the best candidates of a study vote on every slot.

    The result is written as a model file for `mlxhog train --model`. The scores are split in two
    with the least variance within both parts, and the upper part votes; with --top the K best vote.

    Examples:
        mad consensus first --top 5 --output winner.yaml
        train --model winner.yaml --time 10m
    """
    from mlxhog.mad import winner
    from mlxhog.mad.study.store import find
    from mlxhog.models.mad.sequence import parse

    path = None if config.output is None else _target(config.output)
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
    facts = {
        "layers": layers,
        "slots": [
            {"slot": n, "layer": one, "votes": votes}
            for n, (one, votes) in enumerate(zip(winners, slots, strict=True), start=1)
        ],
        "voters": [
            {"layers": " ".join(own), "score": selection_score} for own, selection_score in voters
        ],
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
        after = [f"next: mlxhog mad consensus {written(config)} --output winner.yaml"]
    else:
        out, depth = shlex.quote(config.output), 2 * len(slots)
        after = [
            f"next: mlxhog train --model {out}",
            f"      mlxhog mad deepen {out} --depth {depth} --output deeper.yaml",
        ]
    return Report(facts, [head, facts, *behind, *after])


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


@command("mad deepen", writes=True)
def deepen(config: _Deepen) -> Report:
    """Make an architecture deeper, and write it as a model file for `mlxhog train --model`.

    WHAT is a study (its best candidate), or an argument of `mlxhog mad show`: a YAML file, a name,
    a line of layers. `stack` repeats the whole sequence, `stretch` every part in its place. Results
    of a search with few layers are better stacked, those with 16 or more stretched (Composer,
    arXiv:2510.00379). Blocks of a mixer and a channel map stay together.

    Examples:
        mad deepen first --depth 16 --output deep.yaml
        mad deepen winner.yaml --depth 24 --how stretch --dim 256 --output deep.yaml
        mad deepen "mlstm swiglu slstm swiglu" --depth 16 --output deep.yaml
        train --model deep.yaml --time 10m
    """
    from mlxhog.mad import winner
    from mlxhog.models.families import param_count
    from mlxhog.models.mad.sequence import canonical

    path = _target(config.output)
    source, cfg = winner.read_source(" ".join(config.what))
    stack = config.how == "stack"
    deep = replace(
        cfg,
        layers=winner.deepened(cfg.layers, config.depth, stack=stack),
        hidden_size=config.dim or cfg.hidden_size,
        vocab_size=config.vocab or cfg.vocab_size,
    )
    winner.write(path, deep)
    facts = {
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
    return Report(facts, [facts, f"next: mlxhog train --model {shlex.quote(config.output)}"])
