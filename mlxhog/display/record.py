"""Read the folder of a run, during training and later."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlxhog.base import darwin
from mlxhog.base.paths import quoted, quoted_paths
from mlxhog.base.quantities import format_bytes, format_count, format_duration, format_value
from mlxhog.base.typed import fill, read
from mlxhog.checkpoint.run import RUNNING, STARTING, Run
from mlxhog.checkpoint.run_files import CommandRecord, RunStatus
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import read_yaml, specs_of
from mlxhog.data import conversations
from mlxhog.display.history import GrowingFile, History
from mlxhog.display.metrics import (
    beside_ngram,
    format_loss,
    format_rate,
    label,
    scored_at,
    share_text,
)
from mlxhog.errors import ConfigError, RunError
from mlxhog.progress import NGRAM, Result, shares

ALL = "all workers"
_BUDGET = ("time", "tokens", "steps", "epochs")
_ASIDE = ("runs_dir", "name", "cluster_token")
"""Options that do not change a run's training: its folder, name, and a secret."""


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """A line of events.jsonl."""

    elapsed_s: float  # seconds of training of the whole run
    step: int  # of the whole run
    kind: str  # "message", "strategy" (of a change), "sample", "checkpoint" or "ended"
    text: str = ""  # the message, the sample, or the path of the checkpoint


