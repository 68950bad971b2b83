"""Score text with a trained model: the Python API `evaluate`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from mlxhog.base import machine
from mlxhog.base.paths import names_in_common_folder, quoted_paths
from mlxhog.base.workers import one_backend
from mlxhog.checkpoint import hub
from mlxhog.checkpoint.checkpoint import locate
from mlxhog.checkpoint.run import Run, run_of
from mlxhog.config import plugins
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.sources import of_keywords, resolve
from mlxhog.data import corpora, prepare, validation_set
from mlxhog.data.corpora import Show, show_nothing
from mlxhog.data.machine_data import MachineData
from mlxhog.data.split import KnownText
from mlxhog.data.tokens import TokenFile
from mlxhog.decoding.scoring import TextScore, score, token_files, val_tokens
from mlxhog.errors import ConfigError, DataError, shown
from mlxhog.models.families import check_length
from mlxhog.serving import CHECKPOINT, SEQ_LEN
from mlxhog.serving.model import LoadedModel, load, spec_of


@dataclass(frozen=True, kw_only=True)
class TextEvaluation:
    """Scores of text."""

    checkpoint: str  # path of the weights
    seq_len: int  # tokens of a sequence
    backend: str  # such as "torch:cpu"
    files: dict[str, TextScore]  # by name
    subset: TextScore | None  # fixed validation subset; None where it is the full set, or of files
    skipped: tuple[dict[str, Any], ...]  # files that were not read, and why
    notes: tuple[str, ...]  # for the user
    seconds: float  # duration

    @property
    def whole(self) -> TextScore:
        """The score of all files together."""
        return sum(self.files.values(), TextScore())

    @property
    def bits_per_byte(self) -> float | None:
        """Cross entropy per byte of all text; comparable between tokenizers."""
        return self.whole.bits_per_byte

    def to_json(self) -> dict[str, Any]:
        """Return what `mlxhog eval --json` prints."""
        return {
            "checkpoint": self.checkpoint,
            "seq_len": self.seq_len,
            "backend": self.backend,
            "files": [{"file": name, **one.to_json()} for name, one in self.files.items()],
            "skipped": [*self.skipped],
            **self.whole.to_json(),
            **({} if self.subset is None else {"subset": self.subset.to_json()}),
            "seconds": round(self.seconds, 3),
        }


def evaluate(
    model: str | Path = "latest",
    data: str | Path | Sequence[str | Path] | None = None,
    *,
    like: str | Path | None = None,
    checkpoint: str | None = None,
    seq_len: int | None = None,
    backend: str = "auto",
    text_key: str | None = None,
    document_separator: str | None = None,
    strict_data: bool = False,
    plugin: str | Path | Sequence[str | Path] | None = None,
    runs_dir: str | Path = "runs",
    observer: Callable[[str], None] | None = None,
) -> TextEvaluation:
    """Score text with a trained model.

        evaluate("latest").bits_per_byte
        evaluate("latest", "letter.txt").to_json()
        evaluate("xLSTM-7b", like="latest")

    As in the evaluation of a run, the text is cut into sequences, each without the text before it.

    Args:
        model: a run (its path, name or "latest"), RUN/best, a checkpoint, or hf:OWNER/NAME.
        data: text files, folders, globs or a bundled corpus, one or several; None is the validation
            set of the run.
        like: another run, whose validation set is scored.
        checkpoint: of the run: "latest", "best", or the name of a folder in its checkpoints; None
            is the newest, or the best where the last is worse.
        seq_len: tokens of a sequence, >= 2; None is that of the run's training, else 512.
        backend: what computes, such as "torch:cpu".
        text_key: field of the text in JSON lines and tables, or "none"; None is the run's.
        document_separator: what ends a document of plain text, "auto" or "none"; None is the
            run's.
        strict_data: refuse text that cannot be read, in place of skipping it.
        plugin: Python files that add layers.
        runs_dir: the folder that holds the runs.
        observer: called with a line about the progress.

    Raises:
        ConfigError, DataError, RunError, CheckpointError: bad input.
        Diverged: the loss is not finite.
        EnvironmentLacks: memory or a backend is missing.
    """
    if seq_len is not None and not (isinstance(seq_len, Integral) and seq_len >= 2):
        raise ConfigError(
            f"seq_len is {shown(seq_len)}; wanted an integer from 2 on, or None for that of the "
            f"run's training, else {SEQ_LEN}"
        )
    asked = {"data": data, "text_key": text_key, "document_separator": document_separator}
    asked = {name: value for name, value in asked.items() if value is not None}
    named_options = {**asked, "strict_data": strict_data, "runs_dir": runs_dir}
    named = resolve(TrainConfig, [of_keywords("evaluate()", named_options)])
    plugins.load_all(plugin)
    show: Show = show_nothing if observer is None else lambda text: observer(text())
    root = Path(named.runs_dir)
    which = None if checkpoint is None else spec_of("evaluate()", checkpoint)
    path = locate(spec_of("evaluate()", model), root, which)
    if like is not None and data is not None:
        raise ConfigError("--like and --data both name the text to score; leave one out")
    if data is None and (text_key, document_separator, named.strict_data) != (None, None, False):
        raise ConfigError(
            "text_key, document_separator and strict_data say how --data is read; name a text "
            "with --data, or leave them out"
        )
    source = path if like is None else locate(spec_of("evaluate()", like), root)
    trained = run_of(source.resolve())  # a run's `model` is a link to one
    text = None if data is None else named.data
    options = None if trained is None else train_config([trained.options(data=text)])
    corpus = None
    if text is not None:
        own = options or TrainConfig()
        machine_data = MachineData(skip=own.skip_machine_data)
        how = own.having(**{name: getattr(named, name) for name in asked})
        every = corpora.find(text, how.text_key, show, how.document_separator)
        every = prepare.with_loss_on(every.mapped(machine_data.read), own.loss_on)
        corpus, _ = corpora.readable(every, strict=named.strict_data, show=show)
    elif options is None:
        raise ConfigError(
            f"{hub.title(source) or source} is not a checkpoint of a run, so it has no validation "
            "text; name a text with --data, or a run with --like"
        )
    began = time.monotonic()
    computes = one_backend(backend, machine.here())  # batches, which a GPU is good at
    loaded = load(path, runs_dir=root, backend=computes, mode=CHECKPOINT)
    default = SEQ_LEN if options is None else options.seq_len
    length = default if seq_len is None else int(seq_len)
    check_length(loaded.config, length)

    def scored(name: str, file: TokenFile | None) -> TextScore:
        if file is None:
            return TextScore()

        def progress(share: float) -> None:
            show(lambda: f"{share:.0%}  {name}")

        backend = loaded.follower.backend
        return score(backend, loaded.config, file, seq_len=length, progress=progress)

    subset = None
    with tempfile.TemporaryDirectory(prefix="mlxhog-eval-") as folder:
        if corpus is not None:
            tokens = token_files(loaded.tokenizer, corpus, Path(folder))
            names = names_in_common_folder([one.name for one in corpus.parts])
            files = {names[one]: scored(names[one], file) for one, file in tokens}
        elif options is not None and trained is not None:
            validation = _validation(loaded, options, trained, path, like=like is not None)
            of_run = f" of {trained.name}" * (like is not None)
            name = f"{quoted_paths(options.data)} (validation text{of_run})"
            files = {name: scored(name, validation)}
            n_bytes = (trained.read_status().get("validation") or {}).get("asked_bytes")
            part = validation_set.subset(validation, n_bytes) if n_bytes else validation
            subset = None if part is validation else scored(name, part)
    result = TextEvaluation(
        checkpoint=hub.title(path) or str(path), seq_len=length, backend=loaded.backend,
        files=files, subset=subset,
        skipped=() if corpus is None else tuple(one.to_json() for one in corpus.skipped),
        notes=() if corpus is None else tuple(corpus.notes(listed_by="--json")),
        seconds=time.monotonic() - began,
    )  # fmt: skip
    if not result.whole.tokens:
        raise DataError(f"{quoted_paths(text)} holds no text; choose other files")
    return result


def _validation(
    loaded: LoadedModel, options: TrainConfig, run: Run, path: Path, *, like: bool
) -> TokenFile:
    """Return the validation text of a run, in the tokens of a model, perhaps another one."""
    how = {name: getattr(options, name) for name in prepare.OPTIONS}
    if options.tokenizer == "auto" or like:
        how["tokenizer"] = str(hub.tokenizer_folder(path if path.is_dir() else path.parent))
    how |= {"known": KnownText.read(run.directory), "resumes": True}
    how["learned"] = None if like else path
    return val_tokens(loaded.tokenizer, options.data, **how)
