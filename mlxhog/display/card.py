"""The model card, `README.md` beside the weights."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxhog.base import reading, typed
from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.base.inside import subfolder
from mlxhog.base.quantities import format_bytes, format_count, format_duration
from mlxhog.checkpoint import hub, manifest
from mlxhog.checkpoint.checkpoint import best
from mlxhog.checkpoint.formats import peft
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
LOAD_IN_PEFT = """
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "FOLDER")
```
"""
_LOADS = rb"\n## Load\n(?s:.*?)(?=\n## Publish\n)"
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


def text(
    model: ModelConfig,
    checkpoint: Path,
    *,
    to: str = "mlxhog",
    has_code: bool = False,
    command: str = "",
    base: Path | None = None,
) -> str:
    """Return the card of a checkpoint, a folder or file, with the record of its run.

    `to` is the format of the files beside the card, `command` the one that converted them;
    `has_code` says whether files for transformers have a class of ours beside them. An adapter,
    which `model` has, has the license of the folder `base`, if that says one.
    """
    run = run_of(checkpoint)
    size = format_count(families.param_count(replace(model, adapter=None)))
    named = _base(run, checkpoint)
    about = [
        f"- model: {model.title}, {size} parameters, vocabulary {model.vocab_size}",
        *_adapter(model),
        *_training(run, checkpoint),
        *([f"- converted by {_code(command)}"] if command else []),
    ]
    is_theirs = model.in_transformers and len(model.layout.out_norm) == 1  # transformers has it
    trust = ", trust_remote_code=True" * has_code
    needs = "  # mlxhog must be installed" * has_code
    in_transformers = LOAD_IN_TRANSFORMERS * (to == "hf" or (to == "mlxhog" and is_theirs))
    # Nothing of the run's own text: who publishes weights need not publish it.
    loads = (LOAD + in_transformers).format(trust=trust, needs=needs)
    loads += LOAD_IN_MLX_LM * (to == "mlx-lm")
    library = {"hf": "transformers", "mlx-lm": "mlx", "mlx-lm-adapter": "mlx"}.get(to, "mlxhog")
    if model.adapter is not None and to != "mlx-lm-adapter":
        library, loads = "peft", LOAD + LOAD_IN_PEFT.format(base=named or "BASE") * is_theirs
    base_line = f"base_model: {json.dumps(named)}\n" if named else ""
    return (
        f"---\nlibrary_name: {library}\n"
        f"tags: [xlstm, mlxhog{', lora' if model.adapter else ''}]\n"
        f"license: {_license(base) or 'unknown  # name one before you publish'}\n"
        f"{base_line}---\n"
        f"# {printable(run.name if run else hub.title(checkpoint) or checkpoint.name)}\n\n"
        + "\n".join(about)
        + f"\n\n## Load\n\n{loads}{UPLOAD}\n{manifest.CARD_MARK.decode()}"
    )


def converted(earlier: bytes, text: bytes) -> bytes:
    """Return an earlier card of ours that says of the new files how they load; the rest stays."""
    for new in (rb"library_name: .*\n", rb"tags: .*\n", rb"\n- converted by .*\n" + _LOADS):
        old = re.search(new.replace(rb"\n- converted by .*", b""), earlier)
        if old is not None and (found := re.search(new, text)):
            earlier = earlier[: old.start()] + found[0] + earlier[old.end() :]
    return earlier


def _adapter(model: ModelConfig) -> list[str]:
    if model.adapter is None:
        return []
    trained = sum(spec.size for spec in families.trainable_spec(model).values())
    rank = model.adapter.rank
    return [f"- adapter: LoRA of rank {rank}, {format_count(trained)} trained parameters"]


def _license(base: Path | None) -> str:
    """Return the license that a folder's model card states; "" without one."""
    with suppress(OSError, ValueError, CheckpointError):
        text = "" if base is None else reading.read_small(base / manifest.CARD).decode()
        if found := re.match(r"---\n(?:(?!---).*\n)*?license: *([\w.-]+) *\n", text):
            return "" if found[1] == "unknown" else found[1]
    return ""


def _base(run: Run | None, checkpoint: Path) -> str:
    """Return the name of the model that a run began with, or that was converted or adapted."""
    base: object = hub.name_of(checkpoint)
    if (checkpoint / peft.CONFIG).is_file():
        fields = peft.read_fields(checkpoint)
        base = fields.get("base_model_name_or_path") or fields.get("model")
    if run is not None:
        with suppress(RunError):
            base = RunRecord(run).config.get("init_from")
    if base in (None, "none"):
        return ""
    name = path_arguments(base, public=True)[0]
    if hub.is_name(name):  # the hub links the repository, without the commit
        name = hub.parse(name).repo
    return name


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