class RunRecord:
    """The files of a run, read together; `refresh` reads them again.

    Attributes:
        progress: the last line of the metrics, with the newest evaluation and the newest sample.
        status: content of run.json.
        state: the status of the run, in one word.
        result: of the newest command; None before it ends, and if it was killed.
        config: option -> value, as in config.yaml; hyperparameters of components by flat names.
        samples: samples of text from the model.
        notes: for the reader of a report.
    """

    def __init__(self, run: Run) -> None:
        """Read all files.

        Raises:
            RunError: one cannot be read.
        """
        self.run = run
        self.history = History(run.metrics_path)
        self.config: dict[str, object] = {}
        self._config_file = (-1, -1)
        self.events: list[RunEvent] = []
        self._event_file = GrowingFile(run.events_path)
        self.last = self.history.last
        self.refresh()

    def refresh(self) -> None:
        """Read every file again; of growing files only the new part.

        Raises:
            RunError: one cannot be read.
        """
        self.status: dict[str, Any] = self.run.read_status()
        self._about = fill(RunStatus, self.status)
        self.state, result = self._about.status, self.status.get("result")
        self.result: Result | None = None
        with suppress(ValueError):  # of another version
            self.result = fill(Result, result) if result else None
        try:
            self.history.update()
            for record in self._event_file.read():
                with suppress(ValueError):
                    self.events.append(read(RunEvent, {"text": record.get("path", ""), **record}))
        except OSError as error:
            raise RunError(f"{error.filename} cannot be read: {darwin.reason(error)}") from error
        with suppress(OSError, ConfigError):  # it is not written yet
            status = self.run.config_path.stat()
            # The end of a run's start replaces it, and so does a resume.
            if self._config_file != (file := (status.st_ino, status.st_mtime_ns)):
                options = read_yaml(self.run.config_path)
                self.config = {name: value for name, (value, _) in options.items()}
                self._config_file = file
        self.notes = list(self._notes())
        self.samples = [event for event in self.events if event.kind == "sample"]
        sample = self.samples[-1].text if self.samples else None
        self.progress = replace(self.history.progress, sample=sample)

    def _notes(self) -> Iterator[str]:
        sizes = self.history.column("val_bytes")
        if len({*sizes[~np.isnan(sizes)].tolist()}) > 1:
            yield (
                "evaluations before and after a resume used different validation subsets, so their "
                "scores cannot be compared"
            )
        if not len(self.history):
            yet = "yet: the first ones are written two seconds after training begins"
            yield f"no numbers {yet}" if self.is_running else "no numbers: nothing was trained"

    @property
    def is_running(self) -> bool:
        """Whether a process trains the run now."""
        return self.state in (STARTING, RUNNING)

    @property
    def text(self) -> str | None:
        """Name of the validation text of evaluations; None if unknown."""
        subset = self._about.validation
        return None if subset is None else subset.text

    @property
    def evaluated_text(self) -> str:
        """Size and share of the validation subset of evaluations; "" if unknown."""
        subset = self._about.validation
        if subset is None or subset.n_bytes is None or subset.share is None:
            return ""
        return f"{format_bytes(subset.n_bytes)}, {share_text(subset.share)}"

    @property
    def larger_score(self) -> tuple[float, str] | None:
        """The final score in bits per byte, and its share of the validation text, or None."""
        bits, share = self.progress.final_bits_per_byte, self.progress.final_share
        return None if bits is None or share is None else (bits, share_text(share))

    @property
    def scored_at(self) -> str:
        """The step of the newest evaluation; "" if it is the last step, or unknown."""
        return scored_at(self.progress.val_step, self.last("step"))

    @property
    def strategy(self) -> str:
        """The strategy; for auto also the present one and the number of changes; - is unknown."""
        requested, now = self.config.get("strategy"), self.progress.strategy
        if requested != "auto" or now is None:
            return str(requested or "-")
        changes = sum(event.kind == "strategy" for event in self.events)
        changed = f", {changes} change{'s' * (changes > 1)}" if changes else ""
        return f"auto: {now}{changed}"

    def shares(self) -> dict[str, dict[str, float]]:
        """Return shares of a step in the newest command: of `ALL`, and of several workers."""
        workers = [vars(worker) for worker in self.progress.workers]
        each = {f"{worker['slot']} {worker['backend']}": [worker] for worker in workers}
        named = {ALL: workers, **(each if len(each) > 1 else {})}
        return {name: shares(some) for name, some in named.items()}

    def facts(self) -> dict[str, str]:
        """Return the rows of a table about the run and its machine; - is unknown."""
        history, now, about, last = self.history, self.progress, self._about, self.last
        result, backends = self.result, [one for _, one in sorted(history.backends.items())]
        tokens, seconds, bits = last("tokens"), last("elapsed_s"), last("val_bits_per_byte")
        counts, larger, beside = now.baselines.get(NGRAM), self.larger_score, None
        if bits is not None and counts is not None and not self.scored_at:
            beside = beside_ngram(bits, counts)
        dropped = sum(one.dropped for one in now.workers) if len(history) else None
        best = f"{format_loss(now.best_bits_per_byte)} at step {now.best_step or 0:,}"
        memory = np.nanmax(history.column("memory_bytes"), initial=0.0)

        def shown(value: Any, to_text: Callable[[Any], str] = str) -> str:
            return "-" if value is None else to_text(value)

        rows = {
            "status": self.state,
            "error": about.error,
            "training time": shown(seconds, format_duration),
            "first step after": shown(now.first_step_s, format_duration),
            "steps": shown(last("step"), lambda n: f"{n:,.0f}"),
            "tokens": shown(tokens, format_count),
            "tokens/s": shown(tokens and seconds and tokens / seconds, format_count),
            "train bits per byte": format_loss(last("train_bits_per_byte")),
            "epochs": None if now.epoch is None else f"{now.epoch:.2f}",
            "validation bits per byte": format_loss(bits) + self.scored_at,
            "best validation score": None if now.best_step is None else best,
            "of validation text": self.evaluated_text or None,
            "larger validation score": larger and f"{format_loss(larger[0])} of {larger[1]}",
            "n-gram baseline": beside,
            "lost updates": format_rate(last("lost_update_rate")),
            "strategy": self.strategy,
            "workers": ", ".join(backends) or "-",
            **{f"machine {one.name}": str(one) for one in (result or now).machines},
            "workers restarted": shown(result and result.restarts),
            **{
                f"text added at step {one.step:,}": f"{one.documents:,} documents, "
                f"{one.val_documents:,} of them for validation, {format_bytes(one.bytes)}"
                for one in about.text_added
            },
            "steps dropped": shown(dropped if result is None else result.dropped_steps),
            "batches torn": shown(result and result.torn),
            "largest memory of all workers": shown(memory or None, format_bytes),
            "parameters": shown(about.parameters, format_count),
            "machine": shown(about.machine),
            "chip": shown(about.chip),
            "cores": shown(about.cores),
            "memory": shown(about.memory_bytes, format_bytes),
            "mlxhog": shown(about.mlxhog),
            "kernels": shown(about.kernels),
            "Metal": label(about.gpu_write or "", about.kernels or "") or None,
        }
        return {name: value for name, value in rows.items() if value is not None}

    def changed(self) -> dict[str, object]:
        """Return the options that differ from their defaults, as in YAML."""
        return changed(self.config)

    def history_of_commands(self, *, public: bool = False) -> list[tuple[str, str]]:
        """Return the steps and the command line of every command of the run, in order.

        A resume has the options that it changed, and its budget. With `public` an absolute path is
        its last part only, so that no folder of this machine is named.
        """
        own = {k: v for k, v in self.changed().items() if k not in self.run.automatic()}
        last = CommandRecord(from_step=0, to_step=int(self.last("step") or 0), options=own)
        parts = self._about.commands or (last,)
        return command_lines(self.run.name, parts, self.config, public=public)

    def options_in_words(self) -> dict[str, str]:
        """Return every option of the run as text, rounded, with its unit."""
        known, automatic = specs_of(TrainConfig, self.config), self.run.automatic()
        return {
            name: format_value(value, known[name].unit if name in known else "").removesuffix(
                f" {name}"  # steps 100, tokens 2,000
            )
            + " (auto)" * (name in automatic)
            for name, value in self.config.items()
        }

    def commands(self) -> dict[str, str]:
        """Return command lines by their purpose."""
        run, more = quoted(self.run.directory), resume_flags(self.run, is_done=self.state == "done")
        return {
            "repeat it with the file of its options": f"mlxhog train -c {run}/config.yaml",
            **{f"trained {steps}": line for steps, line in self.history_of_commands()},
            "train it further": f"mlxhog train --resume {run}{more}",
            "write text with it": f"mlxhog generate {run} {prompt_flags(self.run)}",
            "this page again": f"mlxhog report {run}",
        }


