"""Train one candidate on one task, and score it on validation examples.

By default it is the task's baseline, for at most 2,000 steps; it ends as soon as 0.999 of the test
positions are right. `mlxhog mad tasks` lists the tasks and their settings, `mlxhog mad layers` the
layers.

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

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlxhog.base.plain_yaml import assignments
from mlxhog.base.quantities import format_duration
from mlxhog.cli.frame import EXIT_CODES, CommandResult, Tick, command, option, ticking
from mlxhog.cli.frame.flags import OptionGroup, Quiet
from mlxhog.cli.mad.data import OTHERWISE, TaskOptions
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import MAX_SEED
from mlxhog.config.sources import ConfigSource, resolve
from mlxhog.errors import ConfigError
from mlxhog.mad.options import DEFAULT_SEED, RECIPE, Recipe, worker_options

if TYPE_CHECKING:
    from mlxhog.mad.run import Callbacks, EvalPoint, RunConfig
    from mlxhog.mad.training.run_plan import CandidatePlan

OF_PLAN = ("key", "candidate", "config", "label", "host", "at")
"""Fields of a record that its plan has in other words."""


@dataclass(frozen=True, kw_only=True)
class _Candidate(TaskOptions, Quiet):
    layers: str | None = option(
        None, 'the layers, as words or one text, such as "(mlstm swiglu)*2"', lines=True,
        metavar="LAYER",
    )  # fmt: skip
    dry_run: bool = option(False, "print the plan and exit")
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
    seed: int = option(
        DEFAULT_SEED, "of rows, initial values and order of batches", low=0, high=MAX_SEED
    )


@command(OTHERWISE, recipe=OptionGroup(Recipe, " ".join(RECIPE)),
    overrides=OptionGroup(TrainConfig, worker_options, merged=True),
)  # fmt: skip
def run(candidate: _Candidate, recipe: Recipe, overrides: ConfigSource) -> CommandResult:
    if candidate.layers is None and candidate.arch is None:
        raise ConfigError('give the candidate, as in --layers "mlstm swiglu", or with --arch FILE')
    resolve(TrainConfig, [overrides])
    of_workers = {name: value for name, (value, _) in overrides.items()}
    # These import NumPy: wrong flags are answered before.
    from mlxhog.mad.tasks.dataset import generalization_length
    from mlxhog.mad.training import candidate as training
    from mlxhog.mad.training.run_plan import make_run_plan

    plan = make_run_plan(_run_config(candidate, recipe), of_workers)
    payload = _payload_of(plan)
    if candidate.dry_run:
        return CommandResult(
            payload | {"epoch": plan.per_epoch, "arena_bytes": plan.layout.total_bytes}
        )
    line = candidate.status()
    with ticking(line) as tick:
        result = training.train(
            plan.asked,
            callbacks=_shown(tick, plan.limit),
            worker_options=of_workers,
            tell=line.tell,
        )
    lengths = result.by_length
    held = {"generalization_length": generalization_length(lengths)} if lengths else {}
    numbers = {name: value for name, value in asdict(result).items() if name not in OF_PLAN}
    first = {name: payload[name] for name in ("task", "layers", "backend")}
    payload = {**first, **numbers, **held, **payload}
    hidden = ("curve", "settings", "recipe", "key")
    text: list[Any] = [{name: value for name, value in payload.items() if name not in hidden}]
    if result.status == "diverged":
        text.append("gradients were not finite; lower --lr, or clip them with --clip 1")
    return CommandResult(payload, text, EXIT_CODES[result.status])


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


def _payload_of(plan: "CandidatePlan") -> dict[str, Any]:
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
