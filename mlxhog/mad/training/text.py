"""A short training of a candidate as a language model, and what it costs on this machine.

It is a run of `mlxhog train` in a temporary folder, whose last weights are scored on the fixed
validation subset. Then the model decodes tokens for half a second.
"""

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlxhog import backends
from mlxhog.arena.child import Lane
from mlxhog.backends.inference import InferenceModel
from mlxhog.base import machine
from mlxhog.base.durable import replace_file
from mlxhog.base.quantities import format_bytes
from mlxhog.checkpoint import formats
from mlxhog.config.config import TrainConfig
from mlxhog.data import prepare, validation_set
from mlxhog.data.prepare import Prepared
from mlxhog.errors import ConfigError, EnvironmentLacks, WorkerFailed, one_line
from mlxhog.experiments.short_runs import losses, settings_for
from mlxhog.mad import tasks
from mlxhog.mad.run import CandidateRecord, RunConfig, params
from mlxhog.mad.tasks.text import TEXT_TASK, WORST_BITS, LanguageModeling, score_of
from mlxhog.mad.training import candidate
from mlxhog.models.layers import at_width
from mlxhog.models.layers.layer import Layer
from mlxhog.models.mad.sequence import parse
from mlxhog.models.registry import to_yaml
from mlxhog.training.plan.batch_size import faster_half, gradient_times, warm_up
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.regime import MANY_EPOCHS
from mlxhog.training.supervisor import training as runs

VAL_TOKENS = 32_768
DECODE_S, MIN_DECODED = 0.5, 16
MAX_REASON = 300  # characters
STEP_S = 1.0  # of gradients, at most, for the time per step of one width
MAX_WIDTH_FACTOR, WIDTH_STEP = 4, 16


def machine_text() -> str:
    """Return the machine whose numbers a study holds: processor, cores and memory."""
    here = machine.here()
    return f"{machine.chip_name()}, {here.cores} cores, {format_bytes(here.memory_bytes)}"


def read_text(data: str, seq_len: int, tokens: int | None) -> Prepared:
    """Return a text, prepared.

    Raises:
        DataError: it is missing, or shorter than a sequence.
        ConfigError: a run of so many tokens would read it more than `MANY_EPOCHS` times.
    """
    text = prepare.prepare(data, "bytes")
    text.check_length(seq_len)
    if tokens is not None and tokens > MANY_EPOCHS * text.train.n_tokens:
        raise ConfigError(
            f"{', '.join(data.splitlines())} is too short: it has {text.train.n_tokens:,} training "
            f"tokens, and a run of {tokens:,} would read it more than {MANY_EPOCHS:g} times; give "
            "more text, or a smaller budget, such as --suite lm:100ktok"
        )
    return text


def train_config(config: RunConfig, model: Path | str) -> TrainConfig:
    """Return the options of `mlxhog train` for a candidate whose model is in a file."""
    recipe, task = config.recipe, _task(config)
    return TrainConfig(
        model=str(model), data=task.data, tokenizer="bytes", seq_len=task.seq_len,
        **{name: getattr(recipe, name) for name in ("optimizer", "lr", "clip", "batch_size")},
        workers=config.workers, threads=config.threads, seed=config.seed, live="off", keep_last=1,
        plugin=", ".join(one.text for one in config.plugins) or None, keep_awake=False,
    )  # fmt: skip


def write_model(config: RunConfig, path: Path) -> Path:
    """Write a candidate's model file, and return its path."""
    replace_file(path, to_yaml(config.model()).encode())
    return path


def train_any(config: RunConfig, *, folder: Path | None = None, **how: Any) -> CandidateRecord:
    """Train a candidate on text, as `train`, or on rows, as `candidate.train`."""
    return train(config, folder) if config.task == TEXT_TASK else candidate.train(config, **how)


