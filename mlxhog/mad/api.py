"""The Python API `mlxhog.mad`, which the commands use: studies, leaderboards, deeper models."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mlxhog.base.paths import expanded
from mlxhog.config import plugins
from mlxhog.config.options import options
from mlxhog.config.sources import (
    ConfigSource,
    of_keywords,
    refuse_both,
    resolve,
    specs_of,
    suggestion,
    values_of,
)
from mlxhog.errors import ConfigError, shown
from mlxhog.experiments import CompareConfig
from mlxhog.mad.options import (
    RECIPE,
    BenchOptions,
    DeepenOptions,
    ExecutionConfig,
    Recipe,
    SearchOptions,
    StudyOptions,
    read_rates,
    read_seeds,
)

if TYPE_CHECKING:
    from mlxhog.display.views import Observer
    from mlxhog.mad.report.leaderboard import Ranking
    from mlxhog.mad.samplers.space import Space
    from mlxhog.mad.scores import CandidateScore
    from mlxhog.mad.study.definition import StudyDefinition
    from mlxhog.mad.study.scheduler import StudyProgress
    from mlxhog.mad.study.store import Store
    from mlxhog.models.mad.config import MADConfig

Files = str | Path | Sequence[str | Path] | None
Options = TypeVar("Options", bound=StudyOptions)


def search(
    space: str | Path | Space = "space-small",
    *,
    plugin: Files = None,
    observer: Observer[StudyProgress] | None = None,
    **values: object,
) -> Study:
    """Search a space of architectures, or continue the search of that name.

        study = mlxhog.mad.search("space-small", study="first", tasks="in-context-recall")
        print(study.best)

    Every result is kept in studies/NAME; the same call continues after a kill at any time.

    Args:
        space: a YAML file, a name of the package, or a `Space`.
        plugin: Python files with layers and tasks.
        observer: called with the progress.
        values: options by their names in `mlxhog options mad search`: of the study (`suite`,
            `seeds`, `sampler`, ...), of every run's training (`lr`, `steps`, ...), and of the
            session (`parallel`, `budget`, `studies_dir`, ...).

    Raises:
        ConfigError: wrong names and values, all at once where they are of one group.
        StudyError: the study has another definition, is damaged, or another process works on it.
        EnvironmentLacks, WorkerFailed: as of `mlxhog mad search`.
    """
    of_object = None if isinstance(space, str | Path) else space
    named = {"space": str(space)} if of_object is None else {}
    config, recipe, how = _read(SearchOptions, "search()", {**values, **named}, plugin)
    return new_search(config, recipe, how, of_object).run(how, observer)


def bench(
    *layers: str,
    plugin: Files = None,
    observer: Observer[StudyProgress] | None = None,
    **values: object,
) -> Study:
    """Score architectures, lines of layers or `config=` files and names, over a suite of tasks.

        study = mlxhog.mad.bench("mlstm swiglu mlstm swiglu", "(gla swiglu)*2", suite="smoke")

    Arguments and errors are those of `search`; `values` are named in `mlxhog options mad bench`.
    """
    if not all(isinstance(one, str) for one in layers):
        raise ConfigError("bench(): give each architecture as a text, as in bench(*lines)")
    config, recipe, how = _read(BenchOptions, "bench()", {**values, "layers": layers}, plugin)
    return new_bench(config, recipe, how).run(how, observer)


def leaderboard(study: str | Path, *, studies_dir: str | Path = "studies") -> Ranking:
    """Return the leaderboard of a study by its name or path, also while it runs; else StudyError.

    Its `rows` are the candidates, the best first; `to_json()` is that of `mlxhog mad leaderboard`.
    """
    return Study(study, studies_dir=studies_dir).leaderboard()


class Study:
    """A study in its directory, studies/NAME: the definition, its results, and its sessions.

        for candidate in mlxhog.mad.Study("first"):  # the best first
            print(candidate.score, candidate.candidate)

    Attributes:
        store: the directory, which may not exist before the first session.
        definition: all that decides the runs and their scores.
        outcome: the last state of this object's last session; None before it.
    """

    outcome: StudyProgress | None = None

    def __init__(
        self,
        study: str | Path | Store,
        definition: StudyDefinition | None = None,
        *,
        studies_dir: str | Path = "studies",
        plugin: Files = None,
    ) -> None:
        """Open a study by its name below `studies_dir`, or by its path; else a StudyError."""
        from mlxhog.mad.study.store import Store, find

        plugins.load_all(plugin)
        self.store = study if isinstance(study, Store) else find(str(study), expanded(studies_dir))
        self.definition = self.store.study() if definition is None else definition

    def __iter__(self) -> Iterator[CandidateScore]:
        """Return the candidates with a result, the best first."""
        return iter(self.leaderboard().rows)

    @property
    def best(self) -> CandidateScore | None:
        """The first candidate of the leaderboard; None before any result."""
        return next(iter(self), None)

    @property
    def status(self) -> str:
        """End of the last session: "done" (no run is left), "budget" or "interrupted"; else ""."""
        return "" if self.outcome is None else self.outcome.status

    def leaderboard(self) -> Ranking:
        """Return the present leaderboard."""
        from mlxhog.mad.report.leaderboard import read_ranking

        return read_ranking(self.store)

    def resume(self, *, observer: Observer[StudyProgress] | None = None, **values: object) -> Self:
        """Continue with the runs that failed or are missing; `values` are the session's.

        Errors are those of `search`.
        """
        self.refuse_changes()
        how = resolve(ExecutionConfig, [of_keywords("resume()", values)])
        return self.run(how, observer)

    def refuse_changes(self) -> None:
        """Raise a StudyError if another session would write elsewhere, or its runs not compare."""
        self.store.refuse_links()
        self.store.refuse_other_files(self.definition.remembering())

    def run(self, how: ExecutionConfig, observer: Observer[StudyProgress] | None = None) -> Self:
        """Execute a session, which creates the study's directory if it is new."""
        from mlxhog.mad.study.session import check_execution, execute
        from mlxhog.mad.study.store import open_store

        check_execution(how, self.definition)
        open_store(self.definition, self.store.directory.parent, self.store.name)
        self.outcome = execute(self.store, self.definition, how, observer)
        return self

    def plan(self, how: ExecutionConfig) -> dict[str, Any]:
        """Return the runs that a session would have, as `mlxhog mad search --dry-run` prints."""
        from mlxhog.mad.study.session import check_execution
        from mlxhog.mad.training.evaluation import max_steps

        study, parallel = self.definition, check_execution(how, self.definition)
        ended, steps = len(self.store.records()), None
        known = [n for n in (study.count, how.budget.steps) if n is not None]
        runs = min(known) * study.runs_each if known else None
        if study.is_text:
            runs = study.total
        elif runs is not None:
            of_candidate = sum(map(max_steps, study.runs(study.first)))
            steps = of_candidate * max(0, runs - ended) // study.runs_each
        return {
            "study": self.store.name,
            "suite": study.suite,
            "dim": study.measured.dim,
            "workers": study.workers,
            "candidates": study.count,
            **({"rungs": list(study.rungs), "pairs": study.pairs} if study.is_text else {}),
            "runs_each": study.runs_each,
            "seeds": list(study.seeds),
            "runs": runs,
            "ended": ended,
            "steps": steps,
            "parallel": parallel,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the last session as `mlxhog mad search --json` prints it."""
        outcome = self.outcome
        if outcome is None:
            raise ConfigError(f"study {self.store.name} had no session here; resume() begins one")
        best = None if self.has_failed else outcome.best
        return {
            "study": str(self.store.directory),
            "status": outcome.status,
            "runs": {
                name: outcome.statuses.get(name, 0)
                for name in ("done", "failed", "pruned", "diverged")
            },
            "seconds": outcome.elapsed_s,
            "best": best and {
                "candidate": best.candidate,
                "score": best.selection_score if best.objective is None else best.score,
                "interval": best.interval, "missing": len(best.missing),
                **({"measures": dict(best.measures)} if best.measures else {}),
            },
        }  # fmt: skip

    @property
    def has_failed(self) -> bool:
        """Whether every run of the last session failed."""
        of = self.outcome
        return of is not None and of.status != "interrupted" and set(of.statuses) == {"failed"}


@dataclass(frozen=True, kw_only=True)
class DeepModel:
    """A deeper model, written to a file for `train(model=...)`."""

    source: str  # description of the shallow one
    model: MADConfig
    how: str  # "stack" or "stretch"
    unit: int  # layers that stay together
    is_cut: bool  # whether the last copy of a stack is not whole
    file: str

    def to_json(self) -> dict[str, Any]:
        """Return what `mlxhog mad deepen --json` prints."""
        from mlxhog.models.families import param_count
        from mlxhog.models.mad.sequence import canonical

        return {
            "from": self.source,
            "layers": canonical(self.model.layers),
            "depth": len(self.model.layers),
            "how": self.how,
            "unit": self.unit,
            "cut": self.is_cut,
            "dim": self.model.hidden_size,
            "params": param_count(self.model),
            "file": self.file,
        }


def deepen(
    what: str | Path | Study,
    *,
    depth: int,
    output: str | Path,
    how: str = "stack",
    dim: int | None = None,
    vocab: int | None = None,
) -> DeepModel:
    """Make the best candidate of a study, or an architecture, deeper, and write a model file.

        mlxhog.train(model=mlxhog.mad.deepen("first", depth=8, output="deep.yaml").file)

    Args:
        what: a study, its name or path, a YAML file, or a line of layers.
        depth: layers of the new model.
        output: YAML file to write or replace.
        how: "stack" repeats the whole sequence, "stretch" every part in its place.
        dim: width; None for its own.
        vocab: tokens of the vocabulary; None for its own.

    Raises:
        ConfigError: no such study or architecture, or the depth is not possible.
        EnvironmentLacks: the file cannot be written.
    """
    from mlxhog.mad import winner

    winner.check_file(output)
    values = {"depth": depth, "how": how, "dim": dim, "vocab": vocab}
    sizes, file = resolve(DeepenOptions, [of_keywords("deepen()", values)]), expanded(output)
    named = what.store.directory if isinstance(what, Study) else what
    source, cfg = winner.read_source(str(named))
    deep = replace(
        cfg,
        layers=winner.deepened(cfg.layers, sizes.depth, stack=sizes.how == "stack"),
        hidden_size=sizes.dim or cfg.hidden_size,
        vocab_size=sizes.vocab or cfg.vocab_size,
    )
    winner.write(file, deep)
    return DeepModel(
        source=source, model=deep, how=sizes.how, unit=winner.unit_of(cfg.layers),
        is_cut=sizes.how == "stack" and sizes.depth % len(cfg.layers) > 0, file=str(file),
    )  # fmt: skip


# -- studies from options --------------------------------------------------------------------------


def recipe_of(typed: ConfigSource) -> dict[str, object]:
    """Return the written fields of the recipe as plain values; steps replace a suite's epochs.

    Without `optimizer` its hyperparameters change the suite's optimizer.
    """
    chosen, words = resolve(Recipe, [typed]), _recipe_words()
    named = {words.get(word, word) for word in typed}
    values = {**values_of(chosen), "optimizer": str(chosen.optimizer)}
    if "optimizer" in named:
        named -= set(RECIPE) - set(options(Recipe))
    fields = {name: values[name] for name in RECIPE if name in named}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if fields.get(one) is not None:
            fields.setdefault(other, None)
    return fields


def _recipe_words() -> dict[str, str]:
    """Return the names of options of the recipe, those of other tools too, by each word."""
    specs = specs_of(Recipe, {}).items()
    return {word: name for name, spec in specs for word in (name, *spec.aliases)}


def _read(
    cls: type[Options], call: str, values: Mapping[str, object], plugin: Files
) -> tuple[Options, dict[str, object], ExecutionConfig]:
    """Return the options of a study, its recipe, and its execution from keywords."""
    plugins.load_all(plugin)
    specs, how = options(cls), options(ExecutionConfig)
    lists = {name for name, spec in specs.items() if spec.many or spec.lines}
    texts = {
        name: ",".join(map(str, value)) + "," * (name == "seeds")
        if isinstance(value, list | tuple) and value and name not in lists
        else value
        for name, value in values.items()
    }
    words = _recipe_words()
    known = {*specs, *how, *words}
    if wrong := [name for name in texts if name not in known]:
        raise ConfigError(
            "\n".join(f"{call}: no option {shown(n)}{suggestion(n, known)}" for n in wrong)
        )
    own, session, recipe = (
        of_keywords(call, {name: v for name, v in texts.items() if is_of(name)})
        for is_of in (
            specs.__contains__, how.__contains__, lambda name: name not in {*specs, *how},
        )
    )  # fmt: skip
    refuse_both(call, cls, [words.get(name, name) for name in texts])
    return resolve(cls, [own]), recipe_of(recipe), resolve(ExecutionConfig, [session])


def new_search(
    config: SearchOptions,
    recipe: Mapping[str, object],
    how: ExecutionConfig,
    space: Space | None = None,
) -> Study:
    """Return the study of a search, whose directory may not exist; `space` replaces the option."""
    from mlxhog.base import plain_json
    from mlxhog.mad.samplers.space import Space, read_space, to_space

    if space is None:
        keys, name = read_space(config.space), Path(config.space).stem
    elif not isinstance(space, Space):
        raise ConfigError(f"search(): space is {shown(space)}; give a YAML file, a name or a Space")
    else:
        keys, name = json.loads(plain_json.dumps({k: v for k, v in asdict(space).items() if v})), ""
    space = to_space(keys)
    return _new_study(
        config, how, name, "search", space=keys, position=space.position, recipe=recipe,
        suite=config.suite or space.suite or "smoke", dim=config.dim or space.dim,
        sampler=config.sampler or ("" if config.candidates is None else "random"),
        sampler_seed=config.seed, prune=config.prune, n_candidates=config.candidates,
    )  # fmt: skip


def new_bench(config: BenchOptions, recipe: Mapping[str, object], how: ExecutionConfig) -> Study:
    """Return the study of some architectures, whose directory may not exist."""
    if not config.layers and not config.config:
        raise ConfigError('give an architecture, as in mlxhog mad bench --layers "mlstm swiglu"')
    # These import NumPy: wrong flags are reported before.
    from mlxhog.mad.training.run_plan import load_comparable
    from mlxhog.models.mad.sequence import canonical, parse

    files = {name: load_comparable(name) for name in config.config}
    widths = {config.dim or each.hidden_size for each in files.values()}
    positions = {config.position or each.position for each in files.values()}
    if len(widths) > 1 or len(positions) > 1:
        raise ConfigError(
            f"the architectures have widths {sorted(widths)} and positions "
            f"{sorted(positions)}; bench them one by one, or give --dim and --position"
        )
    layers = [*map(parse, config.layers), *(each.layers for each in files.values())]
    return _new_study(
        config, how, "", "bench", candidates=tuple(dict.fromkeys(map(canonical, layers))),
        recipe=recipe,
        suite=config.suite or "smoke", dim=widths.pop() if widths else config.dim,
        position=positions.pop() if positions else config.position or "none",
    )  # fmt: skip


def _new_study(
    config: StudyOptions, how: ExecutionConfig, otherwise: str, kind: str, **fields: Any
) -> Study:
    """Return a study by its fields; its name is the option, `otherwise`, or of kind and digest."""
    from mlxhog.base import machine
    from mlxhog.base.workers import backend_here, resolve_workers
    from mlxhog.mad import tasks
    from mlxhog.mad.study.definition import StudyDefinition
    from mlxhog.mad.study.store import store_of

    here = machine.here()
    asked = config.workers or backend_here(config.backend or "torch:cpu", here)
    resolved = resolve_workers(asked, config.threads, machine=here).workers
    chosen = {tasks.find(task).name for task in (config.tasks or "").split(",") if task}
    if unknown := chosen - {*tasks.known()}:
        raise ConfigError(f"--tasks has {unknown.pop()}; it is suite lm, as in --suite lm:60s")
    definition = StudyDefinition(
        **fields,
        tasks=tuple(task for task in tasks.known() if task in chosen),
        seeds=read_seeds(config.seeds),
        rates=() if config.rates is None else read_rates(config.rates),
        workers=",".join(worker.backend for worker in resolved),
        threads=config.threads,
        share_embedding=config.share_embedding,
        equal=config.equal or "",
        objective=config.objective or "",
        limit=config.limit,
        data=config.data or "",
        pairs=config.pairs or 0,
    ).remembering()
    if definition.is_text:
        from mlxhog.mad.training.text import machine_text, read_text

        text = read_text(definition.data or "sotu", 1, None).corpus_sha256
        pairs = CompareConfig.pairs if definition.by_bits else 0
        definition = replace(
            definition, text=text, machine=machine_text(),
            pairs=pairs if config.pairs is None else config.pairs,
        )  # fmt: skip
    if not definition.sampler:
        is_counted = definition.choices.count is not None
        definition = replace(definition, sampler="grid" if is_counted else "random")
    digest = hashlib.sha256(json.dumps(definition.to_dict(), sort_keys=True).encode()).hexdigest()
    suite = re.sub(r"\W", "-", definition.suite)
    name = config.study or otherwise or f"{kind}-{suite}-{digest[:8]}"
    return Study(store_of(definition, how.studies_dir, name), definition)
