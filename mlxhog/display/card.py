"""The model card, `README.md` beside the weights."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlxhog.base import typed
from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.base.inside import subfolder
from mlxhog.base.quantities import format_bytes, format_count, format_duration
from mlxhog.checkpoint import hub, manifest
from mlxhog.checkpoint.checkpoint import best
from mlxhog.checkpoint.run import Run, run_of
from mlxhog.checkpoint.run_files import BestScore
from mlxhog.display.metrics import format_loss, share_text
from mlxhog.display.record import RunRecord, path_arguments
from mlxhog.display.streams import printable
from mlxhog.errors import CheckpointError, RunError
from mlxhog.models import families
from mlxhog.models.families import ModelConfig

LOAD = """\
```sh
mlxhog generate FOLDER --prompt "Once"
```
"""
LOAD_IN_TRANSFORMERS = """
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})
model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust}){needs}
answer = model.generate(**tokenizer("Once", return_tensors="pt"), max_new_tokens=50)
print(tokenizer.decode(answer[0]))
```
"""
LOAD_IN_MLX_LM = """
```sh
mlx_lm.generate --model FOLDER --prompt "Once" --ignore-chat-template --trust-remote-code
```
"""
UPLOAD = """
## Publish

```sh
hf upload YOUR_NAME/YOUR_MODEL FOLDER
```
"""


def write(run: Run, model: ModelConfig) -> None:
    """Write the cards of a run's newest and best checkpoint into their folders.

    Raises:
        EnvironmentLacks: the disk is full, or the system refuses.
    """
    for folder in {*manifest.by_age(run.checkpoints)[-1:], *filter(None, [best(run)])}:
        with disk_errors(f"writing {folder / manifest.CARD}"):
            subfolder(subfolder(run.directory, folder.parent.name), folder.name)
            replace_file(folder / manifest.CARD, text(model, folder).encode())


def text(model: ModelConfig, checkpoint: Path, *, to: str = "mlxhog", command: str = "") -> str:
    """Return the card of a checkpoint, a folder or file, with the record of its run.

    `to` is the format of the files beside the card, `command` the one that converted them.
    """
    run = run_of(checkpoint)
    size = format_count(families.param_count(model))
    about = [
        f"- model: {model.title}, {size} parameters, vocabulary {model.vocab_size}",
        *_training(run, checkpoint),
        *([f"- converted by {_code(command)}"] if command else []),
    ]
    is_large = model.model_type == "xlstm"  # transformers has it; other families bring their code
    trust = "" if is_large else ", trust_remote_code=True"
    needs = "" if is_large else "  # mlxhog must be installed"
    in_transformers = LOAD_IN_TRANSFORMERS * (to == "hf" or (to == "mlxhog" and is_large))
    # Nothing of the run's own text: who publishes weights need not publish it.
    loads = (LOAD + in_transformers).format(trust=trust, needs=needs)
    loads += LOAD_IN_MLX_LM * (to == "mlx-lm")
    library = {"hf": "transformers", "mlx-lm": "mlx"}.get(to, "mlxhog")
    return (
        f"---\nlibrary_name: {library}\n"
        f"tags: [xlstm, mlxhog]\nlicense: unknown  # name one before you publish\n"
        f"{_base(run, checkpoint)}---\n"
        f"# {printable(run.name if run else hub.title(checkpoint) or checkpoint.name)}\n\n"
        + "\n".join(about)
        + f"\n\n## Load\n\n{loads}{UPLOAD}\n{manifest.CARD_MARK.decode()}"
    )


def _base(run: Run | None, checkpoint: Path) -> str:
    """Return a line with the model that a run began with, or that was converted, if any."""
    base: object = hub.name_of(checkpoint)
    if run is not None:
        with suppress(RunError):
            base = RunRecord(run).config.get("init_from")
    if base in (None, "none"):
        return ""
    name = path_arguments(base, public=True)[0]
    if hub.is_name(name):  # the hub links the repository, without the commit
        name = hub.parse(name).repo
    return f"base_model: {json.dumps(name)}\n"


def _training(run: Run | None, checkpoint: Path) -> list[str]:
    try:
        if run is None:
            raise RunError("of no run")
        record, saved = RunRecord(run), manifest.read(checkpoint)
    except (RunError, CheckpointError):
        name = hub.title(checkpoint) or checkpoint.name
        return [f"- data, steps and score: not recorded in {_code(name)}"]
    used = saved["state"].get("used", {})
    parts = [f"{saved['step']:,} updates"]
    if "tokens" in used:
        parts += [f"{format_count(used['tokens'])} tokens", format_duration(used["seconds"])]
    return [
        f"- data: {_code(' '.join(path_arguments(record.config.get('data', '-'), public=True)))}",
        f"- training: {', '.join(parts)}, mlxhog {printable(str(record.status.get('mlxhog')))}",
        f"- score: {_score(record, checkpoint, saved)}",
        *(f"- {steps}: {_code(line)}" for steps, line in record.history_of_commands(public=True)),
    ]


def _score(record: RunRecord, checkpoint: Path, saved: Mapping[str, Any]) -> str:
    """Return the final score of a checkpoint, or the score in training at its step."""
    bits, result, step = None, record.result, saved["step"]
    if result is not None and result.val_at_end:
        bits = result.val_bits_per_byte
    if result is None or bits is None or Path(str(result.checkpoint)).name != checkpoint.name:
        with suppress(RunError):
            for line in reversed(record.run.read_metrics()):
                bits, size = line.get("val_bits_per_byte"), line.get("val_bytes")
                if line.get("val_step") == step and isinstance(bits, float):
                    of = f"of {format_bytes(size)} " if isinstance(size, int) else ""
                    return (
                        f"{format_loss(bits)} bits per byte {of}of validation text, during training"
                    )
        score, at = saved["state"].get("best"), best(record.run)
        with suppress(ValueError):
            if isinstance(score, dict) and at and at.resolve() == checkpoint.resolve():
                own = typed.read(BestScore, score)
                what = (
                    f"bits per byte of validation text at step {own.step:,}, the best of training"
                )
                return f"{format_loss(own.bits_per_byte)} {what}"
        return "not evaluated at this step; `mlxhog eval` scores the validation text"
    size, share = format_bytes(result.val_bytes or 0), result.val_share
    if result.final_bits_per_byte is not None:
        bits, share = result.final_bits_per_byte, result.final_share
        size = f"{format_count(result.final_tokens or 0)} tokens"
    what = "validation answers" if result.val_of_completions else "validation text"
    return (
        f"{format_loss(bits)} bits per byte of {size} of {what} ({share_text(share or 0.0)}); one "
        "run and one evaluation, so there is no interval"
    )


def _code(text: str) -> str:
    return f"`{printable(text).replace('`', chr(39))}`"