def command_lines(
    run: str, parts: Sequence[CommandRecord], config: Mapping[str, object], *, public: bool = False
) -> list[tuple[str, str]]:
    """Return the steps and the command line of each part of a run, as `history_of_commands`."""
    before, told = dict[str, object](), []
    for n, part in enumerate(parts):
        known, flags = specs_of(TrainConfig, {**config, **part.options}), list[str]()
        for name in [name for name in {**before, **part.options} if name in known]:
            usual = known[name].to_yaml_value(known[name].default)
            value = part.options.get(name, usual)
            if str(value) != str(before.get(name, usual)) or (name in _BUDGET and value):
                argv = known[name].argv(path_arguments(value, public=public))
                flags += [shlex.join(argv)] if argv else []
        begin = f"mlxhog train --resume {shlex.quote(run)}" if n else "mlxhog train"
        steps = f"steps {part.from_step + 1:,} to {part.to_step:,}"
        told.append((steps, " ".join([begin, *flags])))
        before = dict(part.options)
    return told


def resume_flags(run: Run, *, is_done: bool) -> str:
    """Return the options that a resume of a run needs: a further budget if it used up its own."""
    stored = {}
    with suppress(ConfigError):  # it is damaged
        stored = read_yaml(run.config_path)
    determinism = str(stored.get("determinism", ("none",))[0])
    anew = " --determinism none" * (determinism == "record")  # a record begins with its run
    more = " --time 10m"
    if determinism == "rounds":  # which no time ends
        own = [(unit, stored.get(unit, (None,))[0]) for unit in ("steps", "tokens", "epochs")]
        unit, n = next((one for one in own if one[1] not in (None, "none")), ("steps", 1000))
        more = f" --{unit} {n}"
    return anew + more * is_done


def prompt_flags(run: Run) -> str:
    """Return options of `mlxhog generate` whose prompt begins a validation document."""
    question = conversations.question(prompt := run.sample_prompt())
    text = prompt if question is None else question
    text = " " * text.startswith(("-", "@")) + text  # no option, and no file
    return f"{'--chat ' * (question is not None)}--prompt {quoted(text)}"


def path_arguments(value: object, *, public: bool) -> list[str]:
    """Return the arguments of an option; with `public`, only the last part of absolute paths."""
    paths = map(str, value if isinstance(value, list) else str(value).split("\n"))
    return [Path(one).name if public and one[:1] in ("/", "~") else one for one in paths]


def changed(values: Mapping[str, object]) -> dict[str, object]:
    """Return the options of this version that differ from their defaults, as in YAML."""
    known = specs_of(TrainConfig, values)
    return {
        name: value
        for name, value in values.items()
        if name in known
        and name not in _ASIDE
        and str(value) != str(known[name].to_yaml_value(known[name].default))
    }


def different_texts(records: Sequence[RunRecord]) -> list[str]:
    """Return a warning if validation scores of runs are of different texts."""
    scored = [each for each in records if each.last("val_bits_per_byte") is not None]
    if len({each.text or each.run.name for each in scored}) < 2:
        return []
    texts = ", ".join(
        f"{each.run.name} ({each.evaluated_text or 'not recorded'}, "
        f"data {quoted_paths(each.config.get('data', '-'))})"
        for each in scored
    )
    return [f"validation scores of different text cannot be compared: {texts}"]
