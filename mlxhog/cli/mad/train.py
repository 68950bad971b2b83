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

from mlxhog.base.quantities import format_duration
from mlxhog.cli.frame import EXIT_CODES, CommandResult, Tick, command, option, ticking
from mlxhog.cli.frame.flags import OptionGroup, Plugins, Quiet
from mlxhog.cli.mad.data import OTHERWISE
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import ConfigSource, resolve
from mlxhog.mad.options import RECIPE, CandidateOptions, Recipe, worker_options

if TYPE_CHECKING:
    from mlxhog.mad.run import Callbacks, EvalPoint

OF_PLAN = ("key", "candidate", "config", "label", "host", "at")
"""Fields of a record that its plan has in other words."""


@dataclass(frozen=True, kw_only=True)
class _Candidate(Plugins, Quiet, CandidateOptions):
    dry_run: bool = option(False, "print the plan and exit")


@command(OTHERWISE, recipe=OptionGroup(Recipe, " ".join(RECIPE)),
    overrides=OptionGroup(TrainConfig, worker_options, merged=True),
)  # fmt: skip
def run(candidate: _Candidate, recipe: Recipe, overrides: ConfigSource) -> CommandResult:
    resolve(TrainConfig, [overrides])
    of_workers = {name: value for name, (value, _) in overrides.items()}
    # These import NumPy: wrong flags are answered before.
    from mlxhog.mad.tasks.dataset import generalization_length
    from mlxhog.mad.training import candidate as training
    from mlxhog.mad.training.run_plan import make_run_plan, run_config

    plan = make_run_plan(run_config(candidate, recipe), of_workers)
    payload = plan.to_json()
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
        left_s = (limit - point.step) * point.seconds / max(point.step, 1)  # 0: Ctrl-C
        loss = "-" if point.loss is None else f"{point.loss:.3f}"
        text = (
            f"step {point.step}/{limit}  loss {loss}  accuracy {point.acc_token:.3f}  "
            f"at most {format_duration(left_s)} to go"
        )

    return Callbacks(beat=lambda: tick(lambda: text), on_eval=show)
