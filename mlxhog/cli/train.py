"""Train a model, by default for a minute on the bundled corpus.

Defaults < the YAML file < flags. The first budget reached (--steps, --tokens, --time) ends the run.
With --resume the options are those of that run, unless a flag changes them. A budget counts from
there (--steps 1000 is 1000 more); without one the rest of the run's own budget counts.

Examples:
    train
    train --data notes/ --model 10m --time 10m
    train -c conf.yaml --lr 1e-3 --workers 'mlx:cpu,torch:cpu*2'
    train --resume latest --steps 1000
    train --init-from latest --data examples.jsonl --epochs 3 --patience 2
    train --init-from hf:NX-AI/xLSTM-7b --data notes/ --workers 1
        27 GB to download; 140 GB of memory

Main options:
    config data tokenizer model set seq_len batch_size workers lr time steps epochs resume
    dry_run json
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.base import interrupts
from mlxhog.base.paths import path_from_here
from mlxhog.base.quantities import format_count, format_duration
from mlxhog.cli.frame import (
    EXIT_CODES,
    CommandResult,
    Download,
    OptionGroup,
    Plugins,
    Quiet,
    command,
    option,
)
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import ConfigSource, read_yaml
from mlxhog.display.metrics import beside_ngram, label, scored_at, share_text
from mlxhog.display.streams import wrapped
from mlxhog.display.views import observer
from mlxhog.progress import BASE, is_emulated
from mlxhog.training.supervisor.api import check_start, configured, execute

if TYPE_CHECKING:
    from mlxhog.progress import Result


@dataclass(frozen=True, kw_only=True)
class _TrainOptions(Plugins, Download, Quiet):
    config: str | None = option(
        None, "YAML file with the names below as keys", metavar="FILE", short="c", is_path=True
    )
    dry_run: bool = option(False, "print the plan and exit")


@command(overrides=OptionGroup(TrainConfig, merged=True), writes=True)
def run(args: _TrainOptions, overrides: ConfigSource) -> CommandResult:
    config = configuration(args, overrides)
    if args.dry_run:
        check_start(config)
        from mlxhog.training.plan.decide import make_plan

        plan = make_plan(config, progress=not args.quiet)
        from mlxhog.training.plan import preview

        payload = preview.facts(plan, config)
        return CommandResult(payload, preview.text(payload))
    with observer(sys.stderr, quiet=args.quiet) as watch:
        interrupts.answer_in_loop_only()
        result = execute(config, watch)
    messages = [result.error] if result.error and args.quiet and not args.json else []
    return CommandResult(result.to_json(), summary(result), EXIT_CODES[result.status], messages)


def configuration(args: _TrainOptions, overrides: ConfigSource) -> TrainConfig:
    """Merge defaults, the resumed run, the YAML file and the flags."""
    files = [] if args.config is None else [read_yaml(Path(args.config), named=True)]
    return configured([*files, overrides])


def summary(result: "Result") -> str:
    """Return the end of a run, its folder, and the next commands."""
    from mlxhog.checkpoint.checkpoint import better
    from mlxhog.checkpoint.run import Run
    from mlxhog.display.record import prompt_flags, resume_flags

    bits, counts = result.val_bits_per_byte, result.ngram_bits_per_byte
    run = shlex.quote(str(path_from_here(Path(result.run))))
    lines = [
        f"{result.status}: {result.steps:,} steps, {format_count(result.tokens)} tokens in "
        f"{format_duration(result.seconds)} ({format_count(result.tokens_per_s)} tok/s)"
    ]
    if bits is not None or (result.val_share is not None and result.status == "done"):
        lines.append(f"validation: {_validation(result)}")
    if bits is not None and counts is not None and result.val_at_end:
        lines.append(beside_ngram(bits, counts))
    if bits is not None and result.base_bits_per_byte is not None:
        lines.append(f"the {BASE} had {result.base_bits_per_byte:.3f} before the first step")
    if result.restarts or result.dropped_steps or result.torn:
        lines.append(
            f"workers restarted {result.restarts}, updates skipped {result.dropped_steps}, "
            f"batches partially applied {result.torn}"
        )
    if shown := label(result.gpu_write, result.kernels):
        note = ": Metal source ran on the CPU, which is no measure of a GPU's speed"
        lines.append(shown + note * is_emulated(result.gpu_write, result.kernels))
    elif result.emulated_before:
        lines.append("earlier steps of this run came from Metal source on the CPU")
    if result.sample:
        lines += wrapped(f"sample: {result.sample}")
    lines.append(f"run: {run}")
    if result.status == "unsaved":
        lines.append(f"the last steps are in no checkpoint: {result.error}")
    if result.checkpoint is None:
        if result.newest_checkpoint is None:
            return "\n".join([*lines, "no checkpoint was saved"])
        name = Path(result.newest_checkpoint).name
        lines.append(f"the newest checkpoint is {name}; the steps after it are lost")
    if result.status == "diverged":  # its error says what to change
        return "\n".join(lines)
    of = Run(Path(result.run))  # done before a command that trained nothing
    is_done = "done" in (result.status, of.read_status().get("status"))
    more = resume_flags(of, is_done=is_done)
    at = "/best" * (better(of) is not None)
    lines.append(f"next: mlxhog generate {run}{at} {prompt_flags(of)}")
    return "\n".join([*lines, f"      mlxhog train --resume {run}{more}"])


def _validation(result: "Result") -> str:
    from mlxhog.data.split import SAME

    share, bits, final = result.val_share, result.val_bits_per_byte, result.final_bits_per_byte
    if bits is None:
        return "not evaluated"
    shown = f"{bits:.3f} bits per byte{' of completions' * result.val_of_completions}"
    if SAME in (result.val_text or ""):
        shown += " of the training text, which has no validation split"
    shown += scored_at(result.val_step, result.steps)
    if share is not None and share < 1:
        shown += f" (fixed {share_text(share)} subset)"
    if not result.val_at_end and result.status in ("done", "unsaved"):
        return f"{shown}; the end was not evaluated"
    if final is not None and result.final_share is not None:
        whole = "full set" if result.final_share == 1 else share_text(result.final_share)
        shown += f", {final:.3f} ({whole})"
    return shown
