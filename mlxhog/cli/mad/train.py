"""`mlxhog mad train`: one candidate on one task; `mad data`: the rows of a task."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlxhog.base.plain_yaml import assignments
from mlxhog.base.quantities import format_duration
from mlxhog.cli.flags import Json, OptionGroup, Plugins, Quiet
from mlxhog.cli.frame import EXIT_CODES, Report, Tick, command, ticking, writable
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option, switch
from mlxhog.config.sources import ConfigSource, resolve
from mlxhog.errors import ConfigError
from mlxhog.mad.options import RECIPE, Recipe, worker_options

if TYPE_CHECKING:
    from mlxhog.mad.run import Callbacks, EvalPoint, RunConfig
    from mlxhog.mad.training.run_plan import CandidatePlan

OTHERWISE = "; a setting of the task is given as in --task-set vocab=32"
SIZES = ("vocab", "seq_len", "length", "test_length", "train_rows", "test_rows", "val_rows")


@dataclass(frozen=True, kw_only=True)
class Settings(Plugins):
    """The option --task-set of a task."""

    task_set: str | None = option(
        None, "settings of the task, such as vocab=32; may be given several times",
        repeats=True, reads=assignments,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Data(Settings, Json):
    task: str = option("", "full or short name of the task, as in mlxhog mad tasks", required=True)
    output: str = option("", "file to write or replace", required=True)
    seed: int = option(12345, "random seed", low=0)


@command("mad data", otherwise=OTHERWISE, writes=True)
def data(config: _Data) -> Report:
    """Draw the training and test rows of a MAD task, and write them to an .npz file.

    It has train_inputs, train_targets, test_inputs, test_targets, and meta (JSON). Targets are
    aligned with inputs; -100 is ignored. One seed draws the same rows on every machine, and writes
    the same file. It reports the accuracy of the majority token (majority_accuracy), and the
    best that the training rows permit (best_achievable). `mlxhog mad tasks` lists the tasks and
    their settings.

    Examples:
        mad data --task in-context-recall --task-set vocab=16 --task-set seq_len=32 --output cr.npz
        mad data --task NR --task-set frac_noise=0.4 --output noisy.npz --json
    """
    # These import NumPy: wrong flags are reported before.
    from mlxhog.mad import tasks
    from mlxhog.mad.tasks import dataset

    settings = tasks.resolve(config.task, assignments(config.task_set), origin="--task-set")
    path = writable("--output", config.output)
    facts: dict[str, Any] = {"file": str(path), "task": settings.name, "seed": config.seed}
    facts |= {name: getattr(settings, name) for name in SIZES}
    n_rows = settings.train_rows + settings.test_rows + settings.val_rows
    began = time.perf_counter()
    drawn = tasks.make_task(config.task, seed=config.seed, **asdict(settings))
    seconds = time.perf_counter() - began
    facts |= {
        "best_achievable": dataset.best_achievable(drawn),
        "majority_accuracy": dataset.majority_accuracy(drawn),
        "rows_per_s": n_rows / seconds,
        "seconds": seconds,
        "bytes": dataset.write(path, drawn),
    }
    return Report(facts)


OF_PLAN = ("key", "candidate", "config", "label", "host", "at")
"""Fields of a record that its plan has in other words."""


@dataclass(frozen=True, kw_only=True)
class _Candidate(Settings, Quiet):
    layers: str | None = option(
        None, 'the layers, as words or one text, such as "(mlstm swiglu)*2"', lines=True,
        metavar="LAYER",
    )  # fmt: skip
    dry_run: bool = switch("print the plan and exit")
    task: str = option("in-context-recall", "the task, by its full or short name")
    arch: str | None = option(
        None, "architecture: a YAML file or a name, instead of --layers", excludes=("layers",)
    )
    dim: int | None = option(None, "width; 128, or the architecture's own", low=1, none="its own")
    position: str | None = option(
        None, "positional encodings added to the embedding; none, or the architecture's own",
        choices=("none", "learned", "sincos"), none="its own",
    )  # fmt: skip
    backend: str | None = option(
        None, "mlx or torch, or one of them with its device, such as mlx:cpu", none="auto"
    )
    workers: str | None = option(
        None, "several workers: a number, or backends such as mlx:cpu,torch:cpu*2", none="one",
        excludes=("backend",),
    )  # fmt: skip
    threads: int | None = option(
        None, "threads of each worker; auto shares the cores", low=1, none="auto"
    )
    seed: int = option(12345, "of rows, initial values and order of batches", low=0, high=2**32 - 1)


@command(
    "mad train", OTHERWISE, recipe=OptionGroup(Recipe, " ".join(RECIPE)),
    written=OptionGroup(TrainConfig, worker_options, merged=True),
)  # fmt: skip
def train(candidate: _Candidate, recipe: Recipe, written: ConfigSource) -> Report:
    """Train one candidate on one task and score it on validation rows.

    By default it is the task's baseline, for at most 2,000 steps; it ends as soon as 0.999 of the
    test positions are right. `mlxhog mad tasks` lists the tasks and their settings, `mlxhog mad
    layers` the layers.

    Examples:
        mad train --task in-context-recall --layers "mlstm swiglu mlstm swiglu"
        mad train --task CR --task-set seq_len=32 --layers "(gla swiglu)*2" --dim 64 --lr 2e-3
        mad train --task M --arch arch.yaml --backend mlx --steps 500 --json
        mad train --task SC --layers "mlstm swiglu mlstm swiglu" --workers mlx:cpu,torch:cpu
        mad train --plugin examples/my_layer.py --layers "my_layer swiglu" --task CR

    Main options:
        task task_set layers arch dim backend workers batch_size optimizer lr steps epochs seed
        dry_run json
    """
    if candidate.layers is None and candidate.arch is None:
        raise ConfigError('give the candidate, as in --layers "mlstm swiglu", or with --arch FILE')
    resolve(TrainConfig, [written])
    of_workers = {name: value for name, (value, _) in written.items()}
    # These import NumPy: wrong flags are answered before.
    from mlxhog.mad.tasks.dataset import generalization_length
    from mlxhog.mad.training import candidate as training
    from mlxhog.mad.training.run_plan import make_run_plan

    plan = make_run_plan(_run_config(candidate, recipe), of_workers)
    facts = _facts(plan)
    if candidate.dry_run:
        return Report(facts | {"epoch": plan.per_epoch, "arena_bytes": plan.layout.total_bytes})
    line = candidate.status()
    with ticking(line) as tick:
        result = training.train(
            plan.asked,
            callbacks=_shown(tick, plan.limit),
            worker_options=of_workers,
            tell=line.tell,
        )
    held = (
        {"generalization_length": generalization_length(result.by_length)}
        if result.by_length
        else {}
    )
    numbers = {name: value for name, value in asdict(result).items() if name not in OF_PLAN}
    first = {name: facts[name] for name in ("task", "layers", "backend")}
    facts = {**first, **numbers, **held, **facts}
    hidden = ("curve", "settings", "recipe", "key")
    text: list[Any] = [{name: value for name, value in facts.items() if name not in hidden}]
    if result.status == "diverged":
        text.append("gradients were not finite; lower --lr, or clip them with --clip 1")
    return Report(facts, text, EXIT_CODES[result.status])


def _shown(tick: Tick, limit: int) -> "Callbacks":
    from mlxhog.mad.run import Callbacks

    text = f"step 0/{limit}"

    def show(point: "EvalPoint") -> None:
        nonlocal text
        rate = point.step / max(point.seconds, 1e-9)
        loss = "-" if point.loss is None else f"{point.loss:.3f}"
        text = (
            f"step {point.step}/{limit}  loss {loss}  accuracy {point.acc_token:.3f}  "
            f"at most {format_duration((limit - point.step) / rate)} to go"
        )

    return Callbacks(beat=lambda: tick(lambda: text), on_eval=show)


def _facts(plan: "CandidatePlan") -> dict[str, Any]:
    from mlxhog.mad.run import state
    from mlxhog.models.families import param_count
    from mlxhog.models.mad.sequence import canonical

    config = plan.asked
    return {
        "task": config.task,
        "layers": canonical(config.layers),
        "backend": config.workers,
        "threads": config.threads,
        "strategy": plan.strategy.name,
        "dim": config.dim,
        "params": param_count(plan.model),
        "state": state(config.layers, config.dim, plan.model.max_length),
        "seed": config.seed,
        "settings": dict(sorted(asdict(plan.task_rows.settings).items())),
        "recipe": config.recipe.to_dict(),
        "limit": plan.limit,
        "key": config.key(),
    }


def _run_config(candidate: _Candidate, recipe: Recipe) -> "RunConfig":
    from mlxhog.base import machine
    from mlxhog.base.workers import GPU_BACKENDS, backend_here, resolve_workers
    from mlxhog.config import plugins
    from mlxhog.mad import tasks
    from mlxhog.mad.run import RunConfig
    from mlxhog.models.mad.config import MADConfig
    from mlxhog.models.mad.sequence import parse
    from mlxhog.models.registry import load_candidate

    here, task = machine.here(), tasks.find(candidate.task)
    chosen = tasks.resolve(task.name, assignments(candidate.task_set), origin="--task-set")
    if candidate.arch is None:
        words = " ".join((candidate.layers or "").split("\n"))
        layers, dim, position = parse(words), 128, candidate.position or "none"
    else:
        file = load_candidate(candidate.arch)
        layers, dim, position = file.layers, file.hidden_size, candidate.position or file.position
        if file.norm_eps != MADConfig.norm_eps:
            raise ConfigError(
                f"{candidate.arch} has norm_eps {file.norm_eps:g}, candidates are compared with "
                f"{MADConfig.norm_eps:g}; leave it out of the file"
            )
    one = "1" if candidate.backend is None else backend_here(candidate.backend, here)
    workers = resolve_workers(candidate.workers or one, candidate.threads, machine=here).workers
    threads = [each.threads for each in workers if each.backend not in GPU_BACKENDS]
    return RunConfig(
        task=task.name,
        settings=asdict(chosen),
        layers=layers,
        dim=candidate.dim or dim,
        position=position,
        recipe=recipe,
        seed=candidate.seed,
        workers=",".join(each.backend for each in workers),
        threads=min(threads, default=1),
        plugins=plugins.loaded(),
    )