def train(config: RunConfig, parent: Path | None = None) -> CandidateRecord:
    """Train a candidate within the budget of its task, and measure it.

    Its files are in a folder below `parent`, by default the system's for temporary files, which it
    removes unless it is killed.

    Raises:
        EnvironmentLacks: this is another machine than that of the study, or memory is missing.
        WorkerFailed: it took no step.
    """
    task = _task(config)
    if task.machine not in ("", here := machine_text()):
        raise EnvironmentLacks(
            f"the numbers of this study are those of {task.machine}, this is {here}; run it there, "
            "or begin another with --study"
        )
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlxhog-mad-", dir=parent) as folder:
        sized = replace(config, dim=_width(config, Path(folder))) if task.like else config
        model = write_model(sized, Path(folder) / "model.yaml")
        options = train_config(sized, model)
        ends = {"time": task.time} if task.tokens is None else {"tokens": task.tokens}
        result = runs.train(settings_for(options, folder, "run", **ends))
        if result.status == "interrupted":
            return config.record("interrupted")
        if result.status == "unsaved":
            raise EnvironmentLacks(f"the run cannot be scored: {result.error}")
        if not result.steps:
            raise WorkerFailed(f"no step ended within {task.budget}; give --suite lm a larger one")
        measures = {
            "dim": sized.dim,
            "steps": result.steps,
            "tokens": result.tokens,
            "val_bits_per_byte": WORST_BITS,
            "train_tokens_per_s": result.tokens_per_s,
            "peak_memory_bytes": sum(one.memory_bytes for one in result.workers),
        }
        status = result.status
        reason = one_line(result.error or "", MAX_REASON) if status == "diverged" else ""
        if status != "diverged":
            opened = formats.open(Path(str(result.checkpoint)))
            engine = backends.create(
                config.workers.split(",")[0], threads=config.threads, kernels="auto"
            )
            engine.load(opened.config, opened.tensors)
            text = read_text(task.data, task.seq_len, None)
            nats, n_bytes = losses(engine, text.val, task.seq_len, VAL_TOKENS)
            bits = validation_set.bits_per_byte(float(nats.sum()), int(n_bytes.sum()))
            if math.isfinite(bits):
                measures["val_bits_per_byte"] = min(bits, WORST_BITS)
            else:
                status, reason = "diverged", "the validation loss of its last weights is not finite"
            try:
                measures |= _decoding(engine, task.seq_len)
            except Exception as error:  # of a user's layer, too
                why = one_line(f"{type(error).__name__}: {error}", MAX_REASON)
                reason = reason or f"it cannot decode: {why}"
            epochs = result.tokens / text.train.n_tokens
            if epochs > MANY_EPOCHS:
                reason = reason or f"the text is short: it was read {epochs:.1f} times"
            engine.close()
    score = score_of(measures["val_bits_per_byte"])
    record = sized.record(
        status, steps=result.steps, seconds=time.monotonic() - began_s, loss=result.val_loss,
        acc_token=score, acc_macro=score, reason=reason, measures=measures,
    )  # fmt: skip
    return replace(record, key=config.key(), config=config.to_dict())


def _task(config: RunConfig) -> LanguageModeling:
    task = tasks.resolve(config.task, config.settings)
    assert isinstance(task, LanguageModeling)
    return task


def _decoding(engine: InferenceModel, length: int) -> dict[str, float]:
    """Return tokens/s of decoding the second half of one sequence, and the bytes of its state."""
    prompt = np.arange(length, dtype=np.int32)[None] % engine.model.vocab_size
    _, state = engine.logits(prompt, None)
    n_bytes = sum(part.nbytes for block in engine.state_arrays(state) for part in block)
    half, times = length // 2, list[float]()
    while len(times) < MIN_DECODED or sum(times) < DECODE_S:
        if len(times) % half == 0:
            logits, state = engine.logits(prompt[:, :half], None)
        began_s = time.perf_counter()
        logits, state = engine.logits(logits.argmax(-1).astype(np.int32)[:, None], state)
        times.append(time.perf_counter() - began_s)
    return {"decode_tokens_per_s": 1 / faster_half(times), "state_bytes": n_bytes}


# -- equal widths ----------------------------------------------------------------------------------


def _possible_widths(layers: tuple[Layer, ...], base: int) -> Iterator[int]:
    """Yield the widths at which layers can be built, rising: the base and multiples of a step."""
    for width in sorted({base, *range(WIDTH_STEP, MAX_WIDTH_FACTOR * base + 1, WIDTH_STEP)}):
        try:
            for layer in at_width(layers, width):
                layer.check(width)
        except ConfigError:
            continue
        yield width


def equal_width(layers: tuple[Layer, ...], like: tuple[Layer, ...], base: int) -> int:
    """Return the width that gives layers the parameters nearest to those of others at `base`."""
    target = params(at_width(like, base), base)
    return min(
        _possible_widths(layers, base),
        key=lambda width: abs(params(at_width(layers, width), width) - target),
        default=base,
    )


def _width(config: RunConfig, folder: Path) -> int:
    """Return the width whose gradients take as long as those of the task's `like`.

    The time grows about as the square of the width, so two corrections suffice.
    """
    like, base = parse(_task(config).like), config.dim

    def step_s(layers: tuple[Layer, ...], width: int) -> float:
        own = replace(config, layers=layers, dim=width)
        file = write_model(own, folder / f"width-{width}.yaml")
        options = settings_for(train_config(own, file), folder, "width", steps=1)
        lane, plan, batch = Lane(None, 0), make_plan(options), config.recipe.batch_size
        warm_up(lane, plan, 0, batch, STEP_S)
        return faster_half(gradient_times(lane, plan, 0, batch, STEP_S)[1])

    target, width = step_s(like, base), equal_width(config.layers, like, base)
    for _ in range(2):
        wanted = width * math.sqrt(target / step_s(config.layers, width))
        widths: Any = _possible_widths(config.layers, base)
        width = min(widths, key=lambda one: abs(one - wanted), default=width)
    return width
